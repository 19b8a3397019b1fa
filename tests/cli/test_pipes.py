"""Readers that go away and streams that are closed: a quiet end with the command's own result, or a sentence."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from geomcli import jsonl
from geomcli.store import Store
from geomcli.tui.app import DEMO_FILE
from tests.conftest import GEOM


@pytest.fixture
def env(home: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """a.jsonl and b.jsonl in the folder, the same in the store."""
    with Store(tmp_path / "t.db") as store:
        for name, records in zip("ab", jsonl.read_file(DEMO_FILE).traces, strict=True):
            (tmp_path / f"{name}.jsonl").write_text(jsonl.dump(records), encoding="utf-8")
            store.add(records)
    return home | {"GEOM_DB": str(tmp_path / "t.db"), "GEOM": str(GEOM)}


def shell(line: str, env: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", line], capture_output=True, encoding="utf-8", env=env, cwd=cwd, timeout=60)


@pytest.mark.parametrize("pipe", ["|", "2>&1 |"])
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("compare a.jsonl b.jsonl", 0),
        ("compare a.jsonl b.jsonl --json", 0),
        ("compare a.jsonl b.jsonl --fail-under 1", 4),
        ("compare a.jsonl b.jsonl --fail-under 1 --json", 4),
        ("compare a.jsonl a.jsonl --fail-under 1", 0),
        ("spans a.jsonl", 0),
        ("spans a.jsonl --json", 0),
        ("report a.jsonl -o -", 0),
        ("traces ls", 0),
        ("traces ls -q", 0),
        ("traces show last", 0),
        ("traces export last", 0),
    ],
)
def test_a_reader_that_went_away(env: dict[str, str], tmp_path: Path, command: str, code: int, pipe: str) -> None:
    done = shell(f"{{ sleep 0.2; $GEOM {command}; echo $? >&3; }} 3>&2 {pipe} true", env, tmp_path)
    assert done.stderr.split() == [str(code)]


def test_streams_that_are_closed(env: dict[str, str], tmp_path: Path) -> None:
    for command, said in (
        ("compare - a.jsonl <&-", "stdin is closed"),
        ("traces export - <&-", "stdin or stdout is closed"),
        ("compare a.jsonl b.jsonl >&-", "stdin or stdout is closed"),
        ("compare a.jsonl b.jsonl --json >&-", "stdin or stdout is closed"),
        ("traces ls >&-", "stdin or stdout is closed"),
    ):
        done = shell(f"$GEOM {command}", env, tmp_path)
        assert (done.returncode, done.stdout) == (1, ""), command
        assert done.stderr.startswith(f"geom: {said}."), done.stderr
        assert "try:" in done.stderr
        assert len(done.stderr.splitlines()) == 2
    assert shell("$GEOM compare a.jsonl a.jsonl --fail-under 1 2>&-", env, tmp_path).returncode == 0
