"""What capture costs a GPU server: decode tokens/s and µs a step, CUDA graphs and overlap scheduler on.

    python benchmarks/gpu_capture.py --model DIR [--engines plain tap probe] [--shapes 1x1024 8x1024 …] [--json FILE]
    python benchmarks/gpu_capture.py --table FILE... [--docs docs/performance.md]

Starts one server for each engine (the same SGLang command: without the plugin, with logits tapped, with keys probed),
all together on one GPU, only one working at a time. For each shape (requests x tokens of context), every round runs
every condition in random order: nobody asks (`plain`, once more as `again`, and `idle` with the plugin), every request
asks for fingerprints of the last layer, of all captured layers, or for 16 raw links. Each is compared with the plain
sample of its own round, and (`of idle`, in the engine) with the same server's own idle sample, since two servers of the
same command differ by up to 1 % of a step; a `twin` among the engines, a second plain server, measures that. `tokens/s`
is what arrives at the client, the engine's ratio is of what its scheduler logs. Reported are medians with a bootstrap
interval. The prompts of a shape lie in the prefix cache, so that what is timed is decode. A shape like 32x1024@16 has
the server send 16 tokens at a time.

Also checked: the same greedy tokens with and without the plugin, no entry that failed, and tap and probe agreeing on
every link. Uses the servers' HTTP and the command line alone. `--load-format dummy` needs no weights; prompts are
random tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

# `python -P` keeps this folder off the path.
sys.path.append(str(Path(__file__).parent))
from gpu_servers import ASK, PROFILE_TOKENS, Server, entries, fields_of, machine, random_prompt, stream

BEGIN, END = "<!-- gpu_capture: begin -->", "<!-- gpu_capture: end -->"
LOG_STEPS = 8
UNPATCHED = ("plain", "twin")
SHOWN = {"fingerprint": "all captured layers", "raw": "16 raw links"}


def started(name: str, port: int, options: argparse.Namespace, folder: Path) -> Server:
    """`plain` has no plugin, nor has its `twin`; others capture by the source that they are named after."""
    sizes = [(n, length + options.tokens + 64) for n, length, _ in options.shapes]
    sizes += [(n, length + PROFILE_TOKENS + 64) for n, length, _ in options.profile]
    arguments = [
        "--model-path", options.model, "--attention-backend", options.backend, "--load-format", options.load_format,
        "--skip-tokenizer-init", "--context-length", str(max(length for _, length in sizes)),
        "--max-running-requests", str(max(n for n, _ in sizes)),
        "--max-total-tokens", str(max(n * length for n, length in sizes)),
        "--cuda-graph-bs-decode", *map(str, sorted({n for n, _ in sizes})),
        "--mem-fraction-static", str(options.mem_fraction), "--decode-log-interval", str(LOG_STEPS), *options.server,
    ]  # fmt: skip
    if name in UNPATCHED:
        return Server(name, port, folder, arguments, {"SGLANG_PLUGINS": "none"})
    arguments += ["--return-attention-tokens", "--attention-capture-layers", options.layers,
                  "--attention-capture-source", name, "--attention-fingerprint-max-steps", "0"]  # fmt: skip
    return Server(name, port, folder, arguments, {})


async def decode(
    session: aiohttp.ClientSession, engine: Server, prompts: list[list[int]], n: int, interval: int, fields: Any
) -> dict[str, Any] | None:
    """Tokens/s and µs a step while all requests decode together; None when they never did."""
    before, began, logged = engine.cpu_seconds(), time.perf_counter(), engine.log.stat().st_size
    arrived = await asyncio.gather(*(stream(session, engine.url, p, n, interval, fields) for p in prompts))
    seconds, after = time.perf_counter() - began, engine.cpu_seconds()
    start, end = max(a[0] for a in arrived), min(a[-1] for a in arrived)
    # A stream's first event carries one token, the others may carry more: as many each.
    tokens = sum((n - 1) * sum(start < t <= end for t in a[1:]) / max(1, len(a) - 1) for a in arrived)
    if tokens < len(prompts) * n / 4:
        return None
    rate = tokens / (end - start)
    cpu = {name: (total - before.get(name, 0.0)) / seconds for name, total in after.items()}
    found = {"tokens_per_second": rate, "step_us": len(prompts) / rate * 1e6, "seconds": seconds, "cpu": cpu}
    return {**found, "engine_tokens_per_second": engine.logged(logged, len(prompts), len(prompts[0]), n)}


async def checks(session: aiohttp.ClientSession, engines: dict[str, Server], options: Any) -> dict[str, Any]:
    """Same tokens as without the plugin, every entry sound, tap and probe in agreement."""
    prompt = random_prompt(options, min(length for _, length, _ in options.shapes))
    answers = {n: await entries(session, e.url, prompt, min(64, options.tokens), {} if n in UNPATCHED else ASK["raw"])
               for n, e in engines.items()}  # fmt: skip
    found: dict[str, Any] = {}
    captured = [name for name in answers if name not in UNPATCHED]
    for name in captured:
        if "plain" in answers:
            found[f"{name}: same tokens as plain"] = answers[name]["output_ids"] == answers["plain"]["output_ids"]
        rows = answers[name]["attention_tokens"]
        found[f"{name}: entries"] = len(rows)
        found[f"{name}: entries with an error"] = sum("error" in row["flags"] for row in rows)
        found[f"{name}: largest sum of links"] = max((sum(p_of(row).values()) for row in rows), default=0)
    if {"tap", "probe"} <= set(captured):
        pairs = list(zip(answers["tap"]["attention_tokens"], answers["probe"]["attention_tokens"], strict=True))
        worst = [difference(p_of(a), p_of(b)) for a, b in pairs]
        found["tap and probe: largest difference of a link's probability"] = max(worst, default=None)
    return found


def p_of(entry: dict[str, Any]) -> dict[int, float]:
    """Position -> true probability of an entry's links."""
    if "topk_logits" not in entry:
        return {}
    import math

    lse = entry["logsumexp_candidates"]
    return {n: math.exp(x - lse) for n, x in zip(entry["token_positions"], entry["topk_logits"], strict=True)}


