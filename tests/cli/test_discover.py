"""`geom discover` as a user runs it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest
from pyarrow import parquet

from geomcli.discovery import artifacts
from geomcli.errors import GeomError
from geomcli.store import Store
from tests.conftest import GEOM
from tests.discovery.made_points import filled, planted


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "attention_data.db"
    filled(path, planted(60)[0])
    return path


def geom(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([GEOM, "discover", *map(str, words)], capture_output=True, text=True)


def test_the_documented_command_with_its_options(db: Path, tmp_path: Path) -> None:
    out = tmp_path / "discovery_artifacts"
    done = geom("--db", db, "--output-dir", out, "--min-samples", 100)
    assert done.returncode == 0, done.stderr
    for stage in ("principal components", "map", "HDBSCAN", "zones and traits", "calibration"):
        (line,) = [line for line in done.stderr.splitlines() if line.strip().startswith(stage)]
        assert line.endswith(" s")
    rows = done.stdout.splitlines()
    assert sum(row.startswith(tuple("ABCDE")) for row in rows) == 5
    assert any("noise: in no cluster" in row for row in rows)
    assert any("local_attention (local 0." in row for row in rows)
    manifest = json.loads((out / "latest" / "manifest.json").read_text())
    assert (manifest["map"], manifest["n"], len(manifest["clusters"])) == ("umap", 330, 5)
    assert parquet.read_table(out / "latest" / "embeddings.parquet").num_rows == 330
    with Store(db) as store:
        (run,) = store.rows("SELECT * FROM discovery_runs")
        assert (run["run_id"], run["n"], run["clusters"]) == (manifest["run_id"], 330, 5)
        kept = store.rows("SELECT * FROM latest_clusters")
        assert [row["name"] for row in kept] == [cluster["name"] for cluster in manifest["clusters"]]


def test_beside_the_store_without_umap_as_json(db: Path) -> None:
    done = geom("--db", db, "--no-umap", "--json", "--per", "request", "--min-samples", 10)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["map"], said["unit"], said["n"]) == ("pca", "request", 33)
    assert (db.parent / "discovery" / said["run_id"] / "model.npz").is_file()


def test_too_few_fingerprints(tmp_path: Path) -> None:
    db = tmp_path / "few.db"
    filled(db, planted(10)[0])
    done = geom("--db", db, "--min-samples", 100)
    assert done.returncode == 1
    assert "55 fingerprints of made are fewer than the 100" in done.stderr
    assert "--min-samples" in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "discovery").exists()
    assert "Traceback" not in done.stderr


def test_no_store_at_all(tmp_path: Path) -> None:
    done = geom("--db", tmp_path / "none.db")
    assert done.returncode == 1
    assert "there is no trace store" in done.stderr
    assert "none.db" in done.stderr
    assert not (tmp_path / "none.db").exists()


def test_the_other_kind_of_fingerprints_is_named(db: Path) -> None:
    done = geom("--db", db, "--from", "traces")
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert "holds no fingerprints of traces, but 330 of traffic. try: --from traffic" in said


def test_too_few_requests_are_called_requests(db: Path) -> None:
    done = geom("--db", db, "--per", "request")
    assert done.returncode == 1
    assert "33 requests of made are fewer than the 100" in done.stderr


def test_fewer_points_than_samples_is_a_contradiction(db: Path) -> None:
    done = geom("--db", db, "--max-points", 50)
    assert done.returncode == 2
    assert "--max-points 50 are fewer than --min-samples 100" in done.stderr


def test_rows_that_are_no_fingerprints_are_left_out_and_counted(db: Path) -> None:
    with contextlib.closing(sqlite3.connect(db)) as connection:
        for row, value in enumerate(["text" * 20, 7, b"\x00\x00\xc0\x7f" * 20, b"\x00\x00\x20\x41" * 20], 1):
            connection.execute("UPDATE fingerprints SET fingerprint = ? WHERE id = ?", (value, row))
        connection.execute("UPDATE fingerprints SET ripple = 'abc' WHERE id = 9")
        connection.commit()
    done = geom("--db", db, "--no-umap")
    assert done.returncode == 0, done.stderr
    assert "4 left out: not 20 numbers in [0, 1], or all 0" in " ".join(done.stderr.split())
    few = geom("--db", db, "--min-samples", 330, "--no-umap")
    assert few.returncode == 1
    assert "326 fingerprints of made (4 stored fingerprints are not sound)" in " ".join(few.stderr.split())


@pytest.mark.parametrize(("flags", "said"), [
    (("--min-cluster-size", 900), "--min-cluster-size 900 is more than the 330 points"),
    (("--output-dir", ""), "--output-dir names no folder"),
])  # fmt: skip
def test_flags_that_cannot_be_meant(db: Path, flags: tuple[object, ...], said: str) -> None:
    done = geom("--db", db, *flags)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())


def test_a_loop_of_links_is_a_sentence(db: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    done = geom("--db", db, "--output-dir", tmp_path / "loop")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    with pytest.raises(GeomError, match="loop"):
        artifacts.load(tmp_path / "loop")


def test_a_folder_of_one_s_own_for_all_commands(db: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "GEOM_DISCOVERY": str(tmp_path / "mine")}
    done = subprocess.run([GEOM, "discover", "--db", db, "--no-umap"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine" / "latest" / "manifest.json").is_file()
    assert not (db.parent / "discovery").exists()


def test_a_folder_that_cannot_be_written_is_known_at_once(db: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = geom("--db", db, "--output-dir", tmp_path / "file")
    assert done.returncode == 1
    assert "the artifacts cannot be written" in done.stderr
    assert "principal components" not in done.stderr


def test_one_request_is_said_to_calibrate_nothing(tmp_path: Path) -> None:
    filled(tmp_path / "one.db", planted(60)[0], tokens=10_000)
    done = geom("--db", tmp_path / "one.db", "--no-umap")
    assert done.returncode == 0, done.stderr
    assert "Not calibrated: a confidence needs clusters with members from several requests" in done.stdout
    assert "Held out" not in done.stdout
    manifest = json.loads((tmp_path / "discovery" / "latest" / "manifest.json").read_text())
    assert manifest["calibration"] == {"held_out": 0}


def test_one_kind_of_traffic_is_said_to_be_one_cluster(tmp_path: Path) -> None:
    fingerprints, labels = planted(150, noise=0)
    filled(tmp_path / "kind.db", fingerprints[labels == 0])
    done = geom("--db", tmp_path / "kind.db", "--no-umap")
    assert done.returncode == 0, done.stderr
    assert "One cluster: HDBSCAN found none" in done.stdout
    assert sum(row.startswith(("A ", "B ")) for row in done.stdout.splitlines()) == 1


@pytest.mark.parametrize(("flag", "value"), [
    ("--seed", 2**40), ("--seed", 2**32), ("--seed", -1), ("--max-points", 10**6), ("--max-points", 1),
])  # fmt: skip
def test_numbers_out_of_range_are_refused_at_once(db: Path, flag: str, value: int) -> None:
    done = geom("--db", db, flag, value)
    assert done.returncode == 2
    assert f"Invalid value for '{flag}'" in done.stderr
    assert not (db.parent / "discovery").exists()


def test_a_stage_is_named_when_it_starts(db: Path) -> None:
    command = [GEOM, "discover", "--db", db, "--seed", str(2**32 - 1)]  # the largest that UMAP takes
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stderr is not None
    seen, at = b"", {}
    while some := process.stderr.read1(4096):
        seen += some
        for stage, text in (("started", rb"\n  map +"), ("over", rb"\n  map +[\d.]+ s\n")):
            if re.search(text, seen):
                at.setdefault(stage, time.monotonic())
    assert process.wait() == 0
    assert at["over"] - at["started"] > 0.5  # umap-learn takes seconds to load


def test_a_stage_that_fails_leaves_a_line_for_the_error(db: Path, tmp_path: Path) -> None:
    (tmp_path / "site" / "umap").mkdir(parents=True)
    (tmp_path / "site" / "umap" / "__init__.py").write_text("raise ImportError('none here')")
    paths = [str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run([GEOM, "discover", "--db", db], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})  # fmt: skip
    assert done.returncode == 1
    assert "\ngeom: the map needs umap-learn." in done.stderr


def test_rows_that_cannot_be_kept_leave_the_run_and_are_named(db: Path) -> None:
    with contextlib.closing(sqlite3.connect(db)) as connection:
        connection.execute("CREATE TRIGGER no BEFORE INSERT ON clusters BEGIN SELECT RAISE(ABORT, 'locked, say'); END")
        connection.commit()
    done = geom("--db", db, "--no-umap")
    assert done.returncode == 1
    assert sum(row.startswith(tuple("ABCDE")) for row in done.stdout.splitlines()) == 5
    assert f"rows in discovery_runs and clusters of {db} are missing" in done.stderr
    assert "locked, say" in done.stderr
    assert "try: the same command" in done.stderr
    manifest = json.loads((db.parent / "discovery" / "latest" / "manifest.json").read_text())
    assert f"artifacts: {db.parent / 'discovery' / manifest['run_id']}" in done.stderr
    with Store(db) as store:
        assert store.rows("SELECT * FROM discovery_runs") == []


def test_latest_that_is_a_folder_leaves_the_run_and_its_rows(db: Path) -> None:
    (db.parent / "discovery" / "latest").mkdir(parents=True)
    done = geom("--db", db, "--no-umap", "--json")
    assert done.returncode == 1
    run = db.parent / "discovery" / json.loads(done.stdout)["run_id"]
    assert (run / "manifest.json").is_file()
    assert f"the run is written, {run}, but" in done.stderr
    with Store(db) as store:
        assert len(store.rows("SELECT * FROM discovery_runs")) == 1
