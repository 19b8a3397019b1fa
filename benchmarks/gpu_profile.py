"""Where a decode step's time goes on a GPU server, and every call in it that could wait for the device.

Used by `gpu_capture.py --profile`. SGLang's own profiler (/start_profile, PyTorch's, CUPTI below it) records a dozen
decode steps, of which this counts: microseconds a step, the time the GPU was busy, that of the capture kernels, and the
CUDA runtime's calls that can wait for the device (synchronising a stream, an event or the device; copies that are not
asynchronous; allocations). A capture that reads back from the device shows as one more such call a step than the plain
server makes. With py-spy installed, the scheduler's time is also split by what Python was doing.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
from gpu_servers import PROFILE_TOKENS, Server, fields_of, random_prompt, stream

STEPS = 12
SPY_SECONDS = 3
OURS = ("partial_kernel", "mean_kernel", "finish_kernel", "open_kernel")
WAITING = ("Synchronize", "cudaMemcpy", "cuMemcpy", "cudaHostAlloc", "cudaMalloc", "cudaFree")
# What the plugin does in the scheduler beside wrapping SGLang's own functions.
PLUGIN = ("before_process", "after_sample", "after_init_new", "before_copy_to_cpu", "after_make_graph_key")
GPU = ("kernel", "gpu_memcpy", "gpu_memset")


def summary(trace: dict[str, Any]) -> dict[str, Any]:
    """Per decode step, in microseconds."""
    events = [e for e in trace["traceEvents"] if e.get("ph") == "X"]
    launches = sorted(e["ts"] for e in events if e["name"] == "cudaGraphLaunch")
    if len(launches) < 3:
        return {"steps": len(launches)}
    first, last, steps = launches[0], launches[-1], len(launches) - 1
    inside = [e for e in events if first <= e["ts"] < last]
    on_gpu = [e for e in inside if e.get("cat") in GPU]
    calls = [e for e in inside if e.get("cat") in ("cuda_runtime", "cuda_driver")]
    waiting = [e for e in calls if any(word in e["name"] for word in WAITING)]
    kernels: Counter[str] = Counter()
    for event in on_gpu:
        kernels[event["name"].split("(")[0][:60]] += event["dur"]
    return {
        "steps": steps,
        "step_us": (last - first) / steps,
        "gpu_busy_us": union([(e["ts"], e["ts"] + e["dur"]) for e in on_gpu]) / steps,
        "capture_kernels_us": sum(e["dur"] for e in on_gpu if e["name"].startswith(OURS)) / steps,
        "capture_launches": sum(e["name"].startswith(OURS) for e in on_gpu) / steps,
        "calls": {n: c / steps for n, c in sorted(Counter(e["name"] for e in waiting).items())},
        "calls_us": {n: sum(e["dur"] for e in waiting if e["name"] == n) / steps for n in {e["name"] for e in waiting}},
        "copies": {n: c / steps for n, c in sorted(Counter(e["name"] for e in on_gpu if "Mem" in e["name"]).items())},
        "kernels_us": {name: round(us / steps, 1) for name, us in kernels.most_common(14)},
    }


def union(spans: list[tuple[float, float]]) -> float:
    """Length of what the spans cover together."""
    total, end = 0.0, float("-inf")
    for begin, stop in sorted(spans):
        if stop > end:
            total += stop - max(begin, end)
            end = stop
    return total


def spied(pid: int, folder: Path) -> dict[str, Any]:
    """Shares of the scheduler's samples: waiting for the device, in the plugin, and the functions it was most in."""
    spy = shutil.which("py-spy")
    if spy is None:
        return {}
    out = folder / f"spy-{pid}-{time.monotonic_ns()}.txt"
    command = [spy, "record", "-p", str(pid), "-d", str(SPY_SECONDS), "-r", "500", "-f", "raw", "-o", str(out)]
    ran = subprocess.run([*command, "--nonblocking"], capture_output=True, text=True, check=False)
    if not out.exists():
        return {"error": ran.stderr[-300:]}
    stacks = [line.rsplit(" ", 1) for line in out.read_text().splitlines()]
    samples = [(stack.split(";"), int(n)) for stack, n in stacks if "event_loop" in stack]
    total = sum(n for _, n in samples) or 1

    def share(*words: str) -> float:
        return round(sum(n for stack, n in samples if any(f.startswith(words) for f in stack)) / total, 4)

    inclusive: Counter[str] = Counter()
    for stack, n in samples:
        inclusive.update(dict.fromkeys({frame.rsplit(":", 1)[0] for frame in stack}, n))
    return {
        "samples": total,
        "waiting": share("synchronize (", "Event.synchronize ("),
        "plugin": share(*PLUGIN),
        "inclusive": {name: round(n / total, 3) for name, n in inclusive.most_common(60)},
    }


async def profiled(
    session: aiohttp.ClientSession, engine: Server, what: str, options: Any, shape: Any
) -> dict[str, Any]:
    requests, context, interval = shape
    fields = fields_of(what, engine)
    load = [
        asyncio.create_task(
            stream(session, engine.url, random_prompt(options, context), PROFILE_TOKENS, interval, fields)
        )
        for _ in range(requests)
    ]
    await asyncio.sleep(1 + requests * context / 30_000)
    folder = Path(tempfile.mkdtemp(prefix="geom-profile-"))
    scheduler = next(pid for pid, name in engine.processes() if name == "scheduler")
    spy = await asyncio.to_thread(spied, scheduler, folder)
    async with session.post(
        engine.url + "/start_profile", json={"output_dir": str(folder), "num_steps": STEPS}
    ) as reply:
        reply.raise_for_status()
    await asyncio.gather(*load)
    for _ in range(60):
        traces = list(folder.glob("*.trace.json.gz"))
        if traces:
            await asyncio.sleep(1)
            with gzip.open(traces[0]) as file:
                return {**summary(json.load(file)), "spy": spy}
        await asyncio.sleep(0.5)
    return {"spy": spy}


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| requests × context | engine | condition | µs a step | GPU busy | ours | calls a step that may wait |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        if "step_us" in r:
            calls = ", ".join(f"{name} {n:.2f}" for name, n in r["calls"].items())
            lines.append(f"| {r['requests']} × {r['context']} | {r['engine']} | {r['what']} | {r['step_us']:.0f} | "
                         f"{r['gpu_busy_us']:.0f} | {r['capture_kernels_us']:.1f} | {calls} |")  # fmt: skip
    return "\n".join(lines)
