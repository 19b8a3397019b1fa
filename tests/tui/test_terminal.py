"""The explorer as a person uses it: in a terminal, with the engine that it starts itself."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from geomcli.store import Store
from geomcli.store_listing import list_traces
from geomcli.tui import panes
from tests.engine.harness import free_port
from tests.tui.terminal import alive, terminal

OTHERS = [(number, mode) for number, mode in panes.offered() if mode != "chat"]


@pytest.mark.engine
def test_from_no_server_to_an_answer_and_out_again(home: dict[str, str], tmp_path: Path) -> None:
    port = free_port()
    environment = {**home, "GEOM_BASE_URL": f"http://127.0.0.1:{port}", "GEOM_DB": str(tmp_path / "traces.db")}
    with terminal(tmp_path, ["tui"], environment) as seen:
        seen.wait(f"No server answers at 127.0.0.1:{port}", "E  start the built-in engine")
        seen.press("E")
        seen.wait("engine starts …", seconds=60)
        seen.wait("Press enter and ask something.", f"● smollm2 127.0.0.1:{port}", seconds=240)

        seen.press("Enter")
        seen.write("Name three colours.")
        seen.press("Enter")
        seen.wait("you   Name three colours.", "model ", " tok/s", "raw", seconds=60)
        _stored(tmp_path, 1)
        seen.press("Escape", "p")
        token = re.search(r"LENS #(\d+)", seen.wait("LENS #", "cover", "dropped 0"))
        assert token
        seen.wait(f" {token[1]} – –")

        for number, mode in OTHERS:
            seen.press(str(number), "F1")
            seen.wait(f"Keys in {mode.capitalize()}")
            seen.press("Escape")
            seen.wait("dropped 0")
        seen.press("1", "F1")
        seen.wait("Keys in Chat")
        seen.press("Escape")

        # A second answer beside the first.
        seen.press("C-n")
        seen.write("Name three animals.")
        seen.press("Enter")
        seen.wait("you   Name three animals.", " tok/s", seconds=60)
        _stored(tmp_path, 2)
        seen.press("Escape", "5", "a")
        seen.wait("Name three colours.", "Name three animals.", "enter chooses")
        seen.write("colours")
        seen.press("Enter")
        seen.wait("Name three colours.", "compared with")
        seen.press("b")
        seen.wait("enter chooses")
        seen.write("animals")
        seen.press("Enter")
        seen.wait("similarity", "DIFFERENCES", "Name three colours.", "Name three animals.")

        started = seen.processes()
        assert len(started) > 2
        seen.press("C-q")
        assert seen.ended(60) == 0, seen.screen()
        deadline = time.monotonic() + 20
        while alive(started) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert alive(started) == set()


def _stored(folder: Path, count: int) -> None:
    """Waits until so many whole answers are in the store."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with Store(folder / "traces.db") as store:
            rows = [row for row in list_traces(store) if row["complete"]]
        if len(rows) == count:
            assert all(row["tokens"] > 0 for row in rows)
            return
        time.sleep(0.5)
    raise AssertionError(f"there are not {count} answers in the store")


def test_the_terminal_is_left_as_it_was(home: dict[str, str], tmp_path: Path) -> None:
    with terminal(tmp_path, ["tui", "--demo"], home, columns=80, rows=24) as seen:
        seen.wait("1 Chat", "playing demo", "tok/s")
        seen.resize(120, 36)
        seen.wait("LENS", "tok/s")
        seen.resize(60, 12)
        seen.wait("Chat")
        seen.press("C-q")
        assert seen.ended() == 0, seen.screen()
        assert "Traceback" not in seen.screen()
        assert "1 Chat" not in seen.screen()


def test_a_terminal_that_is_closed_leaves_nothing_behind(home: dict[str, str], tmp_path: Path) -> None:
    with terminal(tmp_path, ["tui", "--demo"], home) as seen:
        seen.wait("playing demo", "tok/s")
        started = seen.processes()
        assert started
        seen.tmux("kill-server")
        deadline = time.monotonic() + 15
        while alive(started) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert alive(started) == set()
