"""Traces as files: what was written is read, what is broken is named, what is newer is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given

from geomcli import jsonl
from geomcli.errors import TraceError
from geomcli.trace import Trace
from tests.library.made_traces import LOCAL, entry, in_blocks, records, traces

HEADER = '{"record_type":"header","version":"1.0","trace_id":"t","model":"m"}'


def step_of(number: float) -> str:
    return json.dumps({"record_type": "step", "tokenIndex": 0, "fingerprint": [0.0] * 19 + [number]})


@given(traces())
def test_what_was_written_is_read(trace: Trace) -> None:
    written = list(trace.records())
    reading = jsonl.read(jsonl.dump(written).splitlines())
    assert reading == ([written], [])


def test_fields_of_a_newer_release_survive() -> None:
    made = records([entry(1, "a", LOCAL, from_a_newer_server={"x": [1]})])
    made[0]["more"] = True
    assert jsonl.read(jsonl.dump(made).splitlines()).traces == [made]


def test_several_traces_in_one_file() -> None:
    two = [records([entry(1, "a")], trace_id=name) for name in ("one", "two")]
    reading = jsonl.read((jsonl.dump(two[0]) + "\n" + jsonl.dump(two[1])).splitlines())
    assert reading.traces == two


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: Input data was truncated"),
        ("[]", "line 2: Expected `object`"),
        ("{}", "it has no `record_type`"),
        ('{"record_type": []}', "no kind of record"),
        ('{"record_type": "picture"}', "'picture'"),
        ('{"record_type": "token"}', "missing required field `index`"),
        ('{"record_type": "token", "index": -1}', "`int` >= 0"),
        ('{"record_type": "step", "tokenIndex": 0, "fingerprint": [1]}', "length >= 20"),
        ('{"record_type": "step", "tokenIndex": 0, "drift": "x"}', "`$.drift`"),
        ('{"record_type": "step", "tokenIndex": 0, "drift": 1e308}', "`float` <= 1e+30 - at `$.drift`"),
        ('{"record_type": "step", "tokenIndex": 0, "entropy_bits": -1e39}', "`$.entropy_bits`"),
        ('{"record_type": "step", "tokenIndex": 0, "sink_mass": 18446744073709551616}', "`$.sink_mass`"),
        (step_of(1e308), "`float` <= 1.001 - at `$.fingerprint[19]`"),
        (step_of(1e39), "`$.fingerprint[19]`"),
        (step_of(-1), "`float` >= -0.001 - at `$.fingerprint[19]`"),
        ('{"record_type": "metrics", "avgEntropy": {}}', "`$.avgEntropy`"),
        ('{"record_type": "metrics", "dominantZone": []}', "`$.dominantZone`"),
        ('{"record_type": "metrics", "maxDrift": 1e31}', "`$.maxDrift`"),
        ('{"record_type": "message", "role": "user", "content": "", "id": {}}', "`$.id`"),
        (b"\xff", "line 2"),
        ("[" * 100_000, "line 2"),
    ],
)
def test_a_broken_line_is_named_and_the_rest_is_read(line: str | bytes, said: str) -> None:
    reading = jsonl.read([HEADER, line, '{"record_type": "token", "index": 0, "text": "a"}'], "x.jsonl")
    assert [r["record_type"] for r in reading.traces[0]] == ["header", "token"]
    assert len(reading.problems) == 1
    assert said in reading.problems[0]
    assert reading.problems[0].startswith("x.jsonl, line 2")


def test_many_broken_lines_are_counted() -> None:
    problems = jsonl.read([HEADER, *["{"] * 50]).problems
    assert len(problems) == 21
    assert problems[-1] == "the input: 30 more lines could not be read."


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "holds no trace"),
        (["{"], "holds no trace: the input, line 1"),
        (['{"record_type": "token", "index": 0}'], "line 1: a trace begins with its header"),
        ([HEADER.replace("1.0", "2.0")], "trace format 2.0; this geom reads 1.x"),
    ],
)
def test_what_is_no_trace_is_refused(lines: list[str], said: str) -> None:
    with pytest.raises(TraceError, match=said):
        jsonl.read(lines)


def test_a_newer_minor_format_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(HEADER.replace("1.0", "1.7") + "\n", encoding="utf-8")
    assert jsonl.read_file(path).traces == [[json.loads(HEADER.replace("1.0", "1.7"))]]


TOKEN = '{"record_type": "token", "index": 0, "text": "a"}'


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([HEADER, "{", TOKEN], "line 2: not a record of a trace"),
        ([TOKEN], "line 1: a trace begins with its header"),
        ([HEADER, TOKEN.replace("0", "1")], "line 2: token 0 is missing"),
        ([HEADER.replace("1.0", "2.0")], "trace format 2.0"),
        ([""], "holds no trace"),
        (["[" * 100_000], "line 1: not a record"),
    ],
)
def test_the_strict_reader_names_the_first_line_that_does_not_fit(tmp_path: Path, lines: list[str], said: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(TraceError, match=said):
        jsonl.load(path)


def test_a_last_line_that_was_being_written_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join([HEADER, TOKEN, TOKEN[:20]]))
    assert jsonl.load(path) == [[json.loads(HEADER), json.loads(TOKEN)]]


def test_readers_keep_what_a_compressed_file_has_that_ends_early(tmp_path: Path) -> None:
    made = records([entry(n, "a", LOCAL) for n in range(1, 60)])
    packed = in_blocks(jsonl.dump(made).encode())
    path = tmp_path / "x.zst"
    path.write_bytes(packed[: len(packed) // 2])
    (kept,) = jsonl.load(path)
    reading = jsonl.read_file(path)
    assert reading.traces == [kept]
    assert kept == made[: len(kept)]
    assert 10 < len(kept) < len(made)
    assert len(reading.problems) == 1
    assert reading.problems[0].endswith("ends early: it was cut off.")


def test_both_readers_read_what_was_written(tmp_path: Path) -> None:
    made = records([entry(1, "a", LOCAL), entry(2, "b", LOCAL)])
    path = tmp_path / "x.jsonl"
    path.write_text(jsonl.dump(made))
    assert jsonl.load(path) == jsonl.read_file(path).traces == [made]
