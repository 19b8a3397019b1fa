"""The explorer under a long answer: 20,000 tokens over a real socket, as fast as they are drawn.

    python benchmarks/tui_soak.py [--tokens 20000] [--rate 400]

Prints the lag of the event loop, memory while the answer grows, and processor time of one update at several lengths.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from geomcli import config
from geomcli.tui.app import GeomApp
from geomcli.tui.live import State

SIZE = (120, 36)
_MOST_LAG_MS, _MOST_KB = 50, 8
_CAPABILITIES = {"supported": True, "modes": ["raw", "fingerprint"], "features": {"prompt_tokens": True}}
_WORDS = (" the", " photon", " is", " measured", ",", " and", " its", " state", " changes", ".\n")
_FINGERPRINT = [0.5, 0.5, 0.0, 0.25, 0.5, 0, 0, 0.5, *[0] * 12]
_ZONES = ("semantic_bridge", "syntax_floor", "long_range")


def event(step: int) -> dict[str, Any]:
    """One token with eight links, as SGLang with the plugin sends it."""
    word = _WORDS[step % len(_WORDS)]
    positions = sorted({max(0, step - back) for back in (0, 1, 2, 3, 9, 40, 200)} | {0})
    entry = {
        "decode_step": step, "token_id": step, "token": word, "prompt_len": 3, "flags": [], "mode": "raw",
        "heads": {"seen": 9, "total": 9}, "layer_id": 29, "fingerprint": _FINGERPRINT,
        "zone": _ZONES[step // 25 % 3], "zone_confidence": 0.2, "drift": step % 40 / 100, "compass": "OK", "bytes": 500,
        "token_positions": positions, "attention_scores": [1 / len(positions)] * len(positions),
        "topk_logits": [-2.0] * len(positions), "logsumexp_candidates": 0.0,
    }  # fmt: skip
    return {"choices": [{"index": 0, "delta": {"content": word}}], "attention_tokens": [entry]}


@contextlib.asynccontextmanager
async def serving(tokens: int, rate: float) -> AsyncIterator[str]:
    """URL of a server that answers with so many tokens, `rate` a second."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if "chat/completions" not in head:
            text = json.dumps(_CAPABILITIES if "capabilities" in head else {"data": [{"id": "soak"}]})
            writer.write(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
                f"Content-Length: {len(text)}\r\n\r\n{text}".encode()
            )
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
            began = time.monotonic()
            for step in range(1, tokens + 1):
                writer.write(f"data: {json.dumps(event(step))}\n\n".encode())
                if step % 8 == 0:
                    await writer.drain()
                    await asyncio.sleep(max(0.0, began + step / rate - time.monotonic()))
            end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
            writer.write(f"data: {json.dumps(end)}\n\ndata: [DONE]\n\n".encode())
        with contextlib.suppress(ConnectionError):
            await writer.drain()
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def resident() -> float:
    """Memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


class Lag:
    """How much later than asked for the event loop comes back, every 5 ms; `seconds` are all that were seen."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def watch(self) -> None:
        while True:
            asked = time.perf_counter()
            await asyncio.sleep(0.005)
            self.seconds.append(time.perf_counter() - asked - 0.005)

    def quantile(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def update_seconds(app: GeomApp, updates: int = 40) -> float:
    """Processor seconds of one update of the screen with five more tokens, at the length that the answer has."""
    from geomcli.tui.session import Changed

    session = app.session
    turn = session.turns[-1]
    first = len(turn.tokens)
    spent = 0.0
    for n in range(updates):
        records: list[dict[str, Any]] = []
        for index in range(first + 5 * n, first + 5 * n + 5):
            entry = event(index + 1)["attention_tokens"][0]
            records.append({"record_type": "token", "index": index, "text": entry["token"], "segmentId": "seg-main"})
            records.append({"record_type": "step", "tokenIndex": index, "attention": entry, **entry})
        began = time.process_time()
        session.feed(turn, records)
        app.flush()
        await asyncio.sleep(0)
        while app.screen._dirty_widgets or app.screen._repaint_required:
            await asyncio.sleep(0.001)
        spent += time.process_time() - began
    assert session.take_changes() in (Changed.NOTHING, Changed.CURSOR)
    return spent / updates


async def soak(tokens: int, rate: float, folder: Path) -> dict[str, Any]:
    """Run the whole answer through the app; the numbers that `main` prints."""
    async with serving(tokens, rate) as url:
        app = GeomApp(config.Settings(base_url=url, db=str(folder / "traces.db")))
        async with app.run_test(size=SIZE):
            while app.live.state is not State.READY:
                await asyncio.sleep(0.02)
            lag, memory = Lag(), [(0, resident())]
            watching = asyncio.create_task(lag.watch())
            began = time.monotonic()
            app.session.apply(max_tokens=tokens)
            asking = asyncio.create_task(app.live.ask("Go on for long."))
            while not asking.done():
                await asyncio.sleep(0.25)
                shown = len(app.session.turns[-1].tokens) if app.session.turns else 0
                memory.append((shown, resident()))
            await asking
            seconds = time.monotonic() - began
            watching.cancel()
            shown = len(app.session.turns[-1].tokens)
            assert shown == tokens, f"{shown} of {tokens} tokens arrived"
            gc.collect()
            return {
                "tokens": shown, "seconds": seconds, "p50": lag.quantile(0.5), "p99": lag.quantile(0.99),
                "most": max(lag.seconds), "memory": memory,
            }  # fmt: skip


async def updates(lengths: list[int], folder: Path) -> list[tuple[int, float]]:
    """(tokens there, processor seconds of one update) for each length."""
    found = []
    for length in lengths:
        app = GeomApp(config.Settings(base_url="http://127.0.0.1:9", db=str(folder / "other.db")))
        async with app.run_test(size=SIZE) as pilot:
            turn = app.session.begin()
            header = {"record_type": "header", "version": "1.0", "trace_id": "t", "model": "m"}
            records: list[dict[str, Any]] = [header, {"record_type": "message", "role": "user", "content": "Go on"}]
            for index in range(length):
                entry = event(index + 1)["attention_tokens"][0]
                records.append({"record_type": "token", "index": index, "text": entry["token"], "segmentId": "s-main"})
                records.append({"record_type": "step", "tokenIndex": index, "attention": entry, **entry})
            app.session.feed(turn, records)
            await pilot.pause(0.3)
            found.append((length, await update_seconds(app)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--rate", type=float, default=400, help="tokens a second")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for length, seconds in asyncio.run(updates([1000, 4000, 16_000], Path(name))):
            print(f"update at {length:>6} tokens   {seconds * 1000:.1f} ms of processor time")
        found = asyncio.run(soak(options.tokens, options.rate, Path(name)))
    print(f"tokens  {found['tokens']} in {found['seconds']:.1f} s, {found['tokens'] / found['seconds']:.0f} tok/s")
    p50, p99, most = (found[name] * 1000 for name in ("p50", "p99", "most"))
    print(f"lag     p50 {p50:.1f} ms, p99 {p99:.1f} ms, most {most:.0f} ms")
    memory = found["memory"]
    for share in (0, 0.25, 0.5, 0.75, 1):
        tokens, megabytes = memory[int(share * (len(memory) - 1))]
        print(f"memory  {tokens:>6} tokens  {megabytes:.0f} MB")
    (first, before), (last, after) = memory[len(memory) // 4], memory[-1]
    grown = (after - before) * 1000 / max(1, last - first)
    print(f"memory  {grown:.1f} kB a token")
    if p99 >= _MOST_LAG_MS or grown > _MOST_KB:
        sys.exit(f"aimed at: a lag of p99 below {_MOST_LAG_MS} ms, no more than {_MOST_KB} kB a token")


if __name__ == "__main__":
    main()
