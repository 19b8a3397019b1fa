"""Slots of the KV cache that requests hold with and without eviction, how many run at once, and accounts after a crowd.

    python benchmarks/eviction_memory.py [--loads long prompt many] [--crowd 500] [--rounds 2] [--json FILE]

Real servers on this machine's CPU, one after another, SmolLM2-135M with two layers (`--whole`: all), SGLang's memory
checks after every step: `off` evicts nothing, `lru` says so of the prefix cache (SGLang's default: what a policy of the
cache alone does for running requests), then eviction at ratios of .5 and .3. The same requests in the same order:

- `long`: one request, 30 tokens of prompt, 1,500 written; `prompt`: one of 3,000 tokens, 300 written;
- `many`: 16 requests at once, 64 tokens of prompt and 400 written each, in a pool of 2,048 slots;
- `--crowd N`: N requests with shared beginnings, of which a third is aborted or left, in a pool of 2,048 slots.

`used` is the pool's size less what is free and less what the prefix cache could give up, before each decode step: slots
that nobody else could have. `held` is what the request itself attends to. Times are of `many`: two servers take turns,
`--rounds` times each, since a shared machine is now faster and now slower.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

sys.path.append(str(Path(__file__).parents[1]))
from tests.engine import conftest  # noqa: F401  (engines start as those of the tests do)
from tests.engine.harness import TWO_LAYERS, Server
from tests.engine.test_eviction import EVICTING, TALE, body, clean, crowd, running

STEPS = "steps.jsonl"
WATCHING = """
if in_child:
    import json
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    prepare = ScheduleBatch.prepare_for_decode
    def watched(batch):
        prepare(batch)
        tree = batch.tree_cache
        allocator = tree.token_to_kv_pool_allocator
        used = allocator.size - allocator.available_size() - tree.evictable_size()
        held = {req.rid: int(req.kv.kv_allocated_len) for req in batch.reqs}
        with open("steps.jsonl", "a") as file:
            file.write(json.dumps({"used": used, "held": held}) + "\\n")
    ScheduleBatch.prepare_for_decode = watched
"""
SERVERS = {
    "off": ((), ()), "lru": ((), ("--radix-eviction-policy", "lru")),
    **{f"R = {ratio}": ((*EVICTING, "--spectral-retention-ratio", str(ratio)), ()) for ratio in (0.5, 0.3)},
}  # fmt: skip
POOLS = {"long": 8192, "prompt": 8192, "many": 2048}
MANY, WRITTEN = 16, 400
PROMPT = 64


@contextmanager
def started(name: str, pool: int, *, whole: bool, running_at_once: int = 32) -> Iterator[Server]:
    flags, more = SERVERS[name]
    sizes = () if whole else TWO_LAYERS
    sizes += ("--context-length", "8192", "--max-total-tokens", str(pool), "--enable-metrics", *more)
    sizes += ("--max-running-requests", str(running_at_once))
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder), *flags, sizes=sizes, watching=WATCHING) as server,
    ):
        yield server


def answer(server: Server, *args: Any) -> dict[str, Any]:
    response = httpx.post(server.url + "/generate", json=body(*args), timeout=900)
    return dict(response.raise_for_status().json())


def steps(server: Server) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (server.log.parent / STEPS).read_text().splitlines()]


def of_one(server: Server, load: str) -> dict[str, Any]:
    """Slots of a single request: at most, and on the average of its decode steps but for the first ten."""
    text, written = ("The sea", 1500) if load == "long" else (_text(3000), 300)
    found = answer(server, text, written, load)
    mine = [step for step in steps(server) if load in step["held"]]
    held = [step["held"][load] for step in mine]
    used = [step["used"] for step in mine]
    return {
        "prompt": found["meta_info"]["prompt_tokens"], "written": found["meta_info"]["completion_tokens"],
        "used, most": max(used), "used, first step": used[0], "used, mean after 10": round(statistics.mean(used[10:])),
        "used, at the end": used[-1], "held, at the end": held[-1],
    }  # fmt: skip


def _text(tokens: int) -> str:
    """About so many tokens: the tale has 136."""
    return TALE * (tokens // 136 + 1)


def of_many(server: Server) -> dict[str, Any]:
    before = len(steps(server)) if (server.log.parent / STEPS).exists() else 0
    taken_back = _retracted(server)
    texts = [f"{n}. {TALE[: 4 * PROMPT]}" for n in range(MANY)]
    began = time.monotonic()
    with ThreadPoolExecutor(MANY) as pool:
        found = list(pool.map(lambda pair: answer(server, pair[1], WRITTEN, f"many-{pair[0]}"), enumerate(texts)))
    seconds = time.monotonic() - began
    at_once = [len(step["held"]) for step in steps(server)[before:]]
    assert all(one["meta_info"]["completion_tokens"] == WRITTEN for one in found)
    return {
        "at once, most": max(at_once), "at once, mean": round(statistics.mean(at_once), 2), "steps": len(at_once),
        "taken back": _retracted(server) - taken_back, "seconds": round(seconds, 1),
        "tokens/s": round(MANY * WRITTEN / seconds, 1),
    }  # fmt: skip


def _retracted(server: Server) -> int:
    return sum(map(int, re.findall(r"#retracted_reqs: (\d+)", server.log.read_text())))


def of_crowd(count: int, *, whole: bool) -> dict[str, Any]:
    with started("R = 0.3", 2048, whole=whole, running_at_once=8) as server:
        ends, _ = asyncio.run(crowd(server.url, count, at_once=16))
        clean(server)  # AssertionError where SGLang's checks or the plugin found fault
        server.post("/flush_cache", {})
        answer(server, "Hi", 2, "after")
        last = steps(server)[-1]
        return {**ends, "taken back": _retracted(server), "used by one last request": last["used"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", nargs="*", choices=list(POOLS), default=list(POOLS))
    parser.add_argument("--crowd", type=int, default=0, metavar="N", help="requests of the crowd; 0: none")
    parser.add_argument("--rounds", type=int, default=2, help="of `many`, for off and R = .3")
    parser.add_argument("--whole", action="store_true", help="all layers of the model")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {"layers": "all" if options.whole else 2}

    def note(load: str, name: str, value: dict[str, Any]) -> None:
        found.setdefault(load, {}).setdefault(name, []).append(value)
        print(json.dumps({"load": load, "server": name, **value}), flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")

    alone = [load for load in options.loads if load != "many"]
    for name in SERVERS if alone else ():
        with started(name, POOLS["long"], whole=options.whole) as server:
            for load in alone:
                note(load, name, of_one(server, load))
    for turn in range(options.rounds if "many" in options.loads else 0):
        for name in SERVERS if turn == 0 else ("off", "R = 0.3"):
            with started(name, POOLS["many"], whole=options.whole) as server:
                note("many", name, of_many(server))
    if options.crowd:
        note("crowd", "R = 0.3", of_crowd(options.crowd, whole=options.whole))


if __name__ == "__main__":
    main()
