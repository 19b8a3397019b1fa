"""Import: all or nothing, the same bytes again, nothing held in memory that grows with the file."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings

from geomcli import jsonl, trace_files
from geomcli.errors import StoreError, TraceError
from geomcli.importers import records_of
from geomcli.store import Store
from geomcli.trace import Trace
from geomcli.trace_import import Imported, checked, import_traces
from tests.library.made_traces import LOCAL, LONG, MID, entry, in_blocks, records, traces


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


def lost(text: str, number: int) -> str:
    """The text with a line that is no record in the place of line `number`."""
    lines = text.splitlines(keepends=True)
    return "".join([*lines[: number - 1], lines[number - 1][:-20] + "\n", *lines[number:]])


# Of a trace made here: header, message, token 0, its step, token 1, its step, the answer, a segment, metrics.
@pytest.mark.parametrize(
    ("number", "why"),
    [
        (2, ""),
        (3, "in line 4, a step of token 0, which is not in front of it"),
        (4, ""),
        (5, "in line 6, a step of token 1, which is not in front of it"),
        (8, ""),
        (9, ""),
        (10, "in line 11, a record behind the end of its trace"),
        (12, "in line 13, a step of token 0, which is not in front of it"),
        (18, ""),
    ],
)
def test_lines_are_left_out_where_the_rest_is_whole_without_them(tmp_path: Path, number: int, why: str) -> None:
    text = lost(jsonl.dump(made()) + jsonl.dump(made("two")), number)
    with Store(tmp_path / "a.db") as store:
        with pytest.raises(TraceError, match=rf"line {number}: .*; nothing was imported") as refused:
            imported(store, text)
        if not why:
            assert refused.value.mend == "geom traces import --skip-broken x.jsonl"
            assert len(imported(store, text, skip=True)) == 2
            return
        assert refused.value.message.endswith(f"It cannot be left out: {why}.")
        with pytest.raises(TraceError, match=f"as line {number} was no record; nothing was imported") as skipped:
            imported(store, text, skip=True)
        assert refused.value.mend == skipped.value.mend == f"head -n {number - 1} x.jsonl | geom traces import -"
        front = "".join(text.splitlines(keepends=True)[: number - 1])
        assert imported(store, front)[0].status == "added"


def test_what_is_in_front_of_a_contradiction_can_be_taken(tmp_path: Path) -> None:
    text = jsonl.dump(made()) + TOKEN + "\n"
    for name, mend in (
        ("stdin", "… | head -n 9 | geom traces import -"),
        ("a b.jsonl", "head -n 9 'a b.jsonl' | geom traces import -"),
        ("x.zst", "zstd -dc x.zst | head -n 9 | geom traces import -"),
    ):
        with pytest.raises(TraceError, match="token 0 is there twice") as refused:
            list(checked(text.splitlines(keepends=True), name, []))
        assert refused.value.mend == mend
    twice = lost(text, 4).splitlines(keepends=True)
    with pytest.raises(TraceError) as again:
        list(checked(lost("".join([*twice, *jsonl.dump(made("b")).splitlines(True)]), 13).splitlines(True), "x", [],
                     skip=True))  # fmt: skip
    assert again.value.mend == "head -n 3 x | geom traces import -"


def test_a_trace_without_its_end_is_said_to_be_one(tmp_path: Path) -> None:
    """A file that was cut off at the end of a line looks whole, line by line."""
    whole = jsonl.dump(made()).splitlines(keepends=True)
    for cut, ended in ((len(whole), True), (6, False), (1, False)):
        notes: list[str] = []
        text = "".join(whole[:cut]) + jsonl.dump(made("two"))
        with Store(tmp_path / f"{cut}.db") as store:
            done = import_traces(store, checked(text.splitlines(keepends=True), "x.jsonl", [], notes=notes))
            assert [trace.status for trace in done] == ["added", "added"]
        assert notes == (
            [] if ended else ["x.jsonl: trace 'one' has no end: it was cut off, or is still being written."]
        )


def test_records_that_are_nested_deeply_are_kept_or_refused(tmp_path: Path) -> None:
    """Up to Python's limit, which nothing behind the reading may meet earlier."""
    refused = 0
    with Store(tmp_path / "a.db") as store:
        for depth in range(860, 960):
            step = STEP[:-1] + ',"attention":{"x":' + "[" * depth + "]" * depth + "}}"
            try:
                text = "\n".join([HEADER.replace('"t"', f'"{depth}"'), TOKEN, step, METRICS, ""])
                imported(store, text)
                assert imported(store, text)[0].status == "identical"
                assert "[" * depth in exported(store, str(depth))
            except TraceError as error:
                assert error.mend  # noqa: PT017
                refused += 1
    assert 0 < refused < 100


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
    bomb = tmp_path / "bomb.zst"
    bomb.write_bytes(zstandard.ZstdCompressor().compress(bytes(trace_files.LONGEST_LINE + 1)))
    with pytest.raises(TraceError, match="line 1 is longer than 64 MB"):
        read(bomb)
    damaged = tmp_path / "damaged.zst"
    whole = path.read_bytes()
    # The last four bytes are the checksum of the text: damage that decompresses to something is seen, too.
    damaged.write_bytes(whole[:-4] + bytes(255 - byte for byte in whole[-4:]))
    with pytest.raises(TraceError, match=r"damaged.zst cannot be decompressed"):
        read(damaged)


