"""Import: all or nothing, the same bytes again, nothing held in memory that grows with the file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings

from geomcli import jsonl, trace_files
from geomcli.errors import StoreError, TraceError
from geomcli.store import Store
from geomcli.trace import Trace
from geomcli.trace_import import Imported, checked, import_traces
from tests.library.made_traces import LOCAL, LONG, MID, entry, records, traces


def made(trace_id: str = "one", hists: Iterable[Any] = (LOCAL, MID), **more: Any) -> list[dict[str, Any]]:
    made = records([entry(n, f"t{n}", hist) for n, hist in enumerate(hists, 1)], trace_id=trace_id, **more)
    made[0]["created"] = 5
    return made


def imported(store: Store, text: str, *, skip: bool = False, **more: Any) -> list[Imported]:
    return import_traces(store, checked(text.splitlines(keepends=True), "x.jsonl", [], skip=skip), **more)


def exported(store: Store, trace_id: str) -> str:
    return jsonl.dump(store.records(trace_id))


def everything(store: Store) -> dict[str, int]:
    tables = ("traces", "messages", "tokens", "steps", "links", "segments", "trace_summaries", "messages_fts")
    return {table: store.rows(f"SELECT count(*) AS n FROM {table}")[0]["n"] for table in tables}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=traces())
def test_export_import_export_gives_the_same_bytes(tmp_path: Path, made: Trace) -> None:
    with Store(tmp_path / "a.db") as first, Store(tmp_path / "b.db") as second:
        made.header["trace_id"] = f"t{everything(first)['traces']}"
        trace_id = first.add(made.records())
        text = exported(first, trace_id)
        assert [trace.status for trace in imported(second, text)] == ["added"]
        assert exported(second, trace_id) == text
        assert first.rows("SELECT * FROM trace_summaries WHERE trace_id = ?", (trace_id,)) == second.rows(
            "SELECT * FROM trace_summaries WHERE trace_id = ?", (trace_id,)
        )


def test_unknown_fields_survive_wherever_they_are(tmp_path: Path) -> None:
    trace = [{**record, "from_a_newer_release": {"x": [1, None]}} for record in made()]
    trace[0]["version"] = "1.9"
    with Store(tmp_path / "a.db") as store:
        imported(store, jsonl.dump(trace))
        found = list(store.records("one"))
    assert all(record["from_a_newer_release"] == {"x": [1, None]} for record in found)
    assert found[0]["version"] == "1.9"


@pytest.mark.parametrize(
    "more",
    [
        {"layer_id": -1},
        {"attention": {"x": 2**64, "token_positions": [1]}},
        {"attention": {"deep": {"x": [-(2**70), 10**400]}}, "big": 2**64},
        {"fingerprint": [1.0000001, 0, 0, 1.0005] + [-0.0004] * 16},
        {"drift": 1e30, "ripple": -1e30, "entropy_bits": 2**53},
    ],
)
def test_odd_numbers_come_out_as_they_went_in(tmp_path: Path, more: dict[str, Any]) -> None:
    trace = [{**r, **more} if r["record_type"] == "step" else r for r in made()]
    with Store(tmp_path / "a.db") as store, Store(tmp_path / "b.db") as second:
        imported(store, jsonl.dump(trace))
        assert list(store.records("one")) == trace
        imported(second, exported(store, "one"))
        assert exported(second, "one") == exported(store, "one")


def test_several_traces_go_behind_those_that_are_there(tmp_path: Path) -> None:
    raw = {"mode": "raw", "token_positions": [0], "topk_logits": [1.5], "logsumexp_candidates": 2.0}
    one = records([entry(1, "a", LOCAL, **raw), entry(2, "b", MID, **raw)], trace_id="one")
    two = records([entry(1, "c", LONG, **raw)], trace_id="two")
    three = records([entry(1, "d", MID, **{**raw, "token_positions": [7]})], trace_id="three")
    with Store(tmp_path / "a.db") as store:
        store.add(one)
        assert imported(store, jsonl.dump(two) + "\n" + jsonl.dump(three)) == [
            Imported("two", "two", "added"),
            Imported("three", "three", "added"),
        ]
        for trace_id, wanted in (("one", one), ("two", two), ("three", three)):
            assert list(Trace(store.records(trace_id)).steps) == Trace(wanted).steps
        assert not store.rows("PRAGMA foreign_key_check")
        assert store.rows("SELECT count(*) AS n FROM messages_fts WHERE messages_fts MATCH 'hello'")[0]["n"] == 3


def test_a_trace_that_is_there(tmp_path: Path) -> None:
    other = made(hists=(LONG, LONG, LONG))
    with Store(tmp_path / "a.db") as store:
        text = jsonl.dump(made())
        imported(store, text)
        before = exported(store, "one")
        assert imported(store, text) == [Imported("one", "one", "identical")]
        with pytest.raises(TraceError, match="another trace 'one' is in the store already") as caught:
            imported(store, jsonl.dump(made("two")) + jsonl.dump(other))
        assert "--replace" in str(caught.value)
        assert "--as-new" in str(caught.value)
        assert exported(store, "one") == before
        assert everything(store)["traces"] == 1

        (new,) = imported(store, jsonl.dump(other), duplicates="as-new")
        assert (new.original, new.status) == ("one", "as-new")
        assert exported(store, "one") == before
        assert list(store.records(new.trace_id)) == [{**other[0], "trace_id": new.trace_id}, *other[1:]]

        assert imported(store, jsonl.dump(other), duplicates="replace") == [Imported("one", "one", "replaced")]
        assert list(store.records("one")) == other
        assert everything(store)["traces"] == 2
        assert not store.rows("PRAGMA foreign_key_check")


HEADER = '{"record_type":"header","version":"1.0","trace_id":"t","model":"m"}'
TOKEN = '{"record_type":"token","index":0}'
STEP = '{"record_type":"step","tokenIndex":0}'
METRICS = '{"record_type":"metrics"}'


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "holds no trace"),
        ([TOKEN], "a trace begins with its header"),
        ([HEADER.replace("1.0", "2.0")], "trace format 2.0; this geom reads 1.x"),
        ([HEADER, "{"], "line 2: Input data was truncated"),
        ([HEADER, '{"record_type":"pic"}'], "no kind of record is called 'pic'"),
        ([HEADER, '{"record_type":"token","index":0,"tokenId":9223372036854775808}'], "line 2"),
        ([HEADER, TOKEN, TOKEN], "line 3: token 0 is there twice"),
        ([HEADER, TOKEN.replace("0", "2")], "token 2 comes where 0 should"),
        ([HEADER, STEP, TOKEN], "line 2: a step of token 0, which is not in front of it"),
        ([HEADER, TOKEN, STEP, STEP[:-1] + ',"layer_id":-1}'], "a second step of token 0 for the same layer"),
        ([HEADER, TOKEN, STEP, STEP], "a second step of token 0 for the same layer"),
        ([HEADER, TOKEN, TOKEN.replace("0", "1"), STEP.replace("0", "1"), STEP], "a step of token 0 behind one of"),
        ([HEADER, METRICS, METRICS], "a second `metrics`"),
        ([HEADER, TOKEN, HEADER], "'t' comes twice"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_gets_in(tmp_path: Path, lines: list[str], said: str) -> None:
    good = jsonl.dump(made("good"))
    with Store(tmp_path / "a.db") as store:
        store.add(made("old"))
        before = everything(store)
        with pytest.raises(TraceError, match=said):
            import_traces(store, (r for text in (good, "\n".join([*lines, ""])) for r in _checked(text)))
        assert everything(store) == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".import")] == []


def _checked(text: str) -> Iterable[dict[str, Any]]:
    return checked(text.splitlines(keepends=True), "x.jsonl", [])


def test_a_file_that_was_cut_off_says_so_and_can_be_rescued(tmp_path: Path) -> None:
    text = jsonl.dump(made())
    cut = text[: text.index('"tokenIndex":1') + 20]
    with Store(tmp_path / "a.db") as store:
        with pytest.raises(TraceError, match="ends in the middle of line 6: it was cut off; nothing was imported") as e:
            imported(store, cut)
        assert "--skip-broken" in str(e.value)
        broken: list[jsonl.Broken] = []
        records = checked(cut.splitlines(keepends=True), "x.jsonl", broken, skip=True)
        assert [trace.status for trace in import_traces(store, records)] == ["added"]
        assert [line.number for line in broken] == [6]
        assert len(Trace(store.records("one")).steps) == 1
        assert store.rows("SELECT complete FROM traces")[0]["complete"] == 0


def test_a_store_that_fails_in_the_middle_keeps_what_it_had(tmp_path: Path) -> None:
    with Store(tmp_path / "a.db") as store:
        store.add(made("old"))
        before = everything(store)
        full = "CREATE TRIGGER full BEFORE INSERT ON segments BEGIN SELECT raise(ABORT, 'disk'); END"
        store._connection.execute(full)
        with pytest.raises(StoreError, match="disk; nothing was imported"):
            imported(store, jsonl.dump(made("two")))
        assert everything(store) == before
        store._connection.execute("DROP TRIGGER full")
        assert imported(store, jsonl.dump(made("two")))[0].status == "added"


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Thirty times the steps in little more: a reader that kept the records would need megabytes."""
    import tracemalloc

    def peak(steps: int) -> int:
        def lines() -> Iterable[str]:
            yield HEADER.replace('"t"', f'"t{steps}"') + "\n"
            for n in range(steps):
                yield TOKEN.replace("0", str(n)) + "\n"
                step = entry(n + 1, "x", LOCAL)
                yield json.dumps({"record_type": "step", "tokenIndex": n, **step}) + "\n"

        with Store(tmp_path / "a.db") as store:
            tracemalloc.start()
            import_traces(store, checked(lines(), "x", []))
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        return most

    small, large = peak(100), peak(3000)
    assert large < small + 1.5e6


