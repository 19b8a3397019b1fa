"""What the GPU benchmarks have in common: a server of theirs, its processes, and what is asked of it."""

from __future__ import annotations

import asyncio
import os
import platform
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp

FINGERPRINT = {"return_attention_tokens": True, "attention_fingerprint_only": True}
ASK = {
    "plain": {},
    "again": {},
    "twin": {},
    "idle": {},
    "last layer": FINGERPRINT,
    "fingerprint": FINGERPRINT,
    "raw": {"return_attention_tokens": True, "top_k_attention": 16},
}
PROFILE_TOKENS = 1500
BOOT_SECONDS = 240
LAUNCH = (sys.executable, "-P", "-W", "ignore", "-m", "sglang.launch_server", "--host", "127.0.0.1")
_LOGGED = re.compile(r"Decode batch.*#running-req: (\d+), #token: (\d+).*gen throughput \(token/s\): ([\d.]+)")


class Server:
    """A real SGLang server in a process session of its own; its output goes to folder/name.log."""

    def __init__(
        self, name: str, port: int, folder: Path, arguments: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        self.name, self.url, self.log = name, f"http://127.0.0.1:{port}", folder / f"{name}.log"
        self.layers: list[int] = []  # captured ones, once they are known
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*LAUNCH, "--port", str(port), *arguments], env={**os.environ, **environment}, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    async def ready(self, session: aiohttp.ClientSession) -> None:
        """SystemExit with the end of the log when it does not get ready."""
        deadline = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                async with session.get(self.url + "/health") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.5)
        sys.exit(f"engine {self.name} did not get ready:\n{self.log.read_text(errors='replace')[-4000:]}")

    def processes(self) -> list[tuple[int, str]]:
        """(pid, name) of the server's processes: main, scheduler, detokenizer, entries (the plugin's own)."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                session = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[3])
                if session == self.process.pid:
                    command = (folder / "cmdline").read_text()
                    title = command.split("\0")[0].split("::")
                    name = title[1].split("_")[0].strip() if len(title) > 1 else "main"
                    found.append((int(folder.name), "entries" if "server_patch.worker" in command else name))
            except (OSError, ValueError):
                continue
        return found

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time so far of the server's processes, by what they do."""
        found: dict[str, float] = {}
        for pid, name in self.processes():
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            found[name] = found.get(name, 0.0) + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return found

    def logged(self, start: int, requests: int, context: int, tokens: int) -> float | None:
        """Tokens/s by the scheduler's own log since byte `start`, over the second half of the answers' tokens.

        All conditions are compared over the same lengths, and without what happens behind the scheduler.
        """
        rates = []
        with self.log.open(errors="replace") as log:
            log.seek(start)
            for running, held, rate in _LOGGED.findall(log.read()):
                if int(running) == requests and tokens / 2 < int(held) / requests - context <= tokens:
                    rates.append(float(rate))
        return statistics.mean(rates) if rates else None

    def stop(self) -> None:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, sign)
                self.process.wait(8)
            except ProcessLookupError:
                return
            except subprocess.TimeoutExpired:
                continue


def fields_of(what: str, server: Server) -> dict[str, Any]:
    """The request fields of a condition."""
    return {**ASK[what], **({"attention_capture_layer_ids": [server.layers[-1]]} if what == "last layer" else {})}


async def stream(
    session: aiohttp.ClientSession, url: str, prompt: list[int], n: int, interval: int, fields: Any
) -> list[float]:
    """Times at which the events of one request arrived; all but perhaps the last carry as many tokens."""
    sampling: dict[str, Any] = {"temperature": 0, "max_new_tokens": n, "ignore_eos": True}
    if interval > 1:
        sampling["stream_interval"] = interval
    body = {"input_ids": prompt, "sampling_params": sampling, "stream": True, **fields}
    arrivals: list[float] = []
    async with session.post(url + "/generate", json=body) as response:
        response.raise_for_status()
        async for data in response.content.iter_any():
            arrivals += [time.perf_counter()] * data.count(b"data: {")
    return arrivals


async def entries(session: aiohttp.ClientSession, url: str, prompt: list[int], n: int, fields: Any) -> dict[str, Any]:
    sampling = {"temperature": 0, "max_new_tokens": n, "ignore_eos": True}
    async with session.post(url + "/generate", json={"input_ids": prompt, "sampling_params": sampling, **fields}) as r:
        r.raise_for_status()
        return dict(await r.json())


def random_prompt(options: Any, length: int) -> list[int]:
    return [random.randrange(100, options.vocabulary) for _ in range(length)]


def commit() -> str:
    """What was measured: `COMMIT` where the machine has no repository, else what git says."""
    said = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True,
                          text=True, check=False)  # fmt: skip
    return os.environ.get("COMMIT") or said.stdout.strip()


def machine() -> dict[str, str]:
    from importlib.metadata import version

    import torch
    import triton

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    versions = {"torch": torch.__version__, "triton": triton.__version__, "sglang": version("sglang")}
    return {"gpu": gpu, **versions, "commit": commit()}
