"""Slots of the KV cache that requests take with and without eviction, how many run at once, and accounts after a crowd.

    python benchmarks/eviction_memory.py --loads long prompt many --crowd 500 --json FILE
    python benchmarks/eviction_memory.py --loads many --servers off 0.3 --rounds 2 --whole --json FILE
    python benchmarks/eviction_memory.py --table FILE

Real servers on this machine's CPU, one after another, SmolLM2-135M with two layers (`--whole`: all). `off` evicts
nothing; `lru` says so of the prefix cache, SGLang's default: what a policy of the cache alone does for running
requests; a number is the ratio of a server that evicts. The same requests in the same order for each:

- `long`: one request, 32 tokens of prompt, 1,500 written; `prompt`: one request, 3,000 and 300. An empty prefix cache;
- `many`: 24 requests at once, 64 and 700 each, nothing shared, in a pool of 3,072 slots. Servers take turns, `--rounds`
  times each: a shared machine is now faster and now slower;
- `room`: the same in a pool of 20,480, with room for all of them whole: what eviction costs where it gains nothing;
- `--crowd N`: N requests with shared beginnings, of which a third is aborted or left, in a pool of 700 slots, while
  SGLang takes requests back on purpose (the load of tests/engine/test_eviction.py).

Slots are read in the scheduler, from SGLang's allocator and tree, when each pass has been given its own, so no peak
falls between two readings. `taken`: the pool's size less what is free. `used`: less what the prefix cache could give
up, too, which is what SGLang's own usage counts and nobody else could have. `held`: the request's row, which is what
its entries call `kv.kept`; the loads of one request hold one to the other. SGLang's memory checks run after every
step, but not in `many` and `room`, whose time counts: seconds, and CPU seconds of all the server's processes. Rows are
added to the file.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import itertools
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from prefix_cache_engine import SENTENCES

sys.path.append(str(Path(__file__).parents[1]))
from tests.engine.harness import TWO_LAYERS, Server
from tests.engine.test_eviction import clean, crowd, ids_of, running

PASSES = "passes.jsonl"
WATCHING = """
if in_child:
    import json
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    def watch(name):
        prepare = getattr(ScheduleBatch, name)
        def watched(batch, *args, **kwargs):
            found = prepare(batch, *args, **kwargs)
            tree = batch.tree_cache
            allocator = tree.token_to_kv_pool_allocator
            taken = allocator.size - allocator.available_size()
            row = {"decode": name == "prepare_for_decode", "taken": taken, "used": taken - tree.evictable_size(),
                   "held": {req.rid: int(req.kv.kv_allocated_len) for req in batch.reqs}}
            with open("passes.jsonl", "a") as file:
                file.write(json.dumps(row) + "\\n")
            return found
        setattr(ScheduleBatch, name, watched)
    watch("prepare_for_decode")
    watch("prepare_for_extend")
