"""Processor time of one update of each pane while an answer grows: five tokens a flush, drawn on 120 x 36.

    python -P benchmarks/tui_update.py [--tokens 4000] [--updates 60]

Prints milliseconds of the process for an update (median, and the fastest) and for a step of the cursor, without those
that waiting for the app to be idle takes when nothing is to be drawn. The machine's other load makes them longer.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ["TEXTUAL_ANIMATIONS"] = "none"

from geomcli import config, jsonl
from geomcli.schema import Record
from geomcli.tui import panes
from geomcli.tui.app import DEMO_FILE, GeomApp


def growing(demo: list[Record]) -> Iterator[list[Record]]:
    """The token and step records of an answer that never ends, made of the recorded one."""
    tokens = [record for record in demo if record["record_type"] == "token"]
    steps = [record for record in demo if record["record_type"] == "step"]
    index = 0
    while True:
        n = index % len(tokens)
        yield [{**tokens[n], "index": index}, {**steps[n], "tokenIndex": index, "decode_step": index + 1}]
        index += 1


async def measure(mode: str, tokens: int, updates: int, folder: str) -> tuple[list[float], list[float]]:
    """Milliseconds of every update, and of every step of the cursor."""
    demo = jsonl.load(DEMO_FILE)[0]
    app = GeomApp(config.Settings(base_url="http://127.0.0.1:9", db=f"{folder}/traces.db"), mode=mode)
    async with app.run_test(size=(120, 36)) as pilot:

        async def cost(action: Callable[[], Any]) -> float:
            began = time.process_time()
            action()
            app.flush()
            await pilot.pause()
            return (time.process_time() - began) * 1e3

        turn, more = app.session.begin(), growing(demo)
        app.session.feed(turn, demo[:2])
        app.session.feed(turn, [record for _ in range(tokens) for record in next(more)])
        await pilot.pause(0.5)
        grown = [
            await cost(lambda: app.session.feed(turn, [r for _ in range(5) for r in next(more)]))
            for _ in range(updates)
        ]
        moved = [await cost(lambda: app.session.move(-1)) for _ in range(updates)]
        idle = statistics.median([await cost(lambda: None) for _ in range(updates)])
    return [spent - idle for spent in grown], [spent - idle for spent in moved]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--updates", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_STATE_HOME"] = folder
        for _, mode in panes.offered():
            grown, moved = asyncio.run(measure(mode, options.tokens, options.updates, folder))
            print(
                f"{mode:<9} {options.tokens} tokens: update {statistics.median(grown):.1f} ms, "
                f"fastest {min(grown):.1f}; cursor {statistics.median(moved):.1f} ms"
            )


if __name__ == "__main__":
    main()
