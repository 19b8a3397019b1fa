"""What capture costs: tokens/s of the same server with the plugin absent, idle, and capturing.

Two engines stand side by side (one with the plugin, one without), only one works at a time, and the conditions are
interleaved in random order within every round, so that a slow minute of the machine hits all of them. Reported are
the ratios to the plain engine of the same round: median, quartiles, and a bootstrap interval of the median; and the CPU
time that the engine's processes spent on a token, which a busy neighbour disturbs less than the clock.

    python benchmarks/overhead.py [--rounds 10] [--streams 4] [--tokens 64] [--json FILE]

Uses the installed `geom` command and HTTP, nothing of the package's inside.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parent))
from local_servers import free_port, wait

CONDITIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "absent": ("plain", {}),
    "idle": ("plugin", {}),
    "fingerprint": ("plugin", {"return_attention_tokens": True, "attention_fingerprint_only": True}),
    "raw k=16": ("plugin", {"return_attention_tokens": True, "top_k_attention": 16}),
}
PROMPT = "Write a long story about a lighthouse keeper and the number {}. Do not stop."


def start_engine(name: str, arguments: list[str], folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    geom = shutil.which("geom", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if geom is None:
        sys.exit("the command geom is not installed beside this Python")
    port = free_port()
    command = [geom, "serve", "--port", str(port), "--log", str(folder / f"{name}.log"), *arguments]
    environment = {**os.environ, "XDG_STATE_HOME": str(folder / name)}
    if name == "plain":
        # geom serve always loads its own plugin, so the plain engine gets the same command without it.
        printed = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, check=True, env=environment)
        command = ["env", "SGLANG_PLUGINS=none", "sh", "-c", f"exec env {printed.stdout.strip()}"]
        (folder / "plain").mkdir()
    log = (folder / f"{name}.out").open("wb")
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=log,
        stderr=log,
        start_new_session=True,
        cwd=folder / "plain" if name == "plain" else None,
    )
    return process, f"http://127.0.0.1:{port}"


async def one_stream(client: httpx.AsyncClient, url: str, number: int, tokens: int, fields: dict[str, Any]) -> int:
    body = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": PROMPT.format(number)}],
        "temperature": 0,
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        **fields,
    }
    size = 0
    async with client.stream("POST", url + "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for data in response.aiter_raw():
            size += len(data)
    return size


async def measure(url: str, streams: int, tokens: int, fields: dict[str, Any]) -> tuple[float, int]:
    """Tokens per second of all streams together, prefill included, and the bytes they sent."""
    async with httpx.AsyncClient(timeout=300) as client:
        began = time.perf_counter()
        sizes = await asyncio.gather(*(one_stream(client, url, n, tokens, fields) for n in range(streams)))
        return streams * tokens / (time.perf_counter() - began), sum(sizes)


def cpu_seconds(root: int) -> float:
    """CPU time of a process and all its living descendants, from /proc."""
    children: dict[int, list[int]] = {}
    spent: dict[int, float] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(folder.name))
            spent[int(folder.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    total, waiting = 0.0, [root]
    while waiting:
        pid = waiting.pop()
        total += spent.get(pid, 0.0)
        waiting += children.get(pid, [])
    return total


def bootstrap(values: list[float], draws: int = 2000) -> tuple[float, float]:
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(draws))
    return medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--layers", default="last")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    folder = Path(tempfile.mkdtemp(prefix="geom-overhead-"))
    processes: dict[str, subprocess.Popen[bytes]] = {}
    urls: dict[str, str] = {}
    try:
        for name, extra in (
            ("plugin", ["--attention-capture-layers", arguments.layers]),
            ("plain", ["--no-return-attention-tokens"]),
        ):
            processes[name], urls[name] = start_engine(name, extra, folder)
            wait(urls[name], processes[name])
        rates: dict[str, list[float]] = {name: [] for name in CONDITIONS}
        cpu: dict[str, list[float]] = {name: [] for name in CONDITIONS}
        sizes: dict[str, int] = {}
        order = list(CONDITIONS)
        for round_ in range(-1, arguments.rounds):  # round -1 warms up both engines
            random.Random(round_).shuffle(order)
            for name in order:
                engine, fields = CONDITIONS[name]
                spent = cpu_seconds(processes[engine].pid)
                rate, sizes[name] = asyncio.run(measure(urls[engine], arguments.streams, arguments.tokens, fields))
                spent = cpu_seconds(processes[engine].pid) - spent
                if round_ >= 0:
                    rates[name].append(rate)
                    cpu[name].append(1000 * spent / (arguments.streams * arguments.tokens))
            print(f"round {round_ + 1}/{arguments.rounds}", file=sys.stderr, flush=True)
    finally:
        for process in processes.values():
            os.killpg(process.pid, signal.SIGTERM)
        for process in processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)

    rows = []
    for name, values in rates.items():
        ratios = [value / plain for value, plain in zip(values, rates["absent"], strict=True)]
        quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
        low, high = bootstrap(ratios)
        rows.append(
            {
                "condition": name,
                "tokens_per_second": statistics.median(values),
                "ratio": statistics.median(ratios),
                "ratio_quartiles": [quartiles[0], quartiles[2]],
                "ratio_ci95": [low, high],
                "cpu_ms_per_token": statistics.median(cpu[name]),
                "cpu_ratio": statistics.median(c / plain for c, plain in zip(cpu[name], cpu["absent"], strict=True)),
                "bytes_per_token": sizes[name] / (arguments.streams * arguments.tokens),
            }
        )
    print(f"{os.cpu_count()} CPUs, Python {platform.python_version()}, {arguments.streams} streams x "
          f"{arguments.tokens} tokens, {arguments.rounds} rounds, layers {arguments.layers}")  # fmt: skip
    print(f"{'condition':<13}{'tok/s':>7}{'ratio':>8}  {'quartiles':<13}{'95% CI':<13}"
          f"{'CPU ms/token':>13}{'ratio':>8}{'B/token':>9}")  # fmt: skip
    for row in rows:
        q, c = row["ratio_quartiles"], row["ratio_ci95"]
        print(f"{row['condition']:<13}{row['tokens_per_second']:>7.1f}{row['ratio']:>8.3f}  {q[0]:.3f}-{q[1]:.3f}  "
              f"{c[0]:.3f}-{c[1]:.3f}  {row['cpu_ms_per_token']:>11.2f}{row['cpu_ratio']:>8.3f}"
              f"{row['bytes_per_token']:>9.0f}")  # fmt: skip
    if arguments.json:
        arguments.json.write_text(
            json.dumps(
                {"arguments": vars(arguments) | {"json": None}, "rows": rows, "rates": rates, "cpu": cpu}, indent=1
            )
        )


if __name__ == "__main__":
    main()
