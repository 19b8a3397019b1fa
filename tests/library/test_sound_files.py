"""The quick reader: the same trace as the tolerant one where nothing is wrong, none where something may be."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import given, settings

from geomcli import jsonl, sound_files
from geomcli.comparison import compare, compare_sides
from geomcli.comparison_side import SideView
from geomcli.schema import Record
from geomcli.trace import Trace
from tests.conftest import GEOM
from tests.library.made_traces import LOCAL, LONG, entry, records, traces

SOUND = records([entry(1, " the", LOCAL), entry(2, " sky", LONG, layer_id=None), entry(3, " is")], trace_id="s")


def side(path: Path) -> SideView:
    sound = sound_files.read(path)
    assert sound is not None
    return SideView(sound.trace, "A", sound.tokens, sound.steps)


def lines(made: list[Record]) -> list[str]:
    return jsonl.dump(made).splitlines(keepends=True)


@settings(max_examples=60)
@given(traces(), traces())
def test_it_reads_what_the_tolerant_reader_reads(tmp_path_factory: pytest.TempPathFactory, x: Trace, y: Trace) -> None:
    path = tmp_path_factory.mktemp("sound") / "x.jsonl"
    path.write_text(jsonl.dump(x.records()))
    other = SideView(y, "B")
    assert msgspec.to_builtins(compare_sides(side(path), other)) == msgspec.to_builtins(compare(x, y))


def test_compressed_and_longer_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, packed = tmp_path / "a.jsonl", tmp_path / "a.jsonl.zst"
    plain.write_text(jsonl.dump(SOUND))
    packed.write_bytes(zstandard.compress(plain.read_bytes()))
    whole = side(plain)
    for size in (1, 7, 100, 1000):
        monkeypatch.setattr(sound_files, "_BLOCK", size)
        for path in (plain, packed):
            again = side(path)
            assert (again.texts, again.places, again.zones, again.layers) == (
                whole.texts,
                whole.places,
                whole.zones,
                whole.layers,
            )


def changed(number: int, **fields: Any) -> list[str]:
    made = lines(SOUND)
    made[number] = json.dumps({**json.loads(made[number]), **fields}) + "\n"
    return made


def kinds() -> list[str]:
    return [record["record_type"] for record in SOUND]


STEP, TOKEN, METRICS = kinds().index("step"), kinds().index("token"), kinds().index("metrics")

UNUSUAL = {
    "nothing": [],
    "no header": lines(SOUND)[1:],
    "two traces": lines(SOUND) * 2,
    "a newer version": changed(0, version="2.0"),
    "a token is missing": lines(SOUND)[:TOKEN] + lines(SOUND)[TOKEN + 2 :],
    "a token twice": lines(SOUND)[: TOKEN + 1] + lines(SOUND)[TOKEN:],
    "a step twice": lines(SOUND)[: STEP + 1] + lines(SOUND)[STEP:],
    "a step in front of its token": changed(STEP, tokenIndex=1),
    "a second metrics": [*lines(SOUND), lines(SOUND)[METRICS]],
    "a broken line": [*lines(SOUND)[:STEP], "{broken\n", *lines(SOUND)[STEP:]],
    "cut off": [*lines(SOUND)[:METRICS], lines(SOUND)[METRICS][:-20]],
    "a field of the wrong type": changed(STEP, zone=7),
    "a fingerprint of 19": changed(STEP, fingerprint=[0.0] * 19),
    "a kind that nobody knows": changed(STEP, record_type="steppe"),
    "a mark in front of it": ["\ufeff" + lines(SOUND)[0], *lines(SOUND)[1:]],
    "a blank line": [lines(SOUND)[0], "\n", *lines(SOUND)[1:]],
    "two records on a line": [lines(SOUND)[0].strip(), *lines(SOUND)[1:]],
    "a record on two lines": [lines(SOUND)[0].replace(",", ",\n", 1), *lines(SOUND)[1:]],
    "carriage returns alone": [line.replace("\n", "\r") for line in lines(SOUND)],
    "nested too deep to be written": [
        line.replace('"DEEP"', '{"a":' * 980 + "1" + "}" * 980) for line in changed(0, capture={"a": "DEEP"})
    ],
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_unusual_is_left_to_the_tolerant_reader(tmp_path: Path, name: str) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text("".join(UNUSUAL[name]))
    assert sound_files.read(path) is None


def test_damage_where_no_comparison_looks(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for number in range(len(SOUND)):
        made = [line.encode() for line in lines(SOUND)]
        made[number] = made[number].rstrip(b"}\n") + b',"note":"\xff"}\n'
        path.write_bytes(b"".join(made))
        assert sound_files.read(path) is None, number


PACKED = zstandard.ZstdCompressor(write_checksum=True).compress(jsonl.dump(SOUND).encode())


@pytest.mark.parametrize(
    "damaged", [PACKED[:-9], PACKED[:-1] + bytes([PACKED[-1] ^ 1]), PACKED + b"garbage", PACKED + bytes(50)]
)
def test_so_is_damaged_compression_which_is_named(tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(damaged)
    assert sound_files.read(path) is None
    done = subprocess.run([GEOM, "compare", path, path], capture_output=True, text=True)
    assert done.returncode in (0, 1)
    assert "Traceback" not in done.stderr
    assert "ends early" in done.stderr or "cannot be decompressed behind line" in done.stderr


def test_of_links_only_their_layers_are_kept(tmp_path: Path) -> None:
    layers = {"3": {"token_positions": list(range(64))}, "7": {"token_positions": list(range(64))}}
    made = records([entry(1, "a", LOCAL, layers=layers, moe={"3": {}}), entry(2, "b", LONG)], trace_id="s")
    path = tmp_path / "a.jsonl"
    path.write_text(jsonl.dump(made))
    sound = sound_files.read(path)
    assert sound is not None
    assert sound.steps[0].attention == {"layers": {"3": None, "7": None}}
    assert sound.steps[0].moe is None
    assert side(path).layers == SideView(Trace(made), "A").layers == (3, 7, 29)


def test_so_is_what_is_no_file(tmp_path: Path) -> None:
    assert sound_files.read(tmp_path / "none.jsonl") is None
    assert sound_files.read(tmp_path) is None


def test_a_line_longer_than_any_traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(jsonl.dump(SOUND))
    monkeypatch.setattr(sound_files, "_BLOCK", 16)
    monkeypatch.setattr(sound_files.trace_files, "LONGEST_LINE", 64)
    assert sound_files.read(path) is None
