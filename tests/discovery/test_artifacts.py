"""Artifacts: what is written is read again, whole or not at all; damage and other versions are named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
import tracemalloc
from dataclasses import replace
from importlib.metadata import Distribution
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from geomcli.clusters import distances
from geomcli.discovery import artifacts
from geomcli.discovery.calibration import assigned, assigned_to
from geomcli.discovery.classification import Classifier
from geomcli.discovery.pipeline import Discovery, Parameters, discover
from geomcli.discovery.version import commit
from geomcli.errors import GeomError
from geomcli.fingerprint import fingerprints_from_histograms
from tests.discovery.made_points import points

FILES = {
    "manifest.json", "model.npz", "embeddings.parquet", "clusters.parquet", "prototypes.parquet", "requests.parquet",
}  # fmt: skip


@pytest.fixture(scope="module")
def learnt() -> Discovery:
    return discover(points(100)[0], Parameters(umap=False))


@pytest.fixture
def run(learnt: Discovery, tmp_path: Path) -> Path:
    return artifacts.write(learnt, tmp_path / "discovery")


def test_what_is_written_is_read_again(learnt: Discovery, run: Path) -> None:
    assert {file.name for file in run.iterdir()} == FILES
    for path in (run, run.parent, run.parent / "latest"):
        read = artifacts.load(path)
        assert read.path == run
        assert read.manifest.clusters == learnt.found
        np.testing.assert_array_equal(read.medoids, learnt.clusters.medoids)
        np.testing.assert_array_equal(read.radii, learnt.clusters.radii)
    manifest = read.manifest
    assert (manifest.n, manifest.noise) == (len(learnt.points), int((learnt.clusters.labels == -1).sum()))
    assert manifest.calibration["held_out"] == learnt.calibration.held_out > 0


def test_tables_agree_with_each_other(learnt: Discovery, run: Path) -> None:
    tables = {name: parquet.read_table(run / f"{name}.parquet").to_pydict() for name in
              ("embeddings", "clusters", "prototypes", "requests")}  # fmt: skip
    embeddings, clusters = tables["embeddings"], tables["clusters"]
    assert embeddings["cluster"] == learnt.clusters.labels.tolist()
    np.testing.assert_allclose(embeddings["fingerprint"], learnt.points.fingerprints, atol=1e-6)
    assert clusters["size"] == [embeddings["cluster"].count(label) for label in clusters["cluster"]]
    where = {
        (r, s): c for r, s, c in zip(embeddings["request_id"], embeddings["step"], embeddings["cluster"], strict=True)
    }
    prototypes = tables["prototypes"]
    for cluster, rank, request, step, distance in zip(*prototypes.values(), strict=True):
        assert where[request, step] == cluster
        assert rank or distance == pytest.approx(0, abs=1e-9)  # the medoid itself
    requests = tables["requests"]
    assert sum(requests["points"]) == len(learnt.points)
    assert sum(requests["noise"]) == embeddings["cluster"].count(-1)


def test_latest_is_the_newest_and_older_runs_stay(learnt: Discovery, run: Path) -> None:
    second = artifacts.write(learnt, run.parent)
    assert artifacts.load(run.parent).path == second
    assert artifacts.load(run).path == run
    assert sorted(p.name for p in run.parent.iterdir() if p.name.startswith(".")) == []


def test_a_reader_never_sees_half_a_run(learnt: Discovery, run: Path) -> None:
    root, stop, faults, read = run.parent, threading.Event(), [], 0

    def reading() -> None:
        nonlocal read
        while not stop.is_set():
            try:
                artifacts.load(root)
                read += 1
            except GeomError as error:
                faults.append(error)

    reader = threading.Thread(target=reading)
    reader.start()
    for _ in range(15):
        artifacts.write(learnt, root)
    stop.set()
    reader.join()
    assert faults == []
    assert read > 0


def test_what_fails_in_the_middle_leaves_nothing(learnt: Discovery, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(run.parent.iterdir())
    monkeypatch.setattr(artifacts, "_tables", lambda _discovery: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        artifacts.write(learnt, run.parent)
    assert sorted(run.parent.iterdir()) == before
    assert artifacts.load(run.parent).path == run


def changed(run: Path, **fields: object) -> None:
    path = run / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_damage_and_other_versions_are_named(run: Path, tmp_path: Path) -> None:
    def fails(match: str) -> None:
        with pytest.raises(GeomError, match=match):
            artifacts.load(run)

    with pytest.raises(GeomError, match=r"nothing holds no discovery artifacts. Try: geom discover"):
        artifacts.load(tmp_path / "nothing")
    kept = tmp_path / "kept"
    shutil.copytree(run, kept)
    changed(run, version=2)
    fails(r"artifacts of version 2; this geom reads 1. Try: pip install --upgrade")
    changed(run, version=1, format="other")
    fails("is of format 'other'")
    changed(run, format="geom-discovery", clusters=[], files={})
    fails(r"damaged: medoids has shape \(5, 20\), not \(0, 20\)")
    shutil.copy(kept / "manifest.json", run)
    (run / "model.npz").write_bytes((kept / "model.npz").read_bytes()[:200])
    fails("damaged")
    changed(run, files={})
    fails("damaged")
    np.savez(run / "model.npz", mean=np.zeros(20))
    fails("damaged: 'scale is not a file in the archive'|damaged: .*scale")
    evil = np.empty(1, dtype=object)
    evil[0] = os.system
    np.savez(run / "model.npz", mean=evil)
    fails("damaged: .*allow_pickle")


def test_parts_of_two_runs_are_no_run(run: Path, tmp_path: Path) -> None:
    other = artifacts.write(discover(points(100, seed=3)[0], Parameters(umap=False)), tmp_path / "other")
    kept = tmp_path / "kept"
    shutil.copytree(run, kept)
    manifest = artifacts.load(run).manifest
    for name in FILES - {"manifest.json"}:
        artifacts.check_file(run, manifest, name)
        with pytest.raises(ValueError, match=rf"{name} is not the file that the run wrote"):
            artifacts.check_file(other, manifest, name)
    shutil.copy(other / "model.npz", run)
    with pytest.raises(GeomError, match=r"model\.npz is not the file that the run wrote"):
        artifacts.load(run)
    # As a geom that wrote no sums.
    shutil.copy(other / "model.npz", run)
    changed(run, files={})
    with pytest.raises(GeomError, match=r"model\.npz is of another run than manifest\.json"):
        artifacts.load(run)
    shutil.copy(kept / "model.npz", run)
    changed(run, noise=-1)
    with pytest.raises(GeomError, match="counts what cannot be"):
        artifacts.load(run)


def test_numbers_that_no_run_has(run: Path) -> None:
    kept = json.loads((run / "manifest.json").read_text())["clusters"]
    clusters = [dict(cluster) for cluster in kept]
    clusters[1]["cluster"] = 7
    changed(run, clusters=clusters)
    with pytest.raises(GeomError, match=r"clusters\[1\] of the manifest is cluster 7"):
        artifacts.load(run)
    with np.load(run / "model.npz") as stored:
        arrays = dict(stored)
    changed(run, files={}, clusters=kept)
    for value in (-1.0, 1e300):
        arrays["medoids"][2, 3] = value
        np.savez(run / "model.npz", **arrays)
        with pytest.raises(GeomError, match=r"medoids has a value outside \[0, 1\]"):
            artifacts.load(run)


def test_a_folder_that_cannot_be_written(learnt: Discovery, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GeomError, match=r"the artifacts cannot be written: .*file"):
        artifacts.write(learnt, tmp_path / "file")


def test_classification_against_a_run(learnt: Discovery, run: Path) -> None:
    classifier = Classifier(artifacts.load(run))
    fresh, labels = points(60, seed=9)
    found = classifier.classify(fresh.fingerprints)
    to = {int(np.bincount(points(100)[1][learnt.clusters.labels == f.cluster] + 1).argmax()) - 1: f.cluster
          for f in learnt.found}  # fmt: skip
    known = labels >= 0
    right = np.array([c.cluster == to.get(label, -1) for c, label in zip(found, labels.tolist(), strict=True)])
    assert right[known].mean() >= 0.95
    assert right[~known].mean() >= 0.7
    for c in found:
        assert c.on_manifold == (c.distance <= c.radius * (1 + 1e-9)) == (c.cluster >= 0)
        assert 0 <= c.confidence <= 1
        assert c.name == ("noise" if c.cluster < 0 else learnt.found[c.cluster].name)
    # Confidence means what it says: mean confidence is about the share that is right.
    assert np.mean([c.confidence for c in found]) == pytest.approx(right.mean(), abs=0.05)
    with pytest.raises(ValueError, match="20 finite numbers"):
        classifier.classify(np.full((1, 20), np.nan))


def test_off_manifold_is_an_angle_with_a_radius(learnt: Discovery, run: Path) -> None:
    classifier = Classifier(artifacts.load(run))
    for found in learnt.found:
        hist = learnt.clusters.medoids[found.cluster][4:]
        on = classifier.off_manifold(np.sqrt(hist))
        assert (on.cluster, on.inside) == (found.cluster, True)
        assert on.angle == pytest.approx(0, abs=1e-6)
        assert on.radius == found.angle
    far = classifier.off_manifold(np.sqrt(np.eye(16)[15]))
    assert not far.inside
    assert far.angle > far.radius
    assert not classifier.off_manifold(np.zeros(16)).inside


def test_members_that_are_all_the_same_and_bins_that_are_empty(tmp_path: Path) -> None:
    """A medoid is a member, to the last digit: what standardising and back makes of a 0 has no root."""
    random = np.random.default_rng(0)
    for seed in range(8):
        hists = np.zeros((300, 16))
        hists[:100] = np.eye(16)[2]
        hists[100:200, :7] = random.dirichlet(np.full(7, 40.0), 100)
        hists[200:, 7:] = random.dirichlet(np.full(9, 40.0), 100)
        given, _ = points(60, noise=0)
        made = replace(given, fingerprints=fingerprints_from_histograms(random.permutation(hists)))
        learnt = discover(made, Parameters(umap=False, seed=seed))
        assert len(learnt.found) == 3
        rows = {row.tobytes() for row in made.fingerprints.astype(np.float64)}
        assert all(medoid.tobytes() in rows for medoid in learnt.clusters.medoids)
        classifier = Classifier(artifacts.load(artifacts.write(learnt, tmp_path)))
        for label, medoid in enumerate(learnt.clusters.medoids):
            (one,) = classifier.classify(np.round(medoid, 6))
            assert one.cluster == label
            assert np.isfinite([one.confidence, one.distance, one.radius]).all()
        table = parquet.read_table(tmp_path / "latest" / "embeddings.parquet")
        assert np.isfinite(table["margin"].to_numpy()).all()


@pytest.mark.parametrize("change", [
    {"radii": np.zeros(5)}, {"radii": -np.ones(5)}, {"scale": np.zeros(20)}, {"inside_y": np.full(2, 7.0)},
    {"inside_x": np.array([2.0, 1.0])}, {"outside_constant": np.float64(np.nan)},
])  # fmt: skip
def test_numbers_that_cannot_be(run: Path, change: dict[str, np.ndarray]) -> None:
    with np.load(run / "model.npz") as stored:
        arrays = dict(stored)
    if "inside_x" in change or "inside_y" in change:
        arrays["inside_x"], arrays["inside_y"] = np.array([0.0, 1.0]), np.array([0.5, 1.0])
    np.savez(run / "model.npz", **{**arrays, **change})
    with pytest.raises(GeomError, match="damaged: "):
        artifacts.load(run)


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + bytes(18), b"\x93NUMPY\x01\x00"])
def test_files_that_a_power_cut_leaves(run: Path, content: bytes) -> None:
    (run / "model.npz").write_bytes(content)
    with pytest.raises(GeomError, match="damaged: "):
        artifacts.load(run)


def test_what_cannot_be_read_is_not_published(learnt: Discovery, run: Path) -> None:
    broken = replace(learnt, clusters=replace(learnt.clusters, radii=np.full(5, np.nan)))
    before = sorted(run.parent.iterdir())
    with pytest.raises(GeomError, match="damaged"):
        artifacts.write(broken, run.parent)
    assert sorted(run.parent.iterdir()) == before
    assert artifacts.load(run.parent).path == run


def test_what_a_killed_run_has_left_is_removed_after_an_hour(learnt: Discovery, run: Path) -> None:
    root, hours_ago = run.parent, time.time() - 2 * 3600
    old, young, other = (
        root / name for name in (".20260101-000000-00ab12.tmp", ".20260101-000000-00ab13.tmp", ".mine.tmp")
    )
    for left in (old, young, other):
        left.mkdir()
        (left / "model.npz").write_bytes(b"half")
    for left in (old, other, run):
        os.utime(left, (hours_ago, hours_ago))
    artifacts.write(learnt, root)
    assert not old.exists()
    assert young.exists()
    assert other.exists()
    assert artifacts.load(run).path == run


def test_latest_that_is_a_folder_is_named_and_the_run_kept(learnt: Discovery, run: Path) -> None:
    latest = run.parent / "latest"
    latest.unlink()
    shutil.copytree(run, latest)  # as `cp -rL` leaves it
    with pytest.raises(GeomError, match=r"the run is written, (.*), but .*/latest is no link") as raised:
        artifacts.write(learnt, run.parent)
    (second,) = (p for p in run.parent.iterdir() if p not in (run, latest))
    assert f"the run is written, {second}," in raised.value.message
    assert artifacts.load(second).path == second
    assert artifacts.load(run.parent).path == latest
    assert raised.value.mend is not None
    subprocess.run(["sh", "-c", raised.value.mend], check=True)
    assert artifacts.load(run.parent).path == second


def test_a_damaged_latest_is_an_error_and_no_other_run_takes_its_place(learnt: Discovery, run: Path) -> None:
    second = artifacts.write(learnt, run.parent)
    (second / "model.npz").write_bytes(b"")
    with pytest.raises(GeomError, match=f"the artifacts in {second} are damaged"):
        artifacts.load(run.parent)
    assert artifacts.load(run).path == run
    shutil.rmtree(second)
    with pytest.raises(GeomError, match=rf"latest names a run that is not there, {second.name}\."):
        artifacts.load(run.parent)


def test_runs_of_before_windows_and_implementations_are_read(run: Path) -> None:
    raw = json.loads((run / "manifest.json").read_text())
    del raw["implementations"]
    clusters = [{k: v for k, v in c.items() if k not in ("angle_of", "angle_n")} for c in raw["clusters"]]
    (run / "manifest.json").write_text(json.dumps({**raw, "clusters": clusters}))
    read = artifacts.load(run)
    assert read.manifest.implementations == {}
    assert {(c.angle_of, c.angle_n) for c in read.manifest.clusters} == {("members", 0)}
    assert read.manifest.calibrated


def test_many_small_clusters_take_little_memory() -> None:
    random = np.random.default_rng(0)
    z, medoids, radii = random.random((20_000, 20)), random.random((400, 20)), np.full(400, 1.2)
    tracemalloc.start()
    labels, margins = assigned_to(z, medoids, radii)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6  # differences of all to all are 1.3 GB, distances 64 MB
    expected, of = assigned(distances(z[:3000], medoids), radii)
    assert labels[:3000].tolist() == expected.tolist()
    np.testing.assert_array_equal(margins[:3000], of)


def test_the_commit_is_what_the_installer_wrote_down(tmp_path: Path) -> None:
    folder = tmp_path / "geomcli-1.dist-info"
    folder.mkdir()
    installed = Distribution.at(folder)
    assert commit(installed) == ""
    for text, expected in (
        ('{"url": "file:///geom", "dir_info": {}}', ""), ("{", ""), ('{"vcs_info": 3}', ""),
        ('{"url": "https://h/geom", "vcs_info": {"vcs": "git", "commit_id": "240f9c6"}}', "240f9c6"),
    ):  # fmt: skip
        (folder / "direct_url.json").write_text(text)
        assert commit(installed) == expected


def test_a_manifest_has_a_commit_only_where_there_is_one(run: Path) -> None:
    assert json.loads((run / "manifest.json").read_text()).get("git", "") == commit()