"""
UNCHECKED = {"SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "0", "SGLANG_CHECK_KV_PAGE_INVARIANTS": "0"}
RETRACTING = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "97"}
SERVERS = ("off", "0.3", "0.5", "lru")
ALONE, POOL = {"long": (32, 1500), "prompt": (3000, 300)}, 8192
MANY, READ, WRITTEN, POOLS = 24, 64, 700, {"many": 3072, "room": 20_480}
FAULTS = re.compile(r"leak detected|double free|use-after-free|geom:.*(failed|could not)", re.IGNORECASE)


@contextmanager
def started(name: str, whole: bool, *sizes: str, settings: dict[str, str], overlap: bool = False) -> Iterator[Server]:
    sizes = (*sizes, "--enable-metrics", *(() if whole else TWO_LAYERS))
    ours: tuple[str, ...] = ()
    if name == "lru":
        sizes += ("--radix-eviction-policy", "lru")
    elif name != "off":
        ours = ("--spectral-evict-decode", "--attention-capture-layers", "7,15,22,29" if whole else "0,1")
        ours += ("--spectral-retention-ratio", name)
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder), *ours, sizes=sizes, watching=WATCHING, overlap=overlap, **settings) as server,
    ):
        yield server


def passes(server: Server) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (server.log.parent / PASSES).read_text().splitlines()]


def prompt(server: Server, tokens: int, seed: int) -> list[int]:
    text = " ".join(np.random.default_rng(seed).choice(SENTENCES, tokens // 8 + 4))
    return ids_of(server, text)[:tokens]


def ask(server: Server, ids: list[int], tokens: int, rid: str, **fields: Any) -> dict[str, Any]:
    """AssertionError unless all the tokens come."""
    sampling = {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}
    body = {"input_ids": ids, "sampling_params": sampling, "rid": rid, **fields}
    answer = httpx.post(f"{server.url}/generate", json=body, timeout=7200)
    assert answer.status_code == 200, answer.text
    assert answer.json()["meta_info"]["completion_tokens"] == tokens
    return dict(answer.json())


def of_one(server: Server, load: str, evicts: bool) -> dict[str, Any]:
    """Slots of a single request over its passes, in an empty prefix cache."""
    read, written = ALONE[load]
    ids = prompt(server, read, seed=1)
    server.post("/flush_cache", {})
    fields = {"return_attention_tokens": True} if evicts else {}
    answer = ask(server, ids, written, load, **fields)
    mine = [one for one in passes(server) if load in one["held"]]
    decode = [one for one in mine if one["decode"]]
    held = [one["held"][load] for one in decode]
    found = {
        "prompt": read, "written": written, "most used": max(one["used"] for one in mine),
        "most taken": max(one["taken"] for one in mine), "used at the end": decode[-1]["used"],
        "mean used": round(statistics.mean(one["used"] for one in decode), 1), "taken at the end": decode[-1]["taken"],
    }  # fmt: skip
    if evicts:
        # The first entry is of the prompt's pass.
        assert held == [entry["kv"]["kept"] for entry in answer["attention_tokens"][1:]]
        first = next(n for n in range(1, len(held)) if held[n] <= held[n - 1])
        found |= {
            "most used after an eviction": max(one["used"] for one in decode[first:]),
            "decode steps before it": first,
        }
    return found


def of_many(server: Server) -> dict[str, Any]:
    """Requests that run at once and how fast."""
    asked = [(prompt(server, READ, seed=100 + n), f"many-{n}") for n in range(MANY)]
    ask(server, asked[0][0][:8], 8, "first")
    server.post("/flush_cache", {})
    before, cpu, began = len(passes(server)), cpu_seconds(server), time.monotonic()
    with ThreadPoolExecutor(MANY) as pool:
        list(pool.map(lambda one: ask(server, one[0], WRITTEN, one[1]), asked))
    seconds, cpu = time.monotonic() - began, cpu_seconds(server) - cpu
    mine = passes(server)[before:]
    at_once = [len(one["held"]) for one in mine if one["decode"]]
    begun: dict[str, int] = {}
    for n, one in enumerate(mine):
        begun = dict.fromkeys(one["held"], n) | begun
    busy = [len(one["held"]) for one in mine[: max(begun.values())] if one["decode"]]
    return {
        "most at once": max(at_once), "mean at once": round(statistics.mean(at_once), 2),
        "mean at once while others wait": round(statistics.mean(busy), 2), "steps": len(at_once),
        "taken back": taken_back(server)[0], "most used": max(one["used"] for one in mine),
        "seconds": round(seconds, 1), "cpu seconds": round(cpu, 1), "tokens/s": round(MANY * WRITTEN / seconds, 1),
    }  # fmt: skip


def taken_back(server: Server) -> tuple[int, int]:
    """Requests that SGLang took back: in all, and of these for a test."""
    counts = re.findall(r"(Testing retraction|Retract requests)\. #retracted_reqs: (\d+)", server.log.read_text())
    return sum(int(n) for _, n in counts), sum(int(n) for why, n in counts if why.startswith("Testing"))


def cpu_seconds(server: Server) -> float:
    main = psutil.Process(server.process.pid)
    times = [process.cpu_times() for process in (main, *main.children(recursive=True))]
    return float(sum(one.user + one.system for one in times))


def of_crowd(server: Server, count: int) -> dict[str, Any]:
    began = time.monotonic()
    ends, _ = asyncio.run(crowd(server.url, count, at_once=12))
    seconds = time.monotonic() - began
    metrics = httpx.get(server.url + "/metrics").text
    # Alone, and with what the crowd has left in the prefix cache: more is used than held where a slot has no owner.
    ask(server, prompt(server, 8, seed=1), 4, "last")
    last, (back, on_purpose) = passes(server)[-1], taken_back(server)
    found = {
        "requests": count, "finished": count - ends["aborted"] - ends["left"],
        "aborted": ends["aborted"], "left": ends["left"], "taken back": back, "taken back on purpose": on_purpose,
        "evicted": sum(int(float(n)) for n in re.findall(r"(?m)^geom_kv_evicted_tokens_total\S* (\S+)$", metrics)),
        "most at once": max(len(one["held"]) for one in passes(server)),
        "used by nobody at the end": last["used"] - sum(last["held"].values()),
        "faults in the log": len(FAULTS.findall(server.log.read_text())), "seconds": round(seconds, 1),
    }  # fmt: skip
    assert ends.total() == count
    clean(server)
    return found


def measured(options: argparse.Namespace, rounds: range) -> Iterator[dict[str, Any]]:
    """A row for each load of each server."""
    alone = [load for load in options.loads if load in ALONE]
    common = ("--context-length", "8192")
    for name in options.servers if alone else ():
        with started(name, options.whole, *common, "--max-total-tokens", str(POOL), settings={}) as server:
            for load in alone:
                yield {"load": load, "server": name, **of_one(server, load, name not in ("off", "lru"))}
    crowded = [load for load in POOLS if load in options.loads]
    for load, turn in itertools.product(crowded, rounds):
        sizes = ("--max-total-tokens", str(POOLS[load]), "--max-running-requests", "32")
        for name in options.servers:
            with started(name, options.whole, *common, *sizes, settings=UNCHECKED) as server:
                yield {"load": load, "server": name, "turn": turn, **of_many(server)}
    if options.crowd:
        tight = ("--context-length", "1024", "--max-total-tokens", "700", "--chunked-prefill-size", "48")
        with started("0.3", options.whole, *tight, settings=RETRACTING, overlap=True) as server:
            yield {"load": "crowd", "server": "0.3", **of_crowd(server, options.crowd)}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Of `many` and `room` means over the rounds, ratios to the same round of `off`, lowest to highest."""
    lines: list[str] = []
    for layers in ("two", "all"):
        for load in (*ALONE, *POOLS, "crowd"):
            mine = [row for row in rows if row["load"] == load and row["layers"] == layers]
            if mine:
                lines.append(f"\n{load}, {layers} layers\n")
                lines += _of_crowd(mine) if load == "crowd" else _of_many(mine) if load in POOLS else _of_one(mine)
    return "\n".join(lines)


