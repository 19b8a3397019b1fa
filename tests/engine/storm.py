"""Clients that come in numbers and go as they like, and the memory that a server has left afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections import Counter
from typing import Any

import httpx
import psutil

from tests.engine.harness import Server, chat_body

ASK = {"return_attention_tokens": True}
# Objects of requests that are over wait for Python's collector, and what they held stays in the heap of the process.
COLLECTING = """
if in_child:
    import ctypes, gc, signal
    def collect(*_):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
    signal.signal(signal.SIGUSR2, collect)
"""


def bodies(tokens: int = 2, **fields: Any) -> dict[str, dict[str, Any]]:
    return {
        "/v1/chat/completions": chat_body("Hi", **{"max_tokens": tokens, **fields}),
        "/v1/completions": {"model": "smollm2", "prompt": "Hi", "max_tokens": tokens, **fields},
        "/generate": {"text": "Hi", "sampling_params": {"max_new_tokens": tokens}, **fields},
    }


PATHS = tuple(bodies())


async def storm(url: str, count: int, *, at_once: int, headers: dict[str, str]) -> Counter[str]:
    """`count` requests, `at_once` at a time, of which most end before their time; how each one ended, and 429s."""
    dice, ends, places = random.Random(5), Counter[str](), asyncio.Semaphore(at_once)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120, limits=limits) as client:

        async def one(n: int) -> None:
            path, tokens, rid = dice.choice(PATHS), dice.randrange(1, 40), f"storm-{n}"
            fields: dict[str, Any] = {"stream": True, "ignore_eos": True, **ASK}
            body = bodies(tokens, **fields)[path]
            if path == "/generate":
                body["sampling_params"] |= {"ignore_eos": True, "n": dice.choice((1, 1, 2))}
            else:
                body["n"] = dice.choice((1, 1, 2))
            named = body.get("n", 1) == 1 and body.get("sampling_params", {}).get("n", 1) == 1
            if named:
                body["rid"] = rid
            end, after = dice.choice(("finish", "leave", "leave", "abort", "vanish")), dice.randrange(0, 12)
            async with places:
                if end == "vanish":
                    with contextlib.suppress(httpx.TimeoutException):
                        await client.post(path, json=body, timeout=dice.random() * 0.3)
                    ends["vanished"] += 1
                    return
                while True:
                    stream = client.stream("POST", path, json=body)
                    response = await stream.__aenter__()
                    if response.status_code != 429:
                        break
                    await stream.__aexit__(None, None, None)
                    ends["429"] += 1
                    await asyncio.sleep(0.05)
                async with contextlib.AsyncExitStack() as stack:
                    stack.push_async_exit(stream)
                    assert response.status_code == 200
                    lines = 0
                    async for line in response.aiter_lines():
                        lines += line.startswith("data:")
                        if lines > after and end == "leave":
                            ends["left"] += 1
                            return
                        if lines > after and end == "abort" and named:
                            await client.post("/abort_request", json={"rid": rid})
                            end = "aborted"
                    ends[end] += 1

        await asyncio.gather(*(one(n) for n in range(count)))
    return ends


def memory(server: Server) -> dict[str, float]:
    """Resident MB of the processes that the plugin is in; the server was started with COLLECTING."""
    main = psutil.Process(server.engine_pid())
    found = {"main": main}
    for child in main.children(recursive=True):
        command = " ".join(child.cmdline())
        for name, mark in (("scheduler", "sglang::scheduler"), ("worker", "geomcli.server_patch.worker")):
            if mark in command:
                assert found.setdefault(name, child) is child
    assert found.keys() == {"main", "scheduler", "worker"}
    found["scheduler"].send_signal(signal.SIGUSR2)
    time.sleep(3)
    return {name: process.memory_info().rss / 2**20 for name, process in found.items()}