@pytest.mark.parametrize(("kept", "rescued"), [(5, False), (30, False), (0.3, True), (0.9, True), (-1, True)])
def test_a_compressed_file_that_ends_early_says_so(tmp_path: Path, kept: float, rescued: bool) -> None:
    text = jsonl.dump(made(hists=[LOCAL, MID] * 50)).encode()
    packed = in_blocks(text)
    path = tmp_path / "x.zst"
    path.write_bytes(packed[: int(kept * len(packed)) if isinstance(kept, float) else kept])
    with Store(tmp_path / "a.db") as store:
        with pytest.raises(TraceError, match=r"the compressed file .*x\.zst ends early: it was cut off") as refused:
            import_traces(store, records_of(str(path), []))
        assert refused.value.mend == (
            f"geom traces import --skip-broken {path}" if rescued else "copy it again from where it was written"
        )
        if rescued:
            broken: list[jsonl.Broken] = []
            import_traces(store, records_of(str(path), broken, skip=True))
            found = list(store.records("one"))
            assert found == [json.loads(line) for line in text.splitlines()][: len(found)]
            assert len(found) > 40
            assert [line.early for line in broken] == [True]
    two = tmp_path / "two.zst"
    two.write_bytes(zstandard.ZstdCompressor().compress(text) + packed[:-1])
    with trace_files.opened(str(two)) as stream, pytest.raises(TraceError, match="ends early"):
        list(trace_files.lines(stream, "two.zst"))


@pytest.mark.parametrize("compressed", [False, True])
def test_encodings(tmp_path: Path, compressed: bool) -> None:
    text = jsonl.dump(made())

    def write(name: str, data: bytes) -> str:
        path = tmp_path / (name + ".zst" * compressed)
        path.write_bytes(zstandard.ZstdCompressor().compress(data) if compressed else data)
        return str(path)

    name = write("marked", b"\xef\xbb\xbf" + text.encode())
    assert jsonl.dump(records_of(name, [])) == text
    assert jsonl.read_file(Path(name)).problems == []
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        with pytest.raises(TraceError, match="is in UTF-16") as refused:
            list(records_of(write("wide", text.encode(encoding)), []))
        assert "iconv -f UTF-16" in str(refused.value)
    with pytest.raises(TraceError, match="is compressed with gzip") as zipped:
        list(records_of(write("zipped", gzip.compress(text.encode())), []))
    assert "gunzip -c" in str(zipped.value)


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    for name, mend in ((tmp_path / "none.jsonl", f"ls {tmp_path}"), (tmp_path, f"geom traces import {tmp_path}/*")):
        for kind in ("auto", "hf"):
            with pytest.raises(TraceError, match=str(name)) as refused:
                list(records_of(str(name), [], kind=kind))  # type: ignore[arg-type]
            assert refused.value.mend == mend


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
