"""An answer that is being written when the app is ended from outside: it is in the store, with why it broke off."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from geomcli.store import Store
from geomcli.store_listing import list_traces
from tests.tui.faulty import entry, event, serving
from tests.tui.terminal import Terminal, alive, terminal

SLOW = [event(f" word{n}", entry(n, f" word{n}")) for n in range(1, 400)]


@contextmanager
def writing() -> Iterator[str]:
    """The base URL of a server that writes ten tokens a second, in a thread of its own."""
    started, over, urls = threading.Event(), threading.Event(), []

    async def serve() -> None:
        async with serving(*SLOW, "[DONE]", pause=0.1) as server:
            urls.append(server.url)
            started.set()
            await asyncio.to_thread(over.wait)
            await server.die()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert started.wait(10)
        yield urls[0]
    finally:
        over.set()
        thread.join()


def term(seen: Terminal) -> None:
    """To the app alone: the only process of the terminal that is Python."""
    for pid in seen.processes():
        if Path(f"/proc/{pid}/exe").resolve().name.startswith("python"):
            os.kill(pid, signal.SIGTERM)


def close(seen: Terminal) -> None:
    seen.tmux("kill-server")


@pytest.mark.parametrize("end", [term, close], ids=["SIGTERM", "SIGHUP"])
def test_an_answer_in_flight_is_kept(home: dict[str, str], tmp_path: Path, end: Callable[[Terminal], None]) -> None:
    database = tmp_path / "traces.db"
    with writing() as url:
        environment = {**home, "GEOM_BASE_URL": url, "GEOM_DB": str(database)}
        with terminal(tmp_path, ["tui"], environment) as seen:
            seen.wait("● tiny")
            seen.press("Enter")
            seen.write("Hello")
            seen.press("Enter")
            seen.wait("word8")
            processes = seen.processes()
            end(seen)
            deadline = time.monotonic() + 15
            while alive(processes) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert alive(processes) == set()
    with Store(database) as store:
        (row,) = list_traces(store)
        records = list(store.records(row["id"]))
    assert row["complete"]
    assert row["tokens"] >= 8
    assert records[-1]["error"] == "interrupted"
