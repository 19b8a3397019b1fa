"""What watching costs a GPU server, and that it decides as the library does: CUDA graphs and overlap on.

    python benchmarks/gpu_firewall.py --model DIR [--shapes 1x1024 32x1024 128x1024] [--json FILE]

One server with logits tapped, and made calibrations of the detectors that need some. First an answer is asked for
whole; the library (geomcli.firewall) halts it at the median of its drifts; asked for again, it has to end with that
token. Every detector's scores are held against the library's on the entries of the same answer, and what tokens were
sampled with against the zones before them. Then, for each shape (requests x tokens of context), every round runs in
random order: nobody asks, fingerprints are asked for, a detector watches without entries, zones choose the sampling,
logit statistics. Tokens/s of the scheduler's own log against nobody's of the same round; medians with a bootstrap
interval. Dummy weights will do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

# Beside this script.
sys.path.insert(0, str(Path(__file__).parent))
from gpu_capture import bootstrap, decode, shape_of, started
from gpu_servers import FINGERPRINT, Server, entries, machine, random_prompt

from geomcli.compass import HALT
from geomcli.detectors import registry
from geomcli.detectors.calibration import About, Calibration, Stack, load, save
from geomcli.detectors.observations import of_entries, replay
from geomcli.detectors.received import STRONGEST
from geomcli.detectors.summary import Summarised
from geomcli.firewall import ManifoldFirewall
from geomcli.server_patch.server_options import parse_layers
from geomcli.zone_sampling import ZoneSampler

NEVER = 1e9  # a score that nothing reaches
DETECTORS = ("logprob", "rauq", "heads", "received")
ASK: dict[str, dict[str, Any]] = {
    "nobody": {},
    "fingerprints": FINGERPRINT,
    "watched by the compass": {"attention_firewall": {"action": "log_only", "variance_threshold": 0.9}},
    **{f"watched by {name}": {"attention_firewall": {"action": "log_only", "detector": name}} for name in DETECTORS},
    "sampled by zone": {"attention_auto_sampling": True},
    "logit statistics": {
        "return_attention_tokens": True, "attention_fingerprint_mode": True, "attention_logit_stats": True,
    },
}  # fmt: skip
EVERYTHING = {**ASK["logit statistics"], "attention_head_stats": True, "attention_fingerprint_mode": False,
              "top_k_attention": STRONGEST}  # fmt: skip
TOKENS_OF_CHECK = 80


def calibrate(folder: Path, model: str, layers: tuple[int, ...], heads: int) -> list[Path]:
    """Files of detectors with random weights, and thresholds that nothing reaches."""
    made = []
    for name in DETECTORS:
        about = About(model=model, detector=name, layers=layers, heads=heads, threshold=NEVER, false_alarms=0.1, n=20)
        stack = None
        if registry.DETECTORS[name].trained:
            features = registry.DETECTORS[name].features
            assert features is not None
            names = Summarised(features(layers, heads, registry.kind(name).set(None))).names
            weights = np.random.default_rng(1).normal(size=len(names)) / len(names)
            ones = np.ones(len(names))
            stack = Stack(names, 0 * ones, ones, weights, 0.0, 1.0, 0.0, 0.5, 8)
        made.append(folder / f"{name}.npz")
        save(Calibration(about, stack), made[-1])
    return made


async def check_detectors(session: aiohttp.ClientSession, server: Server, options: Any, files: Any) -> dict[str, Any]:
    """Largest difference of each detector's scores, from the library's on the entries, and tokens without a score."""
    found = {}
    for file in files:
        name = load(file).about.detector
        watch = {"attention_firewall": {"action": "log_only", "detector": name}}
        answer = await entries(
            session, server.url, random_prompt(options, 200), TOKENS_OF_CHECK, {**EVERYTHING, **watch}
        )
        detector = registry.create(name, calibration=load(file))
        mine = replay(detector, of_entries(answer["attention_tokens"])).tolist()
        theirs = [entry["firewall"]["score"] for entry in answer["attention_tokens"]]
        both = [(a, b) for a, b in zip(mine, theirs, strict=True) if b is not None]
        found[name] = {
            "scores": len(both), "largest difference": max(abs(a - b) / max(1, abs(a)) for a, b in both),
            "missing": sum(b is None and not math.isnan(a) for a, b in zip(mine, theirs, strict=True)),
        }  # fmt: skip
    return found


async def check_sampling(session: aiohttp.ClientSession, server: Server, options: Any) -> dict[str, Any]:
    """After how many tokens a zone's choice holds, and whether it does for every one."""
    asked = {**FINGERPRINT, "attention_auto_sampling": True}
    answer = await entries(session, server.url, random_prompt(options, 200), TOKENS_OF_CHECK, asked)
    said = [(entry["sampling"]["zone"], entry["sampling"]["temperature"]) for entry in answer["attention_tokens"]]
    library, chosen = ZoneSampler(), [("unknown", None)]
    for entry in answer["attention_tokens"]:
        chosen.append(library.update(entry["zone"])[:2])
    for after in range(4):
        expected = [chosen[max(0, n - after)] for n in range(len(said))]
        if all(zone == z and (t is None or abs(t - temperature) < 1e-6)
               for (zone, temperature), (z, t) in zip(said, expected, strict=True)):  # fmt: skip
            return {"holds": True, "tokens between": after, "zones": sorted({zone for zone, _ in said})}
    return {"holds": False, "said": said, "zones": [entry["zone"] for entry in answer["attention_tokens"]]}


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
        config = json.loads((Path(options.model) / "config.json").read_text())
        layers = parse_layers(options.layers, config["num_hidden_layers"])
        files = calibrate(Path(name), options.model, layers, config["num_attention_heads"])
        options.server += ["--attention-calibration", *map(str, files)]
        server = started("tap", options.port, options, options.logs or Path(name))
        try:
            timeout = aiohttp.ClientTimeout(total=600)
            async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
                await server.ready(session)
                document["check"] = await check(session, server, options)
                document["detectors"] = await check_detectors(session, server, options, files)
                document["sampling"] = await check_sampling(session, server, options)
                print(json.dumps({k: document[k] for k in ("check", "detectors", "sampling")}), flush=True)
                for n, context, interval in options.shapes:
                    document["rows"] += await of_shape(session, server, options, (n, context, interval))
        finally:
            server.stop()
    return document


async def of_shape(session: Any, server: Server, options: Any, shape: tuple[int, int, int]) -> list[dict[str, Any]]:
    n, context, interval = shape
    prompts = [random_prompt(options, context) for _ in range(n)]
    found: dict[str, list[tuple[float, float]]] = {what: [] for what in options.what}
    ends = time.monotonic() + options.seconds / len(options.shapes)
    for round_ in range(-1, options.rounds):
        if round_ > 0 and time.monotonic() > ends:
            break
        rates: dict[str, tuple[float, float]] = {}
        for what in random.sample(options.what, len(options.what)):
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
    parser.add_argument(
        "--what", nargs="+", choices=ASK, default=list(ASK), help="beside nobody, which is always there"
    )
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
    options.what = list(dict.fromkeys(["nobody", *options.what]))
    if options.logs:
        options.logs.mkdir(parents=True, exist_ok=True)
    document = asyncio.run(measure(options))
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
