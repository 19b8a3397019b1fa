"""What the capture kernels cost on a GPU, inside a CUDA graph, against the bytes that they cannot avoid reading.

    python benchmarks/gpu_kernels.py [--layers 4] [--json FILE]

Captured layers of Qwen3-4B's and Llama-3-8B's shape in bf16, all in one set of launches. For each batch and context:
microseconds of a step with no row asking (idle), all rows asking for fingerprints, all rows asking for 16 links.
`floor` is the time that the copy rate measured in the same run needs for the layers' keys (probe) or for their logits
(tap). Rounds are interleaved; median, 10th and 90th percentile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable

import torch

from geomcli.kernels import layout, probe
from geomcli.kernels.buffers import Buffers, Layer, Shape

SHAPE = Shape(32, 8, 128)  # of Qwen3-4B and of Llama-3-8B
BATCHES = (1, 8, 32, 128)
CONTEXTS = (1024, 4096, 16384)
ROUNDS, REPLAYS = 15, 20
MAX_BYTES = 30_000_000_000


def control(top_k: int, enabled: bool, layers: int) -> list[int]:
    row = [0] * layout.CONTROL_WORDS
    row[layout.C_ENABLED], row[layout.C_STAMP], row[layout.C_LAYERS] = int(enabled), 1, (1 << layers) - 1
    row[layout.C_PROMPT_LEN], row[layout.C_SINK_TOKENS] = 1, 4
    row[layout.C_TOP_K], row[layout.C_STRIDE] = top_k, 1
    row[layout.C_HEADS : layout.C_HEADS + 4] = layout.head_words(None, 32)
    return row


def graph_of(work: Callable[[], None]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(REPLAYS):
            work()
    return graph


def microseconds(graph: torch.cuda.CUDAGraph) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1000 / REPLAYS


def copy_rate() -> float:
    """Bytes read a second of a device-to-device copy (it writes as many)."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)

    graph = graph_of(copy)
    return 2 * source.numel() / (min(microseconds(graph) for _ in range(5)) / 1e6)


def measure(shape: Shape, batch: int, context: int, n_layers: int, rate: float) -> list[dict[str, object]]:
    slots = batch * context + 1
    keys = [
        torch.randn(slots, shape.key_heads, shape.dim, device="cuda", dtype=torch.bfloat16) for _ in range(n_layers)
    ]
    query = torch.randn(batch, shape.heads, shape.dim, device="cuda", dtype=torch.bfloat16)
    order = (torch.randperm(batch * context, device="cuda") + 1).to(torch.int64)
    lengths = torch.full((batch,), context, dtype=torch.int64, device="cuda")
    pool = torch.arange(1, batch + 1, device="cuda")
    starts = torch.arange(0, (batch + 1) * context, context, dtype=torch.int32, device="cuda")
    rows = probe.Rows(batch, pool, lengths, order, starts)
    results: list[dict[str, object]] = []
    for source in ("probe", "tap"):
        tapped = source == "tap"
        buffers = Buffers(shape, layers=[Layer(shape.dim**-0.5)] * n_layers, rows=batch, pool_rows=batch + 1,
                          device="cuda", dtype=torch.bfloat16, tap_length=context if tapped else 0)  # fmt: skip
        buffers.use_keys(keys)
        if buffers.tap is not None:
            buffers.tap.normal_()

        def step(buffers: Buffers = buffers, tapped: bool = tapped) -> None:
            if not tapped:
                for index in range(n_layers):
                    probe.keep_queries(buffers, index, query)
            probe.launch(buffers, rows, tapped=tapped)

        graph = graph_of(step)
        times: dict[str, list[float]] = {"idle": [], "fingerprint": [], "raw16": []}
        settings = {
            "idle": control(0, False, n_layers), "fingerprint": control(0, True, n_layers),
            "raw16": control(16, True, n_layers),
        }  # fmt: skip
        for _ in range(ROUNDS):
            for name, words in settings.items():
                buffers.write_control(list(range(1, batch + 1)), [words] * batch)
                graph.replay()
                times[name].append(microseconds(graph))
        read = n_layers * (keys[0].numel() * 2 if source == "probe" else batch * shape.heads * context * 4)
        for name, values in times.items():
            cuts = statistics.quantiles(values, n=10)
            floor = 0.0 if name == "idle" else read / rate * 1e6
            results.append({
                "source": source, "batch": batch, "context": context, "what": name,
                "us": round(statistics.median(values), 2), "p10": round(cuts[0], 2), "p90": round(cuts[-1], 2),
                "floor_us": round(floor, 2), "of_floor": round(floor / statistics.median(values), 3),
            })  # fmt: skip
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write the results here")
    parser.add_argument("--layers", type=int, default=4, help="captured layers")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu_kernels.py needs a CUDA GPU.")
    rate = copy_rate()
    shape = SHAPE
    results = []
    for batch in BATCHES:
        for context in CONTEXTS:
            each = shape.key_heads * shape.dim * 2 + shape.heads * 4
            if arguments.layers * batch * context * each > MAX_BYTES:
                continue
            for result in measure(shape, batch, context, arguments.layers, rate):
                results.append(result)
                print(" ".join(f"{k}={v}" for k, v in result.items()), flush=True)
            torch.cuda.empty_cache()
    document = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "layers": arguments.layers,
        "copy_bytes_a_second": rate,
        "results": results,
    }
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(document, file, indent=1)


if __name__ == "__main__":
    main()
