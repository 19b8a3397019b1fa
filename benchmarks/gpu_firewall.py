"""What a firewall costs a GPU server, and that it ends answers where the library says: CUDA graphs and overlap on.

    python benchmarks/gpu_firewall.py --model DIR [--shapes 1x1024 32x1024 128x1024] [--json FILE]

One server with logits tapped. First an answer is asked for whole; the library (geomcli.firewall) halts it at the
median of its drifts; asked for again, it has to end with that token. Then, for each shape (requests x tokens of
context), every round runs in random order: nobody asks, fingerprints are asked for, a firewall watches without entries,
and both. Tokens/s of the scheduler's own log against nobody's of the same round; medians with a bootstrap interval.
Greedy, dummy weights will do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

# Beside this script.
sys.path.insert(0, str(Path(__file__).parent))
from gpu_capture import bootstrap, decode, shape_of, started
from gpu_servers import FINGERPRINT, Server, entries, machine, random_prompt

from geomcli.compass import HALT
from geomcli.firewall import ManifoldFirewall

WATCHED = {"attention_firewall": {"action": "log_only", "variance_threshold": 0.999}}
ASK: dict[str, dict[str, Any]] = {
    "nobody": {}, "fingerprints": FINGERPRINT, "watched": WATCHED, "watched, fingerprints": {**FINGERPRINT, **WATCHED}
}  # fmt: skip
TOKENS_OF_CHECK = 80


async def check(session: aiohttp.ClientSession, server: Server, options: Any) -> dict[str, Any]:
    """Where the library halts an answer, and where the server ended it."""
    prompt = random_prompt(options, 200)
    # The second time the prompt lies in the prefix cache, and so does it the third time.
    await entries(session, server.url, prompt, 1, {})
    whole = await entries(session, server.url, prompt, TOKENS_OF_CHECK, FINGERPRINT)
    drifts = sorted(e["drift"] for e in whole["attention_tokens"] if e["drift"] is not None)
    threshold = drifts[len(drifts) // 2]
    firewall = ManifoldFirewall(variance_threshold=threshold)
    statuses = [firewall.check(e["fingerprint"]) for e in whole["attention_tokens"]]
    guard = {"attention_firewall": {"action": "early_stop", "variance_threshold": threshold}}
    ended = await entries(session, server.url, prompt, TOKENS_OF_CHECK, {**FINGERPRINT, **guard})
    silent = await entries(session, server.url, prompt, TOKENS_OF_CHECK, guard)
    return {
        "library halts at": statuses.index(HALT) + 1 if HALT in statuses else None,
        "server ended at": ended["meta_info"]["completion_tokens"],
        "without entries at": silent["meta_info"]["completion_tokens"],
        "reasons": [one["meta_info"]["finish_reason"] for one in (ended, silent)],
        "same tokens": whole["output_ids"][: len(ended["output_ids"])] == ended["output_ids"],
    }


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    document: dict[str, Any] = {"machine": machine(), "shapes": options.shapes, "rows": []}
    with tempfile.TemporaryDirectory() as name:
        server = started("tap", options.port, options, options.logs or Path(name))
        try:
            timeout = aiohttp.ClientTimeout(total=600)
            async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
                await server.ready(session)
                document["check"] = await check(session, server, options)
                print(json.dumps(document["check"]), flush=True)
                for n, context, interval in options.shapes:
                    document["rows"] += await of_shape(session, server, options, (n, context, interval))
        finally:
            server.stop()
    return document


async def of_shape(session: Any, server: Server, options: Any, shape: tuple[int, int, int]) -> list[dict[str, Any]]:
    n, context, interval = shape
    prompts = [random_prompt(options, context) for _ in range(n)]
    found: dict[str, list[tuple[float, float]]] = {what: [] for what in ASK}
    ends = time.monotonic() + options.seconds / len(options.shapes)
    for round_ in range(-1, options.rounds):
        if round_ > 0 and time.monotonic() > ends:
            break
        rates: dict[str, tuple[float, float]] = {}
        for what in random.sample(list(ASK), len(ASK)):
            sample = await decode(session, server, prompts, options.tokens, interval, ASK[what])
            if sample is not None and sample["engine_tokens_per_second"]:
                rates[what] = sample["engine_tokens_per_second"], sample["tokens_per_second"]
        if round_ >= 0 and "nobody" in rates:
            for what, both in rates.items():
                found[what].append(tuple(a / b for a, b in zip(both, rates["nobody"], strict=True)))  # type: ignore[arg-type]
    rows = []
    for what, ratios in found.items():
        if ratios:
            engine, client = zip(*ratios, strict=True)
            row = {
                "requests": n, "context": context, "what": what, "rounds": len(ratios),
                "engine_ratio": statistics.median(engine), "engine_ratio_ci95": bootstrap(list(engine)),
                "ratio": statistics.median(client), "ratio_ci95": bootstrap(list(client)),
            }  # fmt: skip
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or name of the model")
    parser.add_argument("--shapes", nargs="+", type=shape_of, default=[(1, 1024, 1), (32, 1024, 1), (128, 1024, 1)])
    parser.add_argument("--layers", default="last")
    parser.add_argument("--backend", default="triton")
    parser.add_argument("--tokens", type=int, default=96, help="tokens to generate")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=240.0, help="to share among the shapes")
    parser.add_argument("--mem-fraction", type=float, default=0.85)
    parser.add_argument("--load-format", default="dummy")
    parser.add_argument("--vocabulary", type=int, default=49_000)
    parser.add_argument("--port", type=int, default=30500)
    parser.add_argument("--server", nargs=argparse.REMAINDER, default=[], help="further arguments for the server")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--logs", type=Path, help="folder for the server's log")
    options = parser.parse_args()
    options.profile = []
    if options.logs:
        options.logs.mkdir(parents=True, exist_ok=True)
    document = asyncio.run(measure(options))
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