def _of_one(rows: list[dict[str, Any]]) -> list[str]:
    names = ("most used", "most used after an eviction", "mean used", "used at the end", "most taken")
    off = next((row for row in rows if row["server"] == "off"), {})

    def cell(row: dict[str, Any], name: str) -> str:
        if name not in row:
            return ""
        beside = off.get("most used" if name == "most used after an eviction" else name)
        return f"{row[name]:,.0f}" + (f" ({row[name] / beside:.0%})" if beside and row is not off else "")

    return [_line(["", *names]), _line(["---"] * (len(names) + 1)),
            *(_line([row["server"], *(cell(row, name) for name in names)]) for row in rows)]  # fmt: skip


def _of_many(rows: list[dict[str, Any]]) -> list[str]:
    off = {row["turn"]: row for row in rows if row["server"] == "off"}
    names = ("most at once", "mean at once", "mean at once while others wait", "taken back", "steps")
    lines = [_line(["", *names, "tokens/s", "of off", "CPU s", "of off"]), _line(["---"] * (len(names) + 5))]
    for server in dict.fromkeys(row["server"] for row in rows):
        mine = [row for row in rows if row["server"] == server]
        cells = [f"{statistics.mean(row[name] for row in mine):.4g}" for name in names]
        for name in ("tokens/s", "cpu seconds"):
            values = [row[name] for row in mine]
            ratios = [row[name] / off[row["turn"]][name] for row in mine if row["turn"] in off]
            cells += [_span(values, ".0f"), _span(ratios, ".2f") if ratios else ""]
        lines.append(_line([server, *cells]))
    return lines


def _span(values: Sequence[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} – {high}"


def _of_crowd(rows: list[dict[str, Any]]) -> list[str]:
    names = [name for name in rows[0] if name not in ("load", "layers", "date", "server")]
    return [_line(names), _line(["---"] * len(names)), *(_line([str(row[name]) for name in names]) for row in rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", nargs="*", choices=(*ALONE, *POOLS), default=[])
    parser.add_argument("--crowd", type=int, default=0, metavar="N", help="requests of the crowd; 0: none")
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=SERVERS)
    parser.add_argument("--whole", action="store_true", help="all layers of the model")
    parser.add_argument("--rounds", type=int, default=1, help="of many and room")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path, metavar="FILE", help="print a file's rows as tables, measure nothing")
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.table.read_text())["rows"]))
        return
    about = {"model": "SmolLM2-135M-Instruct", "dtype": "float32", "backend": "torch_native",
             **{name: version(name) for name in ("sglang", "torch")}}  # fmt: skip
    known = json.loads(options.json.read_text())["rows"] if options.json and options.json.exists() else []
    layers = "all" if options.whole else "two"
    turns = [row["turn"] for row in known if row["load"] in POOLS and row["layers"] == layers]
    first = max(turns, default=-1) + 1
    for row in measured(options, range(first, first + options.rounds)):
        known.append({"date": datetime.date.today().isoformat(), "layers": layers, **row})
        print(json.dumps(known[-1]), flush=True)
        if options.json:
            options.json.write_text(json.dumps({"about": about, "rows": known}, indent=1) + "\n")


if __name__ == "__main__":
    main()
