"""Servers of a benchmark on this machine: a free port, and waiting until one answers."""

from __future__ import annotations

import shlex
import socket
import subprocess
import sys
import time

import httpx

BOOT_SECONDS = 300


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait(url: str, process: subprocess.Popen[bytes], log: str = "") -> None:
    """Until /health answers with 200; ends the benchmark where that does not come. log: where its reason would be."""
    deadline = time.monotonic() + BOOT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(url + "/health", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    how = "did not get ready" if process.poll() is None else f"ended with code {process.returncode}"
    sys.exit(f"{shlex.join(map(str, process.args))} {how}. {log}")  # type: ignore[arg-type]
