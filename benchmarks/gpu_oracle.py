"""Entries of a real server with real weights against transformers' eager attention of the same weights.

    python benchmarks/gpu_oracle.py --model DIR [--dtype float32] [--sources tap probe] [--json FILE]
    python benchmarks/gpu_oracle.py --model DIR --backend torch_native --sources recompute --server --device cpu

For each source starts one server with the plugin (CUDA graphs and overlap scheduler on), asks it for 64 links and head
statistics of every token (a short prompt, a long one, two that share a prefix so that the second reads the prefix
cache, and eight at once), and ends it. Then one causal pass of transformers over each prompt and its answer says what
every entry should have been, for every captured layer. `recompute` is what `torch_native` does: no source is asked for.

The oracle has the weights as the engine holds them, rounded to --dtype, and computes in float64 where that fits
easily (but for rotary angles, norms and the softmax, which transformers keeps in float32), else in float32 without
tf32. The engine's own rounding is therefore part of every difference: bfloat16 activations, and in float32 Triton's
dots, which use tf32 unless TRITON_F32_DEFAULT=ieee is set, which the servers inherit.

SGLang's CUDA norm has no float32 kernel. For float32 on a GPU a second plugin lets norm, activation and rotary
embedding run by SGLang's own torch versions; attention, graphs and scheduler are untouched.

Exits 1 when an entry is missing or failed, or when a link's probability, or a link left out, is off by more than
--tolerance.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

# `python -P` keeps this folder off the path.
sys.path.append(str(Path(__file__).parent))
from gpu_servers import Server, entries, machine
from oracle_comparison import HEAD_STATISTICS, TOP_K, Answer, Findings, Oracle, compare, torch_beside_transformers

ASK = {"return_attention_tokens": True, "top_k_attention": TOP_K, "attention_head_stats": True}
SOURCES = ("tap", "probe", "recompute")
TOLERANCE = {"float32": 2e-3, "bfloat16": 3e-2}
# Operators around attention whose CUDA kernels SGLang compiles for 16 bits, or compiles when they are first called.
NATIVE = ("layernorm.RMSNorm", "activation.SiluAndMul", "rotary_embedding.base.RotaryEmbedding")

SENTENCES = (
    "The lighthouse keeper climbed the stairs before sunset and cleaned the great lens.",
    "A baker on the corner sells dark bread, and the queue reaches the bridge by seven.",
    "Rain fell on the harbour all night, so the fishing boats stayed at the quay.",
    "The museum keeps a map of the coast that a sailor drew in 1784.",
    "Every spring the river carries sand into the bay and the channel has to be dredged.",
    "Two children counted the trains that crossed the valley and wrote the numbers down.",
    "The old clock in the town hall is four minutes slow, which nobody wants to change.",
)


def _story(first: int, count: int) -> str:
    return " ".join(f"{n}. {SENTENCES[n % len(SENTENCES)]}" for n in range(first, first + count))


# Prompts of one group are sent at once, the groups one after the other.
PROMPTS: dict[str, list[str]] = {
    "short": ["What is the capital of France?"],
    "long": [_story(1, 27) + " Which sentences are about the sea, and what do they have in common?"],
    "prefix": [_story(40, 9) + " Who climbed the stairs?"],
    "prefix again": [_story(40, 9) + " What does the baker sell, and when does the queue reach the bridge?"],
    "eight at once": [
        "Why is the sky blue?",
        "Name three rivers in Europe and say where each of them ends.",
        "Write a haiku about snow.",
        "Translate into French: the cat sleeps on the warm roof.",
        "What is 17 times 23? Explain every step.",
        "List the planets of the solar system from the Sun outwards, with one fact about each of them.",
        "Who wrote Faust?",
        f"Continue this text in the same style: {_story(60, 3)}",
    ],
}


def started(name: str, port: int, options: argparse.Namespace, folder: Path) -> Server:
    """A server with real weights that captures by the source that it is named after."""
    arguments = [
        "--model-path", options.model, "--dtype", options.dtype, "--attention-backend", options.backend,
        "--skip-tokenizer-init", "--context-length", "4096", "--max-running-requests", "8",
        "--max-total-tokens", "16384", "--cuda-graph-max-bs-decode", "8", "--mem-fraction-static",
        str(options.mem_fraction), "--return-attention-tokens", "--attention-capture-layers", options.layers,
        "--attention-fingerprint-max-steps", "0", *options.server,
    ]  # fmt: skip
    if name != "recompute":
        arguments += ["--attention-capture-source", name]
    if options.derotate:
        arguments.append("--attention-derotate")
    environment: dict[str, str] = {}
    if on_cpu(options):
        from geomcli import engine_plan, models

        arguments += ["--disable-overlap-schedule", "--sleep-on-idle"]
        environment = dict(engine_plan.plan(models.Resolved(options.model, "oracle", None), device="cpu").environment)
    elif options.dtype == "float32":
        environment = with_native_operators(folder)
    return Server(name, port, folder, arguments, environment)


def on_cpu(options: argparse.Namespace) -> bool:
    return value_of("--device", options.server) == "cpu"


def value_of(flag: str, arguments: list[str]) -> str | None:
    """The last value of a flag among a server's arguments."""
    found = None
    for place, argument in enumerate(arguments):
        if argument == flag:
            found = next(iter(arguments[place + 1 :]), None)
        elif argument.startswith(flag + "="):
            found = argument.split("=", 1)[1]
    return found


