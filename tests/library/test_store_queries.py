"""Points of the map and timelines: what is stored beside the steps equals what the steps say."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlite_utils import Database

from geomcli import store as store_module
from geomcli.errors import StoreError
from geomcli.migrations import INSERT_SUMMARY, m001_traces, migrations
from geomcli.store import Store
from geomcli.store_queries import step_fingerprints, trace_points, zone_timeline
from geomcli.trace import Trace, step_record
from geomcli.trace_summary import TraceSummary
from tests.library.made_traces import FLAT, LOCAL, LONG, MID, entry, records, trace, traces

DAY = 86_400_000


def stored(store: Store, hists: list[Any], *, created: int = 0, **more: Any) -> str:
    made = records([entry(n, "x", hist) for n, hist in enumerate(hists, 1)], **more)
    made[0]["created"] = created
    return store.add(made)


def mean_of(hists: list[np.ndarray]) -> np.ndarray:
    made = trace(["x"] * len(hists), hists)
    return np.mean([step["fingerprint"] for step in made.steps], axis=0)  # type: ignore[no-any-return]


def test_scopes(tmp_path: Path) -> None:
    with Store(tmp_path / "t.db") as store:
        old = stored(store, [LOCAL], created=0)
        new = [stored(store, [LOCAL, MID, MID], created=10 * DAY + n, model=f"m{n % 2}") for n in range(4)]
        cut = stored(store, [LONG], created=10 * DAY + 9, end=False)
        stored(store, [None], created=10 * DAY)  # without a fingerprint it is on no map

        def ids(*scope: Any, **more: Any) -> list[str]:
            return [p.trace_id for p in trace_points(store, *scope, now_ms=11 * DAY, **more).traces]

        newest_first = new[::-1]
        assert ids("recent") == [cut, *newest_first]
        assert ids("recent", limit=2) == [cut, new[3]]
        assert ids("recent", days=30) == [cut, *newest_first, old]
        assert ids("saved") == [*newest_first, old]
        assert ids("all") == [cut, *newest_first, old]
        assert ids("session", ids=[new[1], cut, "nonsense"]) == [cut, new[1]]
        assert ids("session") == []
        assert ids("all", model="m0") == [new[2], new[0]]

        points = trace_points(store, "session", ids=[new[0]])
        (point,) = points.traces
        assert (point.model, point.title, point.tokens, point.steps, point.complete) == (
            "m0",
            "Hello there",
            3,
            3,
            True,
        )
        assert point.zones == {"semantic_bridge": 2, "syntax_floor": 1}
        assert point.dominant_zone == "semantic_bridge"
        assert points.fingerprints == pytest.approx(mean_of([LOCAL, MID, MID])[None], abs=1e-6)
        assert trace_points(store, "session").fingerprints.shape == (0, 20)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=traces(), pieces=st.integers(1, 5))
def test_a_summary_equals_its_steps_however_they_were_committed(tmp_path: Path, made: Trace, pieces: int) -> None:
    made.header["trace_id"] = f"t{time.monotonic_ns()}"
    with Store(tmp_path / "t.db") as store:
        writer = store.writer()
        for n, record in enumerate(made.records()):
            writer.write(record)
            if n % pieces == 0:
                writer.flush()
        writer.flush()
        points = trace_points(store, "session", ids=[made.header["trace_id"]])
        indices, fingerprints = step_fingerprints(store, made.header["trace_id"])
        row = store.rows("SELECT * FROM trace_summaries WHERE trace_id = ?", (made.header["trace_id"],))[0]
    assert points.traces[0].zones == made.metrics["zoneCounts"]
    assert points.traces[0].dominant_zone in made.metrics["zoneCounts"]
    assert points.traces[0].steps == len(fingerprints) == len(indices)
    assert points.fingerprints[0] == pytest.approx(fingerprints.mean(axis=0), abs=1e-6)
    assert [row["local"], row["mid"], row["long"], row["bin_entropy"]] == pytest.approx(
        fingerprints.mean(axis=0)[:4].tolist(), abs=1e-6
    )


def test_empty_and_broken_fingerprints_do_not_count() -> None:
    odd: list[list[float]] = [[0.0] * 20, [float("nan")] * 20, [1.0]]
    steps = [step_record(n, {**entry(n + 1, "a", LOCAL), "fingerprint": f}) for n, f in enumerate(odd)]  # type: ignore[typeddict-item]
    assert TraceSummary().plus(steps).steps == 0
    assert TraceSummary().plus([*steps, *records([entry(2, "b", FLAT)])]).zones == {"diffuse": 1}


def test_a_commit_that_failed_is_not_counted_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = records([entry(1, "a", LOCAL), entry(2, "b", MID)])
    with Store(tmp_path / "t.db") as store:
        writer = store.writer()
        writer.write(made[0])
        writer._buffer.extend(made[1:4])
        execute = store_module.TraceWriter._execute

        def failing(self: Any, sql: str, parameters: tuple[Any, ...]) -> sqlite3.Cursor:
            if sql == "COMMIT":
                raise StoreError("the disk is full.")
            return execute(self, sql, parameters)

        monkeypatch.setattr(store_module.TraceWriter, "_execute", failing)
        with pytest.raises(StoreError):
            writer.flush()
        monkeypatch.undo()
        writer.flush()
        assert trace_points(store, "all").traces[0].steps == 1


def test_a_store_of_the_first_release_is_filled_in(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    with Store(path) as store:
        ids = [stored(store, [LOCAL, LONG, FLAT], created=n) for n in range(3)]
        stored(store, [None])
        before = trace_points(store, "all")
    db = Database(path)
    db.execute("DROP TABLE trace_summaries")
    db.execute("DELETE FROM _sqlite_migrations WHERE name = 'm002_trace_summaries'")
    db.close()
    with Store(path) as store:
        after = trace_points(store, "all")
    assert [p.trace_id for p in after.traces] == ids[::-1]
    assert after.traces == before.traces
    assert after.fingerprints == pytest.approx(before.fingerprints, abs=1e-6)


def test_a_database_with_the_first_schema_alone_is_brought_up_to_date(tmp_path: Path) -> None:
    db = Database(tmp_path / "t.db")
    m001_traces(db)
    db.table("_sqlite_migrations").insert(
        {"migration_set": "geom", "name": "m001_traces", "applied_at": "2026-01-01"}, pk=("migration_set", "name")
    )
    db.close()
    with Store(tmp_path / "t.db") as store:
        assert trace_points(store, "all").traces == []
    assert not migrations.pending(Database(tmp_path / "t.db"))


def test_a_trace_that_is_removed_takes_its_point_along(tmp_path: Path) -> None:
    with Store(tmp_path / "t.db") as store:
        stored(store, [LOCAL])
        store._connection.execute("DELETE FROM traces")
        assert store.rows("SELECT * FROM trace_summaries") == []


def test_the_timeline_of_a_trace(tmp_path: Path) -> None:
    entries = [entry(1, "a", LOCAL, think_phase="think"), entry(2, "b"), entry(3, "c", MID, drift=0.25, compass="WARN")]
    with Store(tmp_path / "t.db") as store:
        trace_id = store.add(records(entries))
        steps = zone_timeline(store, trace_id)
        assert zone_timeline(store, "nonsense") == []
        indices, fingerprints = step_fingerprints(store, trace_id)
    assert [(s.index, s.zone, s.drift, s.think_phase) for s in steps] == [
        (0, "syntax_floor", None, "think"), (1, None, None, "output"), (2, "semantic_bridge", 0.25, "output"),
    ]  # fmt: skip
    assert steps[2].compass == "WARN"
    assert indices.tolist() == [0, 2]
    assert fingerprints.dtype == np.float32
    assert fingerprints[1] == pytest.approx(mean_of([MID]), abs=1e-6)


def test_ten_thousand_traces_are_read_at_once(tmp_path: Path) -> None:
    summary = TraceSummary().plus(records([entry(1, "a", LOCAL), entry(2, "b", MID)]))
    with Store(tmp_path / "t.db") as store:
        store._connection.execute("BEGIN")
        for n in range(10_000):
            store._connection.execute(
                "INSERT INTO traces (id, created, model, version, ruleset, title, capture, complete) "
                "VALUES (?, ?, 'm', '1.0', 'zones-v1', 'title', '{}', 1)",
                (f"t{n}", n),
            )
            store._connection.execute(INSERT_SUMMARY, (f"t{n}", *summary.row()))
        store._connection.execute("COMMIT")
        began = time.process_time()
        points = trace_points(store, "saved")
        took = time.process_time() - began
    assert points.fingerprints.shape == (10_000, 20)
    assert points.traces[0].trace_id == "t9999"
    assert took < 1
