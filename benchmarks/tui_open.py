"""A trace of 100,000 steps in `geom tui`: seconds until all of it is there, and how long keys wait meanwhile.

    python benchmarks/tui_open.py [--steps 100000] [--panes chat inspect …]

From a file and from the store, in an app without a terminal; seconds to the first screen, as a user sees it, are what
`benchmarks/tui_start.py -- tui FILE` prints. Lag: how late the event loop comes back from a sleep of 5 ms while the
trace is read.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import tempfile
import time
from pathlib import Path

from large_traces import made

from geomcli import config, jsonl
from geomcli.cli.tui import _opened
from geomcli.store import Store
from geomcli.trace_import import import_traces
from geomcli.tui.app import GeomApp

SIZE = (120, 36)
_TICK = 0.005


async def opened(settings: config.Settings, name: str, pane: str, steps: int) -> tuple[float, list[float]]:
    """(seconds until all steps are there and drawn, lags)."""
    lags: list[float] = []

    async def tick() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(_TICK)
            lags.append(time.perf_counter() - began - _TICK)

    began = time.perf_counter()
    app = GeomApp(settings, opened=[_opened(name, settings)], mode=pane)
    async with app.run_test(size=SIZE) as pilot:
        ticking = asyncio.create_task(tick())
        while not app.session.turns[0].finished or app.session.reading:
            await asyncio.sleep(0.02)
        ticking.cancel()
        await pilot.pause()
        assert len(app.session.turns[0].tokens) == steps
        return time.perf_counter() - began, sorted(lags)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--panes", nargs="*", default=["chat", "inspect", "router", "manifold"])
    arguments = parser.parse_args()
    os.environ["TEXTUAL_ANIMATIONS"] = "none"
    with tempfile.TemporaryDirectory() as folder:
        path, db = Path(folder) / "a.jsonl", Path(folder) / "traces.db"
        made(path, ["a"], arguments.steps, 1, links=False)
        with Store(db) as store:
            import_traces(store, jsonl.records(path))
        settings = config.Settings(base_url="http://127.0.0.1:9", db=str(db))
        print(f"{'':<10}{'from':>8}{'all there':>12}{'lag p50':>10}{'p99':>8}{'most':>8}  ms")
        for pane in arguments.panes:
            for name, source in ((str(path), "file"), ("a", "store")):
                seconds, lags = asyncio.run(opened(settings, name, pane, arguments.steps))
                numbers = (lags[len(lags) // 2], lags[int(len(lags) * 0.99)], lags[-1])
                shown = "".join(f"{n * 1000:>{w}.0f}" for n, w in zip(numbers, (10, 8, 8), strict=True))
                print(f"{pane:<10}{source:>8}{seconds:>10.1f} s{shown}", flush=True)
        print(f"memory at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