def with_native_operators(folder: Path) -> dict[str, str]:
    """Environment in which SGLang finds `use_native_operators` as a plugin, beside geom's."""
    site = folder / "native_operators"
    made = site / "gpu_oracle-0.dist-info"
    made.mkdir(parents=True, exist_ok=True)
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: gpu-oracle\nVersion: 0\n")
    (made / "entry_points.txt").write_text("[sglang.srt.plugins]\ngpu_oracle = gpu_oracle:use_native_operators\n")
    paths = [str(site.resolve()), str(Path(__file__).parent.resolve()), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "SGLANG_PLUGINS": "geom,gpu_oracle"}


def use_native_operators() -> None:
    """SGLang plugin: the operators in NATIVE run by SGLang's own torch versions, in the process that has the model."""
    if multiprocessing.parent_process() is None:
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for operator in NATIVE:
        HookRegistry.register(f"sglang.srt.layers.{operator}.forward_cuda", _forward_native, HookType.REPLACE)


def _forward_native(operator: Any, *args: Any, **kwargs: Any) -> Any:
    return operator.forward_native(*args, **kwargs)


async def collect(options: argparse.Namespace) -> tuple[dict[str, list[Answer]], dict[str, Any]]:
    """The answers of each source's server, and its capabilities after them."""
    folder = Path(options.logs or tempfile.mkdtemp(prefix="geom-oracle-"))
    folder.mkdir(parents=True, exist_ok=True)
    prompts = tokenised(options.model)
    answers: dict[str, list[Answer]] = {}
    capabilities: dict[str, Any] = {}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600), read_bufsize=1 << 20) as session:
        for number, source in enumerate(options.sources):
            began = time.monotonic()
            engine = started(source, options.port + number, options, folder)
            try:
                await engine.ready(session)
                print(f"{source} ready after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
                answers[source] = []
                for name, group in prompts.items():
                    fields = {**ASK, **({"attention_derotate": True} if options.derotate else {})}
                    sent = (entries(session, engine.url, prompt, options.tokens, fields) for prompt in group)
                    for prompt, got in zip(group, await asyncio.gather(*sent), strict=True):
                        cached = got.get("meta_info", {}).get("cached_tokens", 0)
                        answers[source].append(
                            Answer(name, prompt, got["output_ids"], got.get("attention_tokens", []), cached)
                        )
                async with session.get(engine.url + "/v1/attention/capabilities") as response:
                    capabilities[source] = await response.json()
            finally:
                engine.stop()
            if capabilities[source]["source"] != source:
                sys.exit(f"the server of {source} captured by {capabilities[source]['source']}")
            print(f"{source} done after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
            await asyncio.sleep(2)  # until the driver has given the memory of the processes back
    return answers, capabilities


def tokenised(folder: str) -> dict[str, list[list[int]]]:
    """PROMPTS as token ids, by the model's chat template where it has one."""
    torch_beside_transformers()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)

    def ids(text: str) -> list[int]:
        if not tokenizer.chat_template:
            return list(tokenizer.encode(text))
        message = [{"role": "user", "content": text}]
        whole = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        return list(tokenizer.encode(whole, add_special_tokens=False))

    return {name: [ids(text) for text in group] for name, group in PROMPTS.items()}


def summary(source: str, found: Findings, answers: list[Answer], layers: list[int]) -> dict[str, Any]:
    """One source's row of the table, and the same by layer and by prompt."""

    def largest(measure: str, **which: Any) -> float | None:
        values = found.values(measure, **which)
        return float(values.max()) if values.size else None

    differences = [measure for measure in found.measures() if measure != "in top k"]
    in_top_k = found.values("in top k")
    return {
        "source": source,
        "entries": found.entries,
        "faults": len(found.faults),
        "faults_named": found.faults[:20],
        "links": int(in_top_k.size),
        "in_top_k": float(in_top_k.mean()) if in_top_k.size else None,
        "largest": {measure: largest(measure) for measure in differences},
        "p99": {m: float(np.quantile(found.values(m), 0.99)) for m in differences if found.values(m).size},
        "largest_by_layer": {n: {m: largest(m, layer=n) for m in ("probability", "missed")} for n in layers},
        "largest_by_prompt": {n: {m: largest(m, prompt=n) for m in ("probability", "missed")} for n in PROMPTS},
        "worst_link": found.worst,
        "same_tokens": found.same_tokens,
        "tokens": found.tokens,
        "requests": [{"name": a.name, "prompt": len(a.prompt), "cached": a.cached} for a in answers],
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    answers, capabilities = asyncio.run(collect(options))
    longest = max(len(a.prompt) + len(a.output) for of_source in answers.values() for a in of_source)
    # The engine cuts the model to fewer layers by this flag; so does the oracle.
    overrides = json.loads(value_of("--json-model-override-args", options.server) or "{}")
    oracle = Oracle(options.model, options.dtype, longest, overrides)
    rows = []
    for source, of_source in answers.items():
        began = time.monotonic()
        layers = capabilities[source]["layers_captured"]
        found = compare(oracle, of_source, layers, capabilities[source]["sink_tokens"])
        rows.append(summary(source, found, of_source, layers))
        print(f"{source} compared after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    settings = {k: v for k, v in vars(options).items() if k not in ("json", "logs")}
    settings["triton_f32_default"] = os.environ.get("TRITON_F32_DEFAULT")
    settings["native_operators"] = options.dtype == "float32" and not on_cpu(options)
    about = {"dtype": oracle.dtype, "device": oracle.device, "parameters": oracle.parameters}
    return {"machine": machine(), "settings": settings, "oracle": about, "capabilities": capabilities, "rows": rows}


def table(document: dict[str, Any]) -> str:
    """The results as Markdown."""
    where, settings, oracle = document["machine"], document["settings"], document["oracle"]
    lines = [
        f"{where['gpu'] or 'CPU'}, SGLang {where['sglang']}, torch {where['torch']}, Triton {where['triton']}; "
        f"{Path(settings['model']).name}, backend {settings['backend']}, layers {settings['layers']}, "
        f"{settings['tokens']} tokens an answer; further arguments: `{' '.join(settings['server']) or 'none'}`. "
        f"Oracle: {oracle['dtype']} on {oracle['device']}, {oracle['parameters'] / 1e6:.0f} million parameters.",
        "",
        "| source | dtype | entries | with an error | probability of a link, largest | 99 % | entropy bits, largest "
        "| 99 % | fingerprint, largest | 99 % | links in the oracle's top k |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in document["rows"]:
        numbers = [
            f"{row[which][name]:.1e}" if row[which].get(name) is not None else "–"
            for name in ("probability", "entropy_bits", "fingerprint")
            for which in ("largest", "p99")
        ]
        share = "–" if row["in_top_k"] is None else f"{row['in_top_k']:.2%}"
        cells = [row["source"], settings["dtype"], row["entries"], row["faults"], *numbers, share]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines.append("")
    for row in document["rows"]:
        found, source = row["largest"], row["source"]
        if row["links"]:
            heads = ", ".join(f"{name} {found['head ' + name]:.1e}" for name in HEAD_STATISTICS)
            lines += [
                f"- {source}: {row['links']} links; the strongest key left out exceeds the weakest link by at most "
                f"{found['missed']:.1e}",
                f"- {source}: largest difference of sink_mass {found['sink_mass']:.1e}, topk_mass "
                f"{found['topk_mass']:.1e}, the request's fingerprint {found['request fingerprint']:.1e}, head "
                f"statistics: {heads}",
            ]
        if "content" in found:
            lines.append(
                f"- {source}: largest difference of a link's content score {found['content']:.1e} (99 %: "
                f"{row['p99']['content']:.1e}), of its position score {found['position']:.1e} "
                f"({row['p99']['position']:.1e})"
            )
        lines.append(
            f"- {source}: {row['same_tokens']} of {row['tokens']} tokens are the oracle's likeliest; "
            f"{sum(r['cached'] for r in row['requests'])} prompt tokens came from the prefix cache; CUDA graphs: "
            f"{document['capabilities'][source]['cuda_graph']}"
        )
    if settings["triton_f32_default"]:
        lines.append(f"- TRITON_F32_DEFAULT={settings['triton_f32_default']}")
    if settings["native_operators"]:
        lines.append(f"- by SGLang's own torch versions: {', '.join(NATIVE)}")
    return "\n".join(lines)


def refusals(document: dict[str, Any], tolerance: float) -> list[str]:
    """What keeps the entries from being the oracle's, one sentence each."""
    found = []
    for row in document["rows"]:
        if row["faults"] or not row["entries"]:
            found.append(f"{row['source']}: {row['faults']} of {row['entries']} entries; {row['faults_named'][:3]}")
        for what in ("probability", "missed"):
            difference = row["largest"].get(what)
            if difference is not None and not difference <= tolerance:
                found.append(f"{row['source']}: {what} is off by {difference:.2e}, more than {tolerance:.0e}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face folder with real weights")
    parser.add_argument("--dtype", default="float32", choices=list(TOLERANCE))
    parser.add_argument("--backend", default="triton")
    parser.add_argument("--sources", nargs="+", default=["tap", "probe"], choices=SOURCES)
    parser.add_argument("--layers", default="auto")
    parser.add_argument("--tokens", type=int, default=48, help="tokens to generate")
    parser.add_argument("--derotate", action="store_true", help="scores by content and position too (Llama models)")
    parser.add_argument("--tolerance", type=float, help="of a probability; by default 2e-3, in bfloat16 3e-2")
    parser.add_argument("--mem-fraction", type=float, default=0.5)
    parser.add_argument("--port", type=int, default=30500)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--logs", help="folder for the servers' logs")
    parser.add_argument("--server", nargs=argparse.REMAINDER, default=[], help="further arguments for every server")
    options = parser.parse_args()
    options.tolerance = TOLERANCE[options.dtype] if options.tolerance is None else options.tolerance
    # Ended from outside, the servers end too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    document = measure(options)
    document["refusals"] = refusals(document, options.tolerance)
    if options.json:
        options.json.write_text(json.dumps(document, indent=1))
    print(table(document))
    if document["refusals"]:
        sys.exit("\n".join(document["refusals"]))


if __name__ == "__main__":
    main()
