"""What a streamed token costs SGLang's main process: its CPU time, without the plugin and with it. No GPU needed.

    python benchmarks/main_process.py --model DIR [--streams 128] [--site before=DIR after=DIR] [--json FILE]

Servers side by side on the CPU engine, cut to one layer so that tokens come fast, only one working at a time; the
conditions in random order within every round, each compared with the plain server of its own round. A site is a folder
that a version of the plugin is installed into (`pip install --no-deps --target DIR .`); without any the installed one
is measured. Only the main process counts: all its threads, by the kernel's clock. It has the first core for itself, so
that nobody takes its caches.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp

# `python -P` keeps this folder off the path.
sys.path.append(str(Path(__file__).parent))
from gpu_servers import FINGERPRINT, Server, commit, stream
from local_servers import free_port

CONTEXT = 8
SHIM = "geomcli/server_patch/cpu_shim"
ARGUMENTS = (
    "--device", "cpu", "--attention-backend", "torch_native", "--dtype", "float32", "--mem-fraction-static", "0.5",
    "--disable-overlap-schedule", "--sleep-on-idle", "--json-model-override-args", '{"num_hidden_layers": 1}',
)  # fmt: skip


def started(name: str, site: str | None, options: argparse.Namespace, folder: Path) -> Server:
    """`plain` has no plugin, but everything else of the others."""
    from importlib.util import find_spec

    if site is None:
        spec = find_spec("geomcli")
        assert spec is not None
        assert spec.origin is not None
        site = str(Path(spec.origin).parent.parent)
    environment = {
        "SGLANG_USE_CPU_ENGINE": "1", "PYTHONPATH": os.pathsep.join([str(Path(site) / SHIM), site]),
        "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    arguments = [
        "--model-path", options.model, *ARGUMENTS, "--max-running-requests", str(options.streams),
        "--max-total-tokens", str(options.streams * (CONTEXT + options.tokens + 16)), *options.server,
    ]  # fmt: skip
    if name == "plain":
        environment["SGLANG_PLUGINS"] = "none"
    else:
        arguments += ["--return-attention-tokens"]
    return Server(name, free_port(), folder, arguments, environment)


def main_seconds(server: Server) -> float:
    """CPU time so far of the main process, to the nanosecond."""
    pid = next(pid for pid, name in server.processes() if name == "main")
    spent = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        spent += int((task / "schedstat").read_text().split()[0])
    return spent / 1e9


def alone(server: Server) -> None:
    """Give the main process the first core, and everybody else the others."""
    first, *others = sorted(os.sched_getaffinity(0))
    for pid, name in server.processes():
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), [first] if name == "main" else others or [first])


async def sample(session: aiohttp.ClientSession, server: Server, fields: Any, options: argparse.Namespace) -> float:
    """Microseconds a token of the main process."""
    rng = random.Random(0)
    prompts = [[rng.randrange(100, 4000) for _ in range(CONTEXT)] for _ in range(options.streams)]
    before = main_seconds(server)
    events = await asyncio.gather(*(stream(session, server.url, p, options.tokens, 1, fields) for p in prompts))
    spent = main_seconds(server) - before
    expected = options.tokens
    if any(len(times) < expected - 2 for times in events):
        print(f"{server.name}: events of some streams came together", file=sys.stderr)
    return 1e6 * spent / (options.streams * options.tokens)


async def measured(servers: Mapping[str, Server], options: argparse.Namespace) -> dict[str, list[float]]:
    conditions: dict[str, tuple[Server, dict[str, Any]]] = {"plain": (servers["plain"], {})}
    for name, server in servers.items():
        if name != "plain":
            conditions |= {f"{name}, idle": (server, {}), name: (server, FINGERPRINT)}
    found: dict[str, list[float]] = {name: [] for name in conditions}
    order = list(conditions)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(None)) as session:
        for server in servers.values():
            await server.ready(session)
            alone(server)
        for round_ in range(-1, options.rounds):  # round -1 warms up
            random.Random(round_).shuffle(order)
            for name in order:
                cost = await sample(session, *conditions[name], options)
                if round_ >= 0:
                    found[name].append(cost)
            print(f"round {round_ + 1}/{options.rounds}", {k: v[-1:] for k, v in found.items()}, file=sys.stderr)
    return found


def row(values: list[float], plain: list[float]) -> dict[str, Any]:
    ratios = [value / other for value, other in zip(values, plain, strict=True)]
    extra = [value - other for value, other in zip(values, plain, strict=True)]
    return {
        "us": statistics.median(values), "extra_us": statistics.median(extra), "ratio": statistics.median(ratios),
        "least": min(ratios), "most": max(ratios),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--streams", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--site", nargs="*", default=[], metavar="NAME=DIR")
    parser.add_argument("--json", type=Path)
    parser.add_argument("server", nargs="*", help="further arguments of the servers, behind --")
    options = parser.parse_args()
    sites: dict[str, str | None] = dict(one.split("=", 1) for one in options.site) or {"plugin": None}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    folder = Path(tempfile.mkdtemp(prefix="geom-main-"))
    cores = os.sched_getaffinity(0)
    servers: dict[str, Server] = {}
    try:
        for name, site in {"plain": next(iter(sites.values())), **sites}.items():
            servers[name] = started(name, site, options, folder)
        os.sched_setaffinity(0, sorted(cores)[1:] or cores)
        found = asyncio.run(measured(servers, options))
    finally:
        for server in servers.values():
            server.stop()
    rows = {name: row(values, found["plain"]) for name, values in found.items()}
    print(f"{options.streams} streams x {options.tokens} tokens, {options.rounds} rounds {' '.join(options.server)}")
    print(f"{'condition':<16}{'µs/token':>9}{'extra':>7}{'ratio':>7}  {'spread'}")
    for name, of in rows.items():
        print(
            f"{name:<16}{of['us']:>9.1f}{of['extra_us']:>7.1f}{of['ratio']:>7.2f}  {of['least']:.2f} - {of['most']:.2f}"
        )
    if options.json:
        about = {"commit": commit(), "streams": options.streams, "tokens": options.tokens, "server": options.server}
        options.json.write_text(json.dumps({**about, "rows": rows, "samples": found}, indent=1))


if __name__ == "__main__":
    main()
