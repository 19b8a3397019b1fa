"""A trace against a discovery: which clusters its tokens are in, and how far it leaves the manifold."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from geomcli.compass import DRIFT_WINDOW, bhattacharyya_angle
from geomcli.discovery import artifacts
from geomcli.discovery.classification import Classifier
from geomcli.discovery.pipeline import Parameters, discover
from geomcli.discovery.reading import read
from geomcli.schema import Record
from geomcli.store import Store
from geomcli.trace import Trace
from tests.conftest import GEOM
from tests.discovery.made_points import CENTRES, points
from tests.library.made_traces import entry, records


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store") / "discovery"
    artifacts.write(discover(points(100)[0], Parameters(umap=False)), root)
    return root


def trace_of(clusters: list[int], *, model: str = "made", seed: int = 1) -> list[Record]:
    random = np.random.default_rng(seed)
    entries = []
    for number, cluster in enumerate(clusters, 1):
        weights = np.full(16, 0.5)
        weights[list(CENTRES[cluster])] = 60
        entries.append(entry(number, f"t{number}", random.dirichlet(weights)))
    return records(entries, trace_id="t", model=model)


def test_tokens_are_given_to_their_clusters(root: Path) -> None:
    classifier = Classifier(artifacts.load(root))
    reading = read(Trace(trace_of([0] * 30 + [4] * 10)), classifier)
    assert reading is not None
    assert reading.tokens == list(range(40))
    assert [round(share.share, 1) for share in reading.shares[:2]] == [0.7, 0.2] or reading.shares[0].share >= 0.7
    assert reading.shares[0].name.startswith("syntax_floor")
    assert reading.on_manifold == pytest.approx(sum(share.share for share in reading.shares))
    assert reading.on_manifold >= 0.9
    assert reading.confidence == pytest.approx(np.mean([c.confidence for c in reading.classified]))


def test_off_the_manifold_between_two_clusters(root: Path) -> None:
    classifier = Classifier(artifacts.load(root))
    made = trace_of([0] * 20 + [4] * 20)
    reading = read(Trace(made), classifier)
    assert reading is not None
    assert reading.off[: DRIFT_WINDOW - 1] == [None] * (DRIFT_WINDOW - 1)
    inside = [off is not None and off.inside for off in reading.off[DRIFT_WINDOW - 1 :]]
    # Windows of one pattern are on the manifold, those that mix two of them are not.
    assert inside[0]
    assert inside[-1]
    assert not inside[24 - DRIFT_WINDOW + 1]
    steps = [record["fingerprint"] for record in made if record["record_type"] == "step"]
    direction = np.sqrt(np.array(steps)[20 - DRIFT_WINDOW : 20, -16:]).mean(axis=0)
    found = reading.off[19]
    assert found is not None
    medoid = classifier.artifacts.medoids[found.cluster][-16:]
    unit = direction / np.linalg.norm(direction)
    assert found.angle == pytest.approx(bhattacharyya_angle(unit**2, medoid), abs=1e-6)


def test_another_model_and_nothing_captured_are_not_classified(root: Path) -> None:
    classifier = Classifier(artifacts.load(root))
    assert read(Trace(trace_of([0] * 20, model="other")), classifier) is None
    assert read(Trace(records([entry(1, "a"), entry(2, "b")], model="made")), classifier) is None


def test_the_summary_has_a_line_of_it(root: Path, tmp_path: Path) -> None:
    db = root.parent / "traces.db"
    with Store(db) as store:
        if not store.has("t"):
            store.add(trace_of([0] * 30))

    def shown() -> str:
        return subprocess.run([GEOM, "traces", "show", "t", "--db", db], capture_output=True, text=True).stderr

    said = shown()
    (line,) = [line for line in said.splitlines() if line.strip().startswith("manifold")]
    assert "syntax_floor, local_attention" in line
    assert "confidence 0." in line
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "discovery" / "run").mkdir(parents=True)
    other = broken / "traces.db"
    other.write_bytes(db.read_bytes())
    said = subprocess.run([GEOM, "traces", "show", "t", "--db", other], capture_output=True, text=True).stderr
    assert "not classified: " in said
    assert "geom discover" in said


def test_one_request_alone_calibrates_nothing_and_the_line_says_so(tmp_path: Path) -> None:
    given, _ = points(100, tokens=10_000)
    artifacts.write(discover(given, Parameters(umap=False)), tmp_path / "discovery")
    made = trace_of([0] * 30)
    reading = read(Trace(made), Classifier(artifacts.load(tmp_path / "discovery")))
    assert reading is not None
    assert not reading.calibrated
    assert {c.confidence for c in reading.classified} == {0.5}
    with Store(tmp_path / "traces.db") as store:
        store.add(made)
    command = [GEOM, "traces", "show", "t", "--db", tmp_path / "traces.db"]
    said = subprocess.run(command, capture_output=True, text=True).stderr
    (line,) = [line for line in said.splitlines() if line.strip().startswith("manifold")]
    assert "uncalibrated" in line
    assert "confidence" not in line
