"""What the Makefile would do, without doing it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Not the flags of the `make test` that this may run in.
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    return subprocess.run(
        ["make", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=60, env=environment
    )


def test_the_demo_does_not_wait_for_a_pipe() -> None:
    lines = make("-n", "demo").stdout.splitlines()
    assert next(line for line in lines if "geom run --serve" in line).endswith("< /dev/null")


def test_another_release_of_sglang_is_installed_and_takes_the_stamp(tmp_path: Path) -> None:
    (tmp_path / "engine-0.5.20").touch()
    planned = make("-n", "install", f"VENV={tmp_path}", "SGLANG=0.5.23").stdout
    assert "sglang==0.5.23" in planned
    assert f"rm -f {tmp_path}/engine {tmp_path}/engine-*" in planned
    assert f"touch {tmp_path}/engine-0.5.23" in planned
    (tmp_path / "engine-0.5.23").touch()
    assert "sglang==" not in make("-n", "install", f"VENV={tmp_path}", "SGLANG=0.5.23").stdout


@pytest.mark.parametrize("python", ["false", "no-such-python"])
def test_a_python_that_does_not_fit_is_one_sentence(tmp_path: Path, python: str) -> None:
    done = make("install", f"VENV={tmp_path / 'venv'}", f"PYTHON={python}")
    assert done.returncode == 2
    assert f"geom: {python} is not Python 3.11 or 3.12. Try: make demo PYTHON=python3.12" in done.stderr
    assert not (tmp_path / "venv").exists()