def test_compressed_files(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.zst"
    text = jsonl.dump(made()).encode()
    with trace_files.replaced(path) as stream:
        stream.write(text)
    assert zstandard.ZstdDecompressor().stream_reader(path.read_bytes()).read() == text

    def read(name: Path) -> bytes:
        with trace_files.opened(str(name)) as stream:
            return b"".join(trace_files.lines(stream, name.name))

    assert read(path) == text
    plain = tmp_path / "plain.jsonl"
    plain.write_bytes(text)
    assert read(plain) == text
    two = tmp_path / "two.zst"
    two.write_bytes(path.read_bytes() * 2)
    assert read(two) == text * 2
    damaged = tmp_path / "damaged.zst"
    damaged.write_bytes(path.read_bytes()[:40] + b"XXXX" + path.read_bytes()[44:])
    with pytest.raises(TraceError, match=r"damaged.zst cannot be decompressed"):
        read(damaged)


def test_a_line_without_an_end_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_files, "LONGEST_LINE", 1000)
    path = tmp_path / "x"
    path.write_bytes(HEADER.encode() + b"\n" + b"x" * 5000)
    with trace_files.opened(str(path)) as stream, pytest.raises(TraceError, match="x, line 2 is longer than"):
        list(trace_files.lines(stream, "x"))


def test_devices_and_links_stay_what_they_are(tmp_path: Path) -> None:
    with trace_files.replaced(Path("/dev/null")) as stream:
        stream.write(b"x")
    assert Path("/dev/null").is_char_device()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with trace_files.replaced(tmp_path / "link") as stream:
        stream.write(b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"x"


def test_a_file_is_there_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("old")

    def fail() -> None:
        with trace_files.replaced(path) as stream:
            stream.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
