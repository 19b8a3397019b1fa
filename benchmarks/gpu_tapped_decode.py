"""What storing its logits costs SGLang's Triton decode kernel on a GPU, inside a CUDA graph.

    python benchmarks/gpu_tapped_decode.py [--json FILE]

One attention layer of Qwen3-4B's and Llama-3-8B's shape in bf16, keys at random slots. For each batch and context:
microseconds of SGLang's decode attention as it is, tapped with no row asking, and tapped with all rows asking. `stores`
is what the stored bytes take at half the copy rate measured in the same run. Rounds are interleaved; median, 10th and
90th percentile.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from geomcli.kernels import tap

# Beside this script.
sys.path.insert(0, str(Path(__file__).parent))
from gpu_kernels import SHAPE, copy_rate, graph_of, microseconds

SIZES = ((1, 1024), (8, 1024), (32, 1024), (128, 1024), (8, 4096), (32, 4096), (1, 16384), (8, 16384))
ROUNDS, SPLITS = 15, 8  # SGLang's default for triton_attention_num_kv_splits


def measure(batch: int, context: int, rate: float, score_mod: Any = tap.store_logits) -> list[dict[str, object]]:
    from sglang.kernels.ops.attention.decode_attention import decode_attention_fwd

    heads, key_heads, dim = SHAPE.heads, SHAPE.key_heads, SHAPE.dim
    slots = batch * context + 1
    keys, values = (torch.randn(slots, key_heads, dim, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    query = torch.randn(batch, heads, dim, device="cuda", dtype=torch.bfloat16)
    out = torch.empty_like(query)
    indices = (torch.randperm(batch * context, device="cuda") + 1).to(torch.int64)
    starts = torch.arange(0, (batch + 1) * context, context, dtype=torch.int32, device="cuda")
    partial = torch.empty(batch, heads, SPLITS, dim, device="cuda")
    sums = torch.empty(batch, heads, SPLITS, device="cuda")
    splits = torch.full((batch,), SPLITS, dtype=torch.int32, device="cuda")
    tapped = torch.zeros(batch, heads, context + 16, device="cuda")

    def attention(**how: Any) -> None:
        decode_attention_fwd(query, keys, values, out, starts, indices, partial, sums, splits, SPLITS, dim**-0.5, 1.0,
                             1.0, **how)  # fmt: skip

    plain = graph_of(attention)
    tapping = graph_of(lambda: attention(score_mod=score_mod, aux_tensors=[tapped]))
    times: dict[str, list[float]] = {"plain": [], "tapped, nobody asks": [], "tapped, all ask": []}
    for _ in range(ROUNDS):
        for name in random.sample(list(times), len(times)):
            tapped[:, 0, -1] = float(name == "tapped, all ask")
            graph = plain if name == "plain" else tapping
            graph.replay()
            times[name].append(microseconds(graph))
    base = statistics.median(times["plain"])
    results: list[dict[str, object]] = []
    for name, found in times.items():
        cuts, median = statistics.quantiles(found, n=10), statistics.median(found)
        stores = batch * heads * context * 4 / (rate / 2) * 1e6 if name == "tapped, all ask" else 0.0
        results.append({
            "batch": batch, "context": context, "what": name, "us": round(median, 2), "p10": round(cuts[0], 2),
            "p90": round(cuts[-1], 2), "extra_us": round(median - base, 2), "stores_us": round(stores, 2),
        })  # fmt: skip
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results here")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu_tapped_decode.py needs a CUDA GPU.")
    rate = copy_rate()
    results = []
    for batch, context in SIZES:
        for result in measure(batch, context, rate):
            results.append(result)
            print(" ".join(f"{k}={v}" for k, v in result.items()), flush=True)
        torch.cuda.empty_cache()
    if arguments.json:
        document = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "results": results}
        arguments.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