def difference(one: dict[int, float], other: dict[int, float]) -> float:
    """Largest difference between two lists of links; what one lacks may not be stronger than its weakest."""
    weakest = min(other.values(), default=0.0)
    return max((abs(p - other[n]) if n in other else max(0.0, p - weakest) for n, p in one.items()), default=0.0)


def bootstrap(values: list[float], draws: int = 2000) -> list[float]:
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(draws))
    return [medians[int(0.025 * draws)], medians[int(0.975 * draws)]]


def conditions(names: list[str]) -> list[tuple[str, str]]:
    own = {"plain": ["plain", "again"], "twin": ["twin"]}
    asked = [what for what in ASK if what not in ("plain", "again", "twin")]
    return [(name, what) for name in names for what in own.get(name, asked)]


def summary(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each shape, engine and condition, against the plain sample of the same round."""
    rows = []
    for shape in dict.fromkeys(shape_in(s) for s in samples):
        mine = [s for s in samples if shape_in(s) == shape]
        base = {s["round"]: s for s in mine if s["what"] == "plain"}
        rate = "engine_tokens_per_second"
        quiet = {(s["round"], s["engine"]): s[rate] for s in mine if s["what"] == "idle" and s[rate]}
        for engine, what in sorted(
            {(s["engine"], s["what"]) for s in mine}, key=lambda c: (c[0] != "plain", *order(c))
        ):
            own = [s for s in mine if (s["engine"], s["what"]) == (engine, what) and s["round"] in base]
            if not own:
                continue
            inside = [(s["engine_tokens_per_second"], base[s["round"]]["engine_tokens_per_second"]) for s in own]
            engine_ratios = [mine / other for mine, other in inside if mine and other]
            ratios = [s["tokens_per_second"] / base[s["round"]]["tokens_per_second"] for s in own]
            extra = [s["step_us"] - base[s["round"]]["step_us"] for s in own]
            of_idle = [s[rate] / quiet[at] for s in own if s[rate] and (at := (s["round"], s["engine"])) in quiet]
            rows.append({
                "requests": shape[0], "context": shape[1], "interval": shape[2], "engine": engine, "what": what,
                "rounds": len(own),
                "tokens_per_second": statistics.median(s["tokens_per_second"] for s in own),
                "step_us": statistics.median(s["step_us"] for s in own),
                "ratio": statistics.median(ratios), "ratio_ci95": bootstrap(ratios),
                "extra_us": statistics.median(extra), "extra_us_ci95": bootstrap(extra),
                "engine_ratio": statistics.median(engine_ratios) if engine_ratios else None,
                "engine_ratio_ci95": bootstrap(engine_ratios) if engine_ratios else None,
                "of_idle": statistics.median(of_idle) if of_idle else None,
                "cpu": {n: statistics.median(s["cpu"].get(n, 0.0) for s in own) for n in own[0]["cpu"]},
            })  # fmt: skip
    return rows


def shape_in(sample: dict[str, Any]) -> tuple[int, int, int]:
    return sample["requests"], sample["context"], sample["interval"]


def order(condition: tuple[str, str]) -> tuple[str, int]:
    return condition[0], list(ASK).index(condition[1])


async def measure_shape(
    session: aiohttp.ClientSession, engines: dict[str, Server], options: Any, shape: tuple[int, int, int], ends: float
) -> list[dict[str, Any]]:
    """Interleaved rounds of one shape, as many as there is time for; the first, which fills the caches, is left out."""
    requests, context, interval = shape
    prompts = [random_prompt(options, context) for _ in range(requests)]
    samples: list[dict[str, Any]] = []
    for round_ in range(-1, options.rounds):
        if round_ > 0 and time.monotonic() > ends:
            break
        todo = conditions(options.engines)
        random.Random(round_).shuffle(todo)
        for name, what in todo if round_ >= 0 else [(name, "idle") for name in engines]:
            fields = fields_of(what, engines[name])
            sample = await decode(session, engines[name], prompts, options.tokens, interval, fields)
            if round_ >= 0 and sample is not None:
                samples.append({"round": round_, "requests": requests, "context": context, "interval": interval,
                                "engine": name, "what": what, **sample})  # fmt: skip
    rounds = len({s["round"] for s in samples})
    for row in summary(samples):
        busy = " ".join(f"{name} {share:.2f}" for name, share in row["cpu"].items() if share > 0.02)
        print(
            f"{requests}x{context}@{interval} {rounds} rounds {row['engine']} {row['what']}: "
            f"{row['tokens_per_second']:.0f} tok/s, ratio {row['ratio']:.4f}, engine's {row['engine_ratio'] or 0:.4f}, "
            f"{row['extra_us']:+.1f} µs; CPU {busy}",
            file=sys.stderr,
            flush=True,
        )
    return samples


async def profile(session: aiohttp.ClientSession, engines: dict[str, Server], options: Any) -> list[dict[str, Any]]:
    if not options.profile:
        return []
    from gpu_profile import profiled, table

    rows = []
    for shape in options.profile:
        for name, engine in engines.items():
            for what in ["plain"] if name in UNPATCHED else ["idle", "fingerprint"]:
                row = await profiled(session, engine, what, options, shape)
                rows.append({"requests": shape[0], "context": shape[1], "engine": name, "what": what, **row})
    print(table(rows), file=sys.stderr, flush=True)
    return rows


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    folder = Path(options.logs or tempfile.mkdtemp(prefix="geom-gpu-"))
    folder.mkdir(parents=True, exist_ok=True)
    timeout, limit = aiohttp.ClientTimeout(total=600), aiohttp.TCPConnector(limit=0, force_close=True)
    engines: dict[str, Server] = {}
    samples: list[dict[str, Any]] = []
    settings = {k: v for k, v in vars(options).items() if k not in ("table", "docs", "json", "logs")}
    async with aiohttp.ClientSession(timeout=timeout, connector=limit, read_bufsize=1 << 20) as session:
        try:
            began = time.monotonic()
            for name in options.engines:
                engines[name] = started(name, options.port + len(engines), options, folder)
            for name in options.engines:
                await engines[name].ready(session)
                if name not in UNPATCHED:
                    async with session.get(engines[name].url + "/v1/attention/capabilities") as response:
                        engines[name].layers = (await response.json())["layers_captured"]
                print(f"{name} ready after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
            found = await checks(session, engines, options)
            print(json.dumps(found, indent=1), file=sys.stderr, flush=True)
            if any(value for name, value in found.items() if name.endswith("entries with an error")):
                sys.exit("entries have errors: nothing is measured")
            deadline = time.monotonic() + options.seconds
            for at, shape in enumerate(options.shapes):
                # What is left is shared among the shapes that are left.
                ends = time.monotonic() + (deadline - time.monotonic()) / (len(options.shapes) - at)
                samples += await measure_shape(session, engines, options, shape, ends)
                # A run that is cut short leaves what it has.
                keep(options, {"machine": machine(), "settings": settings, "checks": found, "rows": summary(samples),
                               "samples": samples})  # fmt: skip
            profiles = await profile(session, engines, options)
            capabilities = {}
            for name, engine in engines.items():
                if name not in UNPATCHED:
                    async with session.get(engine.url + "/v1/attention/capabilities") as response:
                        capabilities[name] = await response.json()
                    found[f"{name}: errors over the whole run"] = capabilities[name]["counters"]["errors"]
        finally:
            for engine in engines.values():
                engine.stop()
    return {"machine": machine(), "settings": settings, "checks": found, "capabilities": capabilities,
            "rows": summary(samples), "profiles": profiles, "samples": samples}  # fmt: skip


def keep(options: argparse.Namespace, document: dict[str, Any]) -> None:
    if options.json:
        options.json.write_text(json.dumps(document, indent=1))


def span(value: float | None, interval: list[float] | None) -> str:
    return "" if value is None or interval is None else f"{value:.4f} [{interval[0]:.4f}, {interval[1]:.4f}]"


def table(document: dict[str, Any]) -> str:
    """The results as Markdown."""
    where, settings = document["machine"], document["settings"]
    lines = [
        f"**{Path(settings['model']).name}**, {where['gpu']}, SGLang {where['sglang']}, torch {where['torch']}, Triton "
        f"{where['triton']}; backend {settings['backend']}, layers {settings['layers']}, {settings['tokens']} tokens "
        f"generated; further arguments `{' '.join(settings['server']) or 'none'}`"
        + (f"; commit {where['commit']}." if where.get("commit") else "."),
        "",
        "| requests × context | tokens an event | condition | rounds | tokens/s | at the client: ratio | extra µs a "
        "step | in the engine: ratio | of idle | CPU main, entries |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in document["rows"]:
        plain, quiet = r["what"] == "plain", r["engine"] in UNPATCHED or r["what"] == "idle"
        cells = [
            f"{r['requests']} × {r['context']}",
            str(r["interval"]),
            r["what"] if r["engine"] in UNPATCHED else f"{r['engine']}: {SHOWN.get(r['what'], r['what'])}",
            str(r["rounds"]),
            f"{r['tokens_per_second']:.0f}",
            "1" if plain else span(r["ratio"], r["ratio_ci95"]),
            f"{r['step_us']:.0f} a step" if plain else f"{r['extra_us']:+.0f}",
            "1" if plain else span(r["engine_ratio"], r["engine_ratio_ci95"]),
            "" if quiet or r["of_idle"] is None else f"{r['of_idle']:.4f}",
            f"{r['cpu'].get('main', 0):.2f}, {r['cpu'].get('entries', 0):.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"- {name}: {value}" for name, value in document["checks"].items())]
    return "\n".join(lines)


def shape_of(text: str) -> tuple[int, int, int]:
    shape, _, interval = text.partition("@")
    requests, context = shape.split("x")
    return int(requests), int(context), int(interval or 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or name of the model")
    parser.add_argument("--engines", nargs="+", default=["plain", "tap", "probe"], choices=[*UNPATCHED, "tap", "probe"])
    shapes = [(1, 1024, 1), (8, 1024, 1), (32, 1024, 1)]
    parser.add_argument("--shapes", nargs="+", type=shape_of, default=shapes, help="as in 8x1024 or 32x1024@16")
    parser.add_argument("--profile", nargs="+", type=shape_of, default=[], help="shapes to profile, see gpu_profile.py")
    parser.add_argument("--layers", default="auto")
    parser.add_argument("--backend", default="triton")
    parser.add_argument("--tokens", type=int, default=256, help="tokens to generate")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=600, help="to share among the shapes")
    parser.add_argument("--mem-fraction", type=float, default=0.85)
    parser.add_argument("--load-format", default="dummy")
    parser.add_argument("--vocabulary", type=int, default=49000)
    parser.add_argument("--port", type=int, default=30400)
    parser.add_argument("--server", nargs=argparse.REMAINDER, default=[], help="further arguments for every server")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--logs", help="folder for the servers' logs")
    parser.add_argument("--table", type=Path, nargs="+", help="print the tables of these results instead of measuring")
    parser.add_argument("--docs", type=Path, help="put the table between its marks in this file")
    options = parser.parse_args()
    if options.table:
        documents = [json.loads(path.read_text()) for path in options.table]
    elif options.model:
        # Ended from outside, the servers end too.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        documents = [asyncio.run(measure(options))]
        keep(options, documents[0])
    else:
        parser.error("--model or --table is needed")
    text = "\n\n".join(map(table, documents))
    print(text)
    if options.docs:
        page = options.docs.read_text()
        before, rest = page.split(BEGIN)
        options.docs.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
