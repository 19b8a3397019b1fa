"""What logit statistics take of a GPU: the two kernels against the same in torch, and against the bytes.

    python benchmarks/gpu_logit_statistics.py [--vocabulary 151936] [--json FILE]

Median microseconds from the call to the end of both steps (before and after sampling), launches included, interleaved;
`copied` is a copy of the rows alone: what has to be read and written at least.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from geomcli.server_patch.logit_statistics import Before, Fused

ROUNDS = 60


def timed(call: Callable[[], object]) -> float:
    """Microseconds."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return 1e6 * (time.perf_counter() - began)


def of_shape(m: int, vocabulary: int, dtype: torch.dtype) -> dict[str, object]:
    logits = torch.randn(m, vocabulary, device="cuda").mul_(4).to(dtype)
    rows = torch.arange(m, device="cuda")
    tokens = torch.randint(vocabulary, (m,), device="cuda")
    calls: dict[str, Callable[[], object]] = {
        "torch": lambda: Before(rows, logits.index_select(0, rows).float()).of(tokens),
        "kernels": lambda: Fused(rows, logits).of(tokens),
        "copied": logits.clone,
    }
    largest = (calls["torch"]() - calls["kernels"]()).abs().max().item()  # type: ignore[operator]
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name in random.sample(list(calls), len(calls)):
            found[name].append(timed(calls[name]))
    row = {"rows": m, "dtype": str(dtype).removeprefix("torch."), "largest difference": largest}
    return row | {name: round(statistics.median(times), 1) for name, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    document = {"gpu": torch.cuda.get_device_name(), "vocabulary": options.vocabulary, "rows": []}
    for dtype in (torch.float32, torch.bfloat16):
        for m in (1, 8, 32, 128):
            document["rows"].append(of_shape(m, options.vocabulary, dtype))
            print(json.dumps(document["rows"][-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
