"""Files and stdin as compare, report and spans read them: what is damaged is refused or said, never mixed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import zstandard
from safetensors.numpy import save_file

from geomcli import jsonl
from geomcli.tui.app import DEMO_FILE
from tests.conftest import GEOM

READERS = {
    "compare": ("compare", "FILE", "one.jsonl"),
    "spans": ("spans", "FILE"),
    "report": ("report", "FILE", "-o", "-"),
}


@pytest.fixture
def traces(tmp_path: Path) -> list[bytes]:
    """The two of the demo; the first is one.jsonl, too."""
    made = [jsonl.dump(records).encode() for records in jsonl.read_file(DEMO_FILE).traces]
    (tmp_path / "one.jsonl").write_bytes(made[0])
    return made


def geom(
    *arguments: object, env: dict[str, str], cwd: Path, stdin: bytes | None = None
) -> subprocess.CompletedProcess[str]:
    source: dict[str, object] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    command = [str(GEOM), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, env=env, cwd=cwd, timeout=60, **source)  # type: ignore[call-overload]
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


def reading(command: str, name: str) -> list[str]:
    return [name if word == "FILE" else word for word in READERS[command]]


@pytest.mark.parametrize("command", READERS)
def test_a_lost_header_does_not_join_two_traces(
    home: dict[str, str], tmp_path: Path, traces: list[bytes], command: str
) -> None:
    first = traces[0].count(b"\n")
    header, rest = traces[1].split(b"\n", 1)
    (tmp_path / "two.jsonl").write_bytes(traces[0] + header[:40] + b"\n" + rest)
    done = geom(*reading(command, "two.jsonl"), env=home, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"token 0 is there twice; line {first + 1} could not be read" in done.stderr
    assert "try:" in done.stderr


@pytest.mark.parametrize("damage", ["hole", "twice"])
@pytest.mark.parametrize("command", READERS)
def test_a_hole_and_a_token_twice_are_refused(
    home: dict[str, str], tmp_path: Path, traces: list[bytes], command: str, damage: str
) -> None:
    lines = traces[0].splitlines(keepends=True)
    third = next(n for n, line in enumerate(lines) if b'"record_type":"token","index":3,' in line)
    if damage == "hole":
        lines[third : third + 2] = [b"{\n"]
    else:
        lines.insert(third, lines[third])
    (tmp_path / "odd.jsonl").write_bytes(b"".join(lines))
    done = geom(*reading(command, "odd.jsonl"), env=home, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    said = {"hole": "token 4 comes where 3 should", "twice": "token 3 is there twice"}[damage]
    assert f"odd.jsonl, line {third + 2}: {said}" in done.stderr


@pytest.mark.parametrize("command", READERS)
def test_a_last_line_that_is_being_written_is_said(
    home: dict[str, str], tmp_path: Path, traces: list[bytes], command: str
) -> None:
    cut = traces[0][: len(traces[0]) // 2]
    (tmp_path / "cut.jsonl").write_bytes(cut)
    for name, stdin in (("cut.jsonl", None), ("-", cut)):
        done = geom(*reading(command, name), env=home, cwd=tmp_path, stdin=stdin)
        assert done.returncode == 0, done.stderr
        number = cut.count(b"\n") + 1
        shown = "stdin" if stdin else name
        assert f"{shown} ends in the middle of line {number}: it was cut off, or is still being written" in done.stderr


def test_no_verdict_on_what_was_read_in_part(home: dict[str, str], tmp_path: Path, traces: list[bytes]) -> None:
    (tmp_path / "cut.jsonl").write_bytes(traces[0][: len(traces[0]) // 2])
    (tmp_path / "odd.jsonl").write_bytes(traces[0] + b"{\n")
    for name, said in (("cut.jsonl", "ends in the middle of line"), ("odd.jsonl", "could not be read")):
        for sides in ((name, "one.jsonl"), ("one.jsonl", name)):
            done = geom("compare", *sides, "--fail-under", "0", env=home, cwd=tmp_path)
            assert (done.returncode, done.stdout) == (1, "")
            assert said in done.stderr
            assert "there is no verdict for --fail-under" in done.stderr
    assert geom("compare", "one.jsonl", "one.jsonl", "--fail-under", "1", env=home, cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("command", READERS)
def test_stdin_is_read_as_files_are(home: dict[str, str], tmp_path: Path, traces: list[bytes], command: str) -> None:
    plain = geom(*reading(command, "one.jsonl"), env=home, cwd=tmp_path)
    packed = geom(*reading(command, "-"), env=home, cwd=tmp_path, stdin=zstandard.compress(traces[0]))
    assert (packed.returncode, packed.stdout) == (0, plain.stdout), packed.stderr
    endless = geom(*reading(command, "-"), env=home, cwd=tmp_path, stdin=traces[0] + b" " * (65 << 20))
    assert endless.returncode == 1
    assert "is longer than 64 MB" in endless.stderr


def test_traces_of_a_file_with_several_are_compared(home: dict[str, str], tmp_path: Path, traces: list[bytes]) -> None:
    numbers = ("--number-a", 1, "--number-b", 2)
    (tmp_path / "two.jsonl").write_bytes(traces[1])
    apart = geom("compare", "one.jsonl", "two.jsonl", "--json", env=home, cwd=tmp_path)
    done = geom("compare", DEMO_FILE, DEMO_FILE, *numbers, "--json", env=home, cwd=tmp_path)
    assert json.loads(done.stdout) == json.loads(apart.stdout)


def test_a_dump_of_attention_is_imported_first(home: dict[str, str], tmp_path: Path) -> None:
    meta = json.dumps({"prompt_len": 2})
    np.savez(tmp_path / "dump.npz", meta=np.array(meta), attentions=np.full((1, 1, 3, 3), np.tril(np.ones(3)) / 3))
    save_file({"attentions.0": np.eye(3)[None]}, tmp_path / "dump.safetensors", metadata={"meta": meta})
    for command in (*READERS, "tui"):
        for name in ("dump.npz", "dump.safetensors"):
            words = ["tui", name] if command == "tui" else reading(command, name)
            done = geom(*words, env=home, cwd=tmp_path)
            assert (done.returncode, done.stdout) == (1, "")
            assert "a dump of attention has to be imported first" in " ".join(done.stderr.split())
            assert f"try: geom traces import {name}, then with the id" in done.stderr
    absent = geom("report", "absent.npz", env=home, cwd=tmp_path)
    assert "absent.npz: No such file" in absent.stderr


def test_each_refusal_says_what_mends_it(home: dict[str, str], tmp_path: Path, traces: list[bytes]) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    for command in READERS:
        for name, said in (("no.jsonl", "no.jsonl: No such file"), ("folder.jsonl", "folder.jsonl: Is a directory")):
            done = geom(*reading(command, name), env=home, cwd=tmp_path)
            assert (done.returncode, done.stdout) == (1, "")
            assert said in done.stderr
            assert "try: the path of a file that is there, or a stored trace: geom traces ls" in done.stderr
    for arguments, code, said, mend in (
        (("compare", DEMO_FILE, "one.jsonl"), 1, "holds 2 traces", "try: --number-a 1, or any up to 2"),
        (("compare", "one.jsonl", DEMO_FILE), 1, "holds 2 traces", "try: --number-b 1, or any up to 2"),
        (("compare", "one.jsonl", DEMO_FILE, "--number-b", 3), 2, "holds 2 traces, not 3", "try: --number-b 1, or any"),
        (("spans", "one.jsonl", "--number", 2), 2, "holds 1 trace, not 2", "try: --number 1"),
        (("report", DEMO_FILE), 1, "holds 2 traces", "try: --number 1, or any up to 2"),
        (("spans", "one.jsonl", "--source", "a=1:9", "--source", "b=5:7"), 2, "overlap", "try: --source b="),
        (("report", "one.jsonl", "--source", "a=1:900"), 2, "must lie within", "try: --source a=1:89"),
    ):  # fmt: skip
        done = geom(*arguments, env=home, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert said in done.stderr
        assert mend in done.stderr
