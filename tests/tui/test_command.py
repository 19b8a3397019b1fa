"""`geom tui` as a command: what it refuses before it starts, with which exit code, and how it starts in a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from geomcli.tui.app import DEMO_FILE
from tests.conftest import GEOM

HEADER = '{"record_type":"header","version":"1.0","trace_id":"a","model":"m"}\n'


def geom(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [GEOM, *arguments], capture_output=True, text=True, env=env, timeout=60, stdin=subprocess.DEVNULL
    )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["tui"], 2, "geom tui needs a terminal"),
        (["tui", "--demo", "x.jsonl"], 2, "--demo plays a recording of its own"),
        (["tui", "a", "b", "c"], 2, "two traces can be compared, 3 were named"),
        (["tui", "--pane", "sky"], 2, "there is no pane 'sky'"),
        (["tui", "--theme", "neon"], 2, "there is no theme 'neon'"),
        (["tui", "nothing.jsonl"], 1, "nothing.jsonl: no such file or directory"),
        (["tui", "last"], 1, "no trace 'last'"),
        (["tui", "--base-url", "localhost"], 2, "must start with http"),
    ],
)
def test_what_cannot_start_says_why(home: dict[str, str], arguments: list[str], code: int, said: str) -> None:
    done = geom(*arguments, env=home)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "try: " in done.stderr or code == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no trace"),
        ("{}\n", "line 1: not a record of a trace"),
        ("nonsense\n", "line 1: not a record of a trace"),
        ('{"record_type":"token","index":0}\n', "line 1: a trace begins with its header"),
        (HEADER + '{"record_type":"token","index":3}\n', "line 2: token 0 is missing"),
        (
            HEADER + '{"record_type":"step","tokenIndex":0,"fingerprint":"x"}\n',
            "line 2: not a record of a trace",
        ),
    ],
)
def test_a_file_that_is_no_trace_is_a_sentence(home: dict[str, str], tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text(text)
    done = geom("tui", str(path), env=home)
    assert done.returncode == 1, done.stderr
    assert said in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_keys_that_clash_in_the_configuration_are_refused(home: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "geom.toml"
    path.write_text('[tui.keys]\n"token.pin" = "i"\n')
    done = geom("tui", env={**home, "GEOM_CONFIG": str(path)})
    assert done.returncode == 2
    assert '"lens.toggle" and "token.pin" are both on i' in done.stderr
    path.write_text("[tui]\ntheme = 3\n")
    done = geom("tui", env={**home, "GEOM_CONFIG": str(path)})
    assert done.returncode == 2
    assert "geom.toml" in done.stderr


def test_web_without_its_package_names_the_extra(home: dict[str, str]) -> None:
    script = (
        "import sys; sys.modules['textual_serve.server'] = None\n"
        "from geomcli.cli import main; sys.argv = ['geom', 'tui', '--web']; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=home, timeout=60)
    assert done.returncode == 2
    assert "pip install 'geomcli[web]'" in done.stderr


def test_the_demo_paints_in_a_real_terminal_and_gives_it_back(home: dict[str, str]) -> None:
    began, text = time.monotonic(), b""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(
            GEOM, [str(GEOM), "tui", "--demo"], {**home, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "36"}
        )
    painted: float | None = None
    with contextlib.suppress(OSError):  # the terminal is gone when the app has ended
        while time.monotonic() - began < 20:
            if select.select([terminal], [], [], 0.05)[0]:
                text += os.read(terminal, 65536)
            if painted is None and b"Chat" in text:
                painted = time.monotonic() - began
                os.write(terminal, b"\x11")
    status = os.waitpid(pid, 0)[1]
    assert painted is not None
    assert os.waitstatus_to_exitcode(status) == 0
    assert b"\x1b[?1049l" in text
    assert painted < 4  # seconds; a machine on which engines start meanwhile is slow


def test_the_first_paint_waits_for_no_client_no_store_and_no_plot(home: dict[str, str]) -> None:
    script = (
        "import sys\n"
        "from geomcli.cli import application; application(['tui'])\n"
        "from geomcli import config; from geomcli.tui import panes; from geomcli.tui.app import GeomApp\n"
        "GeomApp(config.load(), demo=True); panes.pane('chat')\n"
        "heavy = {'httpx', 'sqlite_utils', 'sqlite3', 'textual_plot', 'rich.markdown', 'zstandard', 'scipy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, env=home, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_demo_is_small_and_has_two_turns() -> None:
    assert DEMO_FILE.stat().st_size < 320_000
    assert DEMO_FILE.read_text().count('"record_type":"header"') == 2
