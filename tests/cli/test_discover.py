"""`geom discover` as a user runs it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from pyarrow import parquet

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
    assert "holds no fingerprints" in done.stderr
    assert not (tmp_path / "none.db").exists()
