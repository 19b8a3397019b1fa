"""Eviction on a GPU, CUDA graphs and overlap scheduler on: exact over what stays, and throughput in a fixed pool.

    python benchmarks/gpu_eviction.py --model DIR [--requests 48] [--read 1024] [--written 1536] [--pool 32768] \
        [--rounds 3] [--json FILE]
    python benchmarks/gpu_eviction.py --check [--json FILE]

`--check`: a server of a small Llama with random weights (made here, float32) and SGLang's memory checks on. One
request alone, then eight at once that share a beginning, at R = .3; then transformers (float64) with a mask that has,
in every step, exactly the tokens that the entries say were there. Reported: the largest difference of a link's
probability before and after the first token left, and next tokens that are not the likeliest of the reference.

Else two servers of the model, whose weights may be dummies: `off`, SGLang without the plugin, and one that evicts where
a request asks. A load is `--requests` at once, `--read` random tokens each and from half to one and a half times
`--written` more, in a pool of `--pool` slots; `1`, `0.5` and `0.3` are ratios that its requests ask for, and
`0.3, fingerprints` asks for entries, too. Loads come in random order in each round, each with prompts of its own and an
empty prefix cache. Tokens/s from the first request to the last answer, as ratio to `off` of the same round; requests at
once by SGLang's own log.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import random
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

# Beside this script; `python -P` keeps this folder off the path.
sys.path.append(str(Path(__file__).parent))
from gpu_oracle import on_cpu, with_native_operators
from gpu_servers import FINGERPRINT, Server, entries, machine, random_prompt
from oracle_comparison import torch_beside_transformers

from geomcli.kept import Kept

LOADS: dict[str, dict[str, Any]] = {
    "off": {},
    "1": {},
    "0.5": {"spectral_retention_ratio": 0.5},
    "0.3": {"spectral_retention_ratio": 0.3},
    "0.3, fingerprints": {"spectral_retention_ratio": 0.3, **FINGERPRINT},
}
SMALL = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 1024, "max_position_embeddings": 4096,
    "initializer_range": 0.1, "tie_word_embeddings": False, "rope_theta": 10000.0,
}  # fmt: skip
LAYERS = range(SMALL["num_hidden_layers"])  # type: ignore[call-overload]
RAW = {"return_attention_tokens": True, "top_k_attention": 64, "spectral_retention_ratio": 0.3}
EVICTING = ("--spectral-evict-decode", "--spectral-retention-ratio", "1.0")
STRICT = {
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1",
    "SGLANG_CHECK_KV_PAGE_INVARIANTS": "1",
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_IDLE": "1",
}
FAULTS = re.compile(r"leak|double free|use-after-free|geom:", re.IGNORECASE)
RUNNING = re.compile(r"Decode batch.*#running-req: (\d+)")
TAKEN_BACK = re.compile(r"#retracted_reqs: (\d+)")


def environment(options: argparse.Namespace, folder: Path, dtype: str) -> dict[str, str]:
    if on_cpu(options):
        from geomcli import engine_plan, models

        return dict(engine_plan.plan(models.Resolved(str(folder), "eviction", None), device="cpu").environment)
    return with_native_operators(folder) if dtype == "float32" else {}


def faults(server: Server) -> list[str]:
    """Lines of the log that say that something went wrong."""
    lines = server.log.read_text(errors="replace").splitlines()
    return [line[:300] for line in lines if FAULTS.search(line) and "where less than" not in line]


# Exactness.


def random_model(folder: Path) -> Any:
    """A small Llama with random weights, stored in `folder`; the same on every machine."""
    torch = torch_beside_transformers()
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**SMALL, attn_implementation="eager")
    model = LlamaForCausalLM(config).float().eval()
    model.save_pretrained(folder)
    return model.double()


async def collect(server: Server, options: argparse.Namespace) -> list[tuple[list[int], dict[str, Any]]]:
    """(prompt, answer) of one request alone, and of eight that share a beginning."""
    options.vocabulary = SMALL["vocab_size"]
    alone, shared = random_prompt(options, 300), random_prompt(options, 200)
    many = [[*shared, *random_prompt(options, 20 + 10 * n)] for n in range(8)]
    found = []
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=900)) as session:
        await server.ready(session)
        found.append((alone, await entries(session, server.url, alone, options.tokens, RAW)))
        asked = (entries(session, server.url, p, options.tokens // 2 + 20 * n, RAW) for n, p in enumerate(many))
        found += zip(many, await asyncio.gather(*asked), strict=True)
    return found


def compare(model: Any, prompt: list[int], answer: dict[str, Any]) -> dict[str, Any]:
    """One answer against the reference over exactly what its entries say was there."""
    import torch

    told, n = answer["attention_tokens"], len(prompt)
    ids = [*prompt, *answer["output_ids"]]
    kept = Kept({"tokenIndex": entry["step"] - 1, "kv": entry["kv"]} for entry in told)
    size = len(ids) - 1
    mask = torch.full((1, 1, size, size), float("-inf"), dtype=torch.float64).triu(1)
    for entry in told:
        for start, end in kept.gone(entry["step"] - 1) or ():
            mask[0, 0, entry["query_position"], start:end] = float("-inf")
    with torch.no_grad():
        out = model(torch.tensor([ids[:-1]]), attention_mask=mask, output_attentions=True)
    following = out.logits[0, n - 1 :].argmax(-1).tolist()
    found: dict[str, Any] = {"entries": len(told), "layers": len(LAYERS), "before": 0.0, "after": 0.0, "left out": 0.0}
    for entry in told:
        position = entry["query_position"]
        when = "after" if entry["kv"]["freed"] else "before"
        gone = kept.gone(entry["step"] - 1)
        assert gone is not None
        assert sum(end - start for start, end in gone) == entry["kv"]["freed"]
        for layer in LAYERS:
            links = entry["layers"][str(layer)]
            p = out.attentions[layer][0, :, position].mean(0)
            mine = np.exp(np.array(links["topk_logits"]) - links["logsumexp_candidates"])
            theirs = p[links["token_positions"]].numpy()
            found[when] = max(found[when], float(np.abs(mine - theirs).max()))
            # By how much a link that is not among the entry's is stronger than the weakest that is.
            rest = p.clone()
            rest[links["token_positions"]] = 0
            found["left out"] = max(found["left out"], float(rest.max()) - float(mine.min()))
    found["with less"] = sum(entry["kv"]["freed"] > 0 for entry in told)
    found["least share"] = min(entry["kv"]["share"] for entry in told)
    found["other tokens"] = sum(a != b for a, b in zip(following, answer["output_ids"], strict=True))
    found["errors"] = sum(bool(entry.get("error") or entry.get("flags")) for entry in told)
    return found


def check(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = random_model(folder / "model")
        arguments = [
            "--model-path", str(folder / "model"), "--dtype", "float32", "--attention-backend", options.backend,
            "--skip-tokenizer-init", "--context-length", "2048", "--max-running-requests", "16",
            "--max-total-tokens", "8192", "--cuda-graph-bs-decode", "1", "2", "4", "8", "--mem-fraction-static", "0.3",
            "--return-attention-tokens", "--attention-capture-layers", ",".join(map(str, LAYERS)), *EVICTING,
            *options.server,
        ]  # fmt: skip
        settings = {**environment(options, folder, "float32"), **STRICT, "TRITON_F32_DEFAULT": "ieee"}
        server = Server("check", options.port, options.logs or folder, arguments, settings)
        try:
            answers = asyncio.run(collect(server, options))
            wrong = faults(server)
        finally:
            server.stop()
        rows = [compare(model, *answer) for answer in answers]
    for row in rows:
        print(json.dumps(row), flush=True)
    return {"check": rows, "faults": wrong}


# Throughput.


async def load(server: Server, options: argparse.Namespace, fields: dict[str, Any], seed: int) -> dict[str, Any]:
    """The lengths are the same for every load of a seed. AssertionError unless all the tokens come."""
    prompts = [random_prompt(options, options.read) for _ in range(options.requests)]
    dice, half = random.Random(seed), options.written // 2
    lengths = [half + dice.randrange(options.written + 1) for _ in prompts]
    timeout = aiohttp.ClientTimeout(total=900)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        async with session.post(server.url + "/flush_cache") as response:
            response.raise_for_status()
        start, began, cpu = server.log.stat().st_size, time.perf_counter(), server.cpu_seconds()
        answers = await asyncio.gather(
            *(entries(session, server.url, p, n, fields) for p, n in zip(prompts, lengths, strict=True))
        )
        seconds = time.perf_counter() - began
    assert [len(answer["output_ids"]) for answer in answers] == lengths
    with server.log.open(errors="replace") as log:
        log.seek(start)
        said = log.read()
    running = [int(n) for n in RUNNING.findall(said)]
    after = server.cpu_seconds()
    return {
        "seconds": round(seconds, 2), "tokens/s": round(sum(lengths) / seconds, 1),
        "most at once": max(running), "mean at once": round(statistics.mean(running), 2),
        "taken back": sum(map(int, TAKEN_BACK.findall(said))),
        "cpu": {name: round((total - cpu.get(name, 0.0)) / seconds, 3) for name, total in after.items()},
    }  # fmt: skip


async def throughput(options: argparse.Namespace) -> dict[str, Any]:
    options.vocabulary = json.loads((Path(options.model) / "config.json").read_text())["vocab_size"]
    arguments = [
        "--model-path", options.model, "--attention-backend", options.backend, "--load-format", options.load_format,
        "--skip-tokenizer-init", "--context-length", str(options.read + options.written * 3 // 2 + 64),
        "--max-running-requests", str(options.requests), "--max-total-tokens", str(options.pool),
        "--cuda-graph-bs-decode", *map(str, sorted({1, 2, 4, 8, *range(12, options.requests, 4), options.requests})),
        "--mem-fraction-static", str(options.mem_fraction), "--decode-log-interval", "8", *options.server,
    ]  # fmt: skip
    ours = [*arguments, "--return-attention-tokens", "--attention-capture-layers", options.layers, *EVICTING]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = options.logs or Path(name)
        settings = environment(options, Path(name), "bfloat16")
        off = Server("off", options.port, folder, arguments, {**settings, "SGLANG_PLUGINS": "none"})
        evicting = Server("evicting", options.port + 1, folder, ours, settings)
        try:
            async with aiohttp.ClientSession() as session:
                await asyncio.gather(off.ready(session), evicting.ready(session))
            ends = time.monotonic() + options.seconds
            for round_ in range(options.rounds):
                for what in random.sample(options.loads, len(options.loads)):
                    if time.monotonic() > ends:
                        break
                    found = await load(off if what == "off" else evicting, options, LOADS[what], round_)
                    rows.append({"load": what, "round": round_, **found})
                    print(json.dumps(rows[-1]), flush=True)
            wrong = faults(evicting)
        finally:
            off.stop()
            evicting.stop()
    sizes = {name: getattr(options, name) for name in ("requests", "read", "written", "pool", "layers", "backend")}
    return {"sizes": {**sizes, "model": Path(options.model).name}, "rows": rows, "faults": wrong}


def table(document: dict[str, Any]) -> str:
    """Medians over the rounds, lowest and highest; ratios to `off` of the same round."""
    off = {row["round"]: row["tokens/s"] for row in document["rows"] if row["load"] == "off"}
    lines = ["| | rounds | tokens/s | of off | most at once | mean at once | taken back |", "|" + " --- |" * 7]
    for what in LOADS:
        mine = [row for row in document["rows"] if row["load"] == what]
        if not mine:
            continue
        ratios = [row["tokens/s"] / off[row["round"]] for row in mine if row["round"] in off] or [float("nan")]
        rate = statistics.median(row["tokens/s"] for row in mine)
        most = max(row["most at once"] for row in mine)
        mean, back = (statistics.mean(row[name] for row in mine) for name in ("mean at once", "taken back"))
        lines.append(
            f"| {what} | {len(mine)} | {rate:,.0f} | {statistics.median(ratios):.2f} "
            f"[{min(ratios):.2f}, {max(ratios):.2f}] | {most} | {mean:.1f} | {back:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--tokens", type=int, default=400, help="of the check's first request")
    parser.add_argument("--model", help="folder of the model")
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--read", type=int, default=1024)
    parser.add_argument("--written", type=int, default=1536)
    parser.add_argument("--pool", type=int, default=32768)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3600, help="no load begins later")
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS))
    parser.add_argument("--layers", default="auto")
    parser.add_argument("--backend", default="triton")
    parser.add_argument("--load-format", default="dummy")
    parser.add_argument("--mem-fraction", type=float, default=0.4)
    parser.add_argument("--port", type=int, default=30800)
    parser.add_argument("--logs", type=Path, help="folder for the servers' logs")
    parser.add_argument("--json", type=Path, help="what is there already stays")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print a file's rows as a table, measure nothing")
    parser.add_argument("--server", nargs=argparse.REMAINDER, default=[], help="further arguments of the servers")
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.table.read_text())["throughput"]))
        return
    if not options.check and not options.model:
        parser.error("--model is needed, or --check")
    random.seed(0)
    document = check(options) if options.check else asyncio.run(throughput(options))
    if options.json:
        known = json.loads(options.json.read_text()) if options.json.exists() else {}
        about = {"machine": machine(), "date": datetime.date.today().isoformat()}
        name = "exactness" if options.check else "throughput"
        options.json.write_text(json.dumps({**known, name: {**about, **document}}, indent=1) + "\n")
    print(*document["faults"], sep="\n")
    if not options.check:
        print(table(document))
    elif document["faults"] or any(max(row["before"], row["after"]) > 1e-4 for row in document["check"]):
        sys.exit("not exact")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
