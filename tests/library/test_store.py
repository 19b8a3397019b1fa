"""Traces: what goes in comes out, in any order of events, and nothing that was committed is lost."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlite_utils import Database

from geomcli import store, store_connection
from geomcli.client import Chunk
from geomcli.errors import StoreError
from geomcli.fingerprint import round_significant
from geomcli.migrations import migrations
from geomcli.schema import Entry
from geomcli.store import Store
from geomcli.store_listing import list_traces
from geomcli.trace import Trace, TraceBuilder, entry_of, step_record
from geomcli.zones import ZONE_NAMES

six_digits = st.floats(0, 1, width=32).map(round_significant)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@st.composite
def entries(draw: Any) -> Entry:
    entry: dict[str, Any] = {
        "index": 0,
        "decode_step": draw(st.integers(1, 40)),
        "token_id": draw(st.integers(0, 50_000)),
        "token": draw(st.none() | st.text(max_size=6)),
        "query_position": draw(st.integers(0, 9999)),
        "think_phase": draw(st.sampled_from(["think", "output"])),
        "layer_id": draw(st.integers(0, 90)),
        "mode": draw(st.sampled_from(["raw", "sketch", "fingerprint"])),
        "flags": draw(st.lists(st.sampled_from(["masked", "window", "error"]), unique=True)),
    }
    if draw(st.booleans()):
        entry |= {
            "fingerprint": draw(st.lists(six_digits, min_size=20, max_size=20)),
            "zone": draw(st.sampled_from(ZONE_NAMES)),
            "drift": draw(st.none() | six_digits),
            "compass": "OK",
            "sink_mass": draw(six_digits),
            "bytes": 80,
            "logit_stats": draw(st.none() | st.just({"logprob": -0.125, "entropy_bits": 1.5, "margin": 0.25})),
        }
    if entry["mode"] == "raw" and draw(st.booleans()):
        entry |= {"token_positions": [0, 3], "topk_logits": [1.5, 0.25], "logsumexp_candidates": 2.0}
        entry["derotated"] = {"content": [1.25, -0.125], "position": [draw(six_digits), 0.0]}
    entry["from_a_newer_server"] = draw(json_values)
    return entry  # type: ignore[return-value]


def trace_of(answers: list[Entry], error: str | None = None) -> list[dict[str, Any]]:
    builder = TraceBuilder([{"role": "user", "content": "Hello  there"}], model="smollm2", capture={"a": [1]})
    records = builder.start()
    for entry in answers:
        records += builder.add(Chunk(text=entry.get("token") or "", entries=(entry,)))
    records += builder.add(Chunk(text="uncaptured", finish_reason="stop", usage={"completion_tokens": 7}))
    return records + builder.finish(error)


@given(entries())
def test_a_step_record_holds_the_whole_entry(entry: Entry) -> None:
    assert entry_of(step_record(4, entry)) == entry


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answers=st.lists(entries(), max_size=6))
def test_the_store_gives_back_every_record(tmp_path: Path, answers: list[Entry]) -> None:
    records = trace_of(answers)
    with Store(tmp_path / "t.db") as store:
        trace_id = store.add(records)
        assert list(store.records(trace_id)) == records
        assert list(Trace(records).records()) == records


def test_fingerprints_of_full_precision_are_not_cut(tmp_path: Path) -> None:
    exact = [0.123456789012345, *[0.0] * 19]
    records = trace_of([{"decode_step": 1, "layer_id": 0, "fingerprint": exact}])
    with Store(tmp_path / "t.db") as store:
        found = list(store.records(store.add(records)))
    assert found == records


def test_listing_finding_and_the_title(tmp_path: Path) -> None:
    with Store(tmp_path / "t.db") as store:
        ids = [store.add(trace_of([])) for _ in range(3)]
        rows = list_traces(store, limit=2)
        assert len(rows) == 2
        assert rows[0]["title"] == "Hello there"
        assert rows[0]["tokens"] == 7
        assert rows[0]["complete"] == 1
        assert store.find(ids[0]) == ids[0]
        assert store.find("last") == rows[0]["id"]
        with pytest.raises(StoreError, match="no trace 'zzz'"):
            store.find("zzz")
        with pytest.raises(StoreError, match="several traces"):
            store.find(ids[0][:4])
        with pytest.raises(StoreError, match="no trace '%'"):
            store.find("%")


def test_a_trace_that_was_cut_off_keeps_its_committed_part(tmp_path: Path) -> None:
    records = trace_of([{"decode_step": i + 1, "token": "x"} for i in range(5)])
    with Store(tmp_path / "t.db") as store:
        writer = store.writer()
        for record in records[:6]:
            writer.write(record)
        writer.flush()
        # A second connection sees it while the first is still open.
        with Store(tmp_path / "t.db") as reader:
            assert list_traces(reader)[0]["complete"] == 0
            assert list(reader.records(reader.find("last"))) == records[:6]


def test_no_record_waits_for_longer_than_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(store.time, "monotonic", lambda: now)
    records = trace_of([{"decode_step": 1, "token": "x"}])
    with Store(tmp_path / "t.db") as opened:
        writer = opened.writer()
        writer.write(records[0])
        now = 0.01  # the worst case: just behind a commit
        writer.write(records[1])
        for tick in range(1, 5):
            now = tick * store.CHECK_SECONDS - 0.001
            writer.flush_if_due()
            if not writer._buffer:
                break
        assert not writer._buffer
        assert now < 1.01


def test_a_transaction_that_fails_leaves_nothing_of_itself(tmp_path: Path) -> None:
    records = trace_of([{"decode_step": 1, "token": "x"}])
    with Store(tmp_path / "t.db") as store:
        store.add(records)
        with pytest.raises(StoreError, match="could not be written"):
            store.add(records)  # the same trace id
        assert len(list_traces(store)) == 1


def test_a_fresh_store_can_be_opened_by_many_processes_at_once(tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from geomcli.store import Store; Store(Path(sys.argv[1])).close()"
    for n in range(4):
        command = [sys.executable, "-c", script, str(tmp_path / f"{n}.db")]
        processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(5)]
        assert [process.communicate()[1] for process in processes] == [""] * 5


def test_four_writers_at_once(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with Store(path) as store:
                for _ in range(10):
                    with store.writer() as writer:
                        for record in trace_of([{"decode_step": i, "token": "x"} for i in range(20)]):
                            writer.write(record)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    with Store(path) as store:
        assert len(list_traces(store, limit=100)) == 40
        assert all(row["complete"] for row in list_traces(store, limit=100))


def test_migrations_are_recorded_and_search_finds_messages(tmp_path: Path) -> None:
    with Store(tmp_path / "t.db") as store:
        store.add(trace_of([]))
    db = Database(tmp_path / "t.db")
    assert not migrations.pending(db)
    assert [row["content"] for row in db.table("messages").search("hello")] == ["Hello  there"]
    assert db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert {"zone_counts", "drift_timeline"} <= set(db.view_names())


def test_what_is_no_store_is_refused_with_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    path.write_text("this is a text file, long enough to look at" * 50)
    with pytest.raises(StoreError, match=r"cannot be opened: file is not a database"):
        Store(path)
    with pytest.raises(StoreError, match="cannot be opened"):
        Store(tmp_path / "t.db" / "below-a-file.db")


def test_metrics_count_what_was_seen() -> None:
    zone = {"fingerprint": [0.0] * 3 + [0.5] + [0.0] * 16, "zone": "diffuse", "bytes": 80, "layer_id": 1}
    answers: list[Any] = [
        {"decode_step": 1, "token": "a", "think_phase": "think", "drift": None, "compass": "OK", **zone},
        {"decode_step": 2, "token": "b", "think_phase": "output", "drift": 0.4, "compass": "WARN", **zone},
        {"decode_step": 3, "token": "c", "think_phase": "output", "drift": 0.1, "compass": "OK", **zone},
        {"decode_step": 4, "token": "d", "think_phase": "output", "flags": ["error"]},
    ]
    records = trace_of(answers, error="broke off")
    metrics = records[-1]
    assert metrics["zoneCounts"] == {"diffuse": 3}
    assert metrics["maxDrift"] == 0.4
    assert metrics["compass"] == "WARN"
    assert metrics["flags"] == {"error": 1}
    assert metrics["attentionBytes"] == 240
    assert metrics["avgEntropy"] == 0.5
    assert metrics["entries"] == 3
    assert metrics["error"] == "broke off"
    segments = [(r["type"], r["start"], r["end"]) for r in records if r["record_type"] == "segment"]
    assert segments == [("assistant_think", 0, 1), ("assistant_main", 1, 7)]  # two of seven tokens without an entry


def test_a_folder_that_somebody_keeps_locked_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_connection, "_FOLDER_SECONDS", 0.2)
    handle = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="another process has locked the folder"):
            Store(tmp_path / "t.db")
    finally:
        os.close(handle)
    Store(tmp_path / "t.db").close()
