"""Starts the real engine through `geom serve` and ends it; what the tests of this folder stand on."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.conftest import GEOM

BOOT_SECONDS = 180
TWO_LAYERS = ("--json-model-override-args", '{"num_hidden_layers": 2}')


def free_port() -> int:
    """One below the ephemeral range: no connection of a test beside this one takes it before a server listens."""
    for port in random.sample(range(10_000, 20_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("none of a hundred ports is free")


@dataclass
class Server:
    url: str
    process: subprocess.Popen[str]
    output: Path
    log: Path

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=120, **options)

    def get(self, path: str) -> dict[str, Any]:
        return dict(httpx.get(self.url + path, timeout=30).raise_for_status().json())

    def chat(self, prompt: str = "Hi", **fields: Any) -> dict[str, Any]:
        response = self.post("/v1/chat/completions", chat_body(prompt, **fields))
        assert response.status_code == 200, response.text
        return dict(response.json())

    def engine_pid(self) -> int:
        children = subprocess.run(
            ["ps", "--ppid", str(self.process.pid), "-o", "pid="], capture_output=True, text=True, check=True
        )
        return int(children.stdout.split()[0])


def chat_body(prompt: str, **fields: Any) -> dict[str, Any]:
    return {
        "model": "smollm2",
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": 8,
        **fields,
    }


@contextlib.contextmanager
def served(
    folder: Path, *arguments: str, environment: dict[str, str] | None = None, port: int | None = None
) -> Iterator[Server]:
    """A ready server; its processes are gone when the block ends. AssertionError if it never gets ready."""
    process, output, log, port = launch(folder, *arguments, environment=environment, port=port)
    try:
        wait_until_ready(process, output)
        yield Server(f"http://127.0.0.1:{port}", process, output, log)
    finally:
        kill(process)


def launch(
    folder: Path, *arguments: str, environment: dict[str, str] | None = None, port: int | None = None
) -> tuple[subprocess.Popen[str], Path, Path, int]:
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    output, log = folder / "geom-serve.out", folder / "engine.log"
    environment = {**os.environ, "XDG_STATE_HOME": str(folder), **(environment or {})}
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    command = [str(GEOM), "serve", *arguments[:cut], "--port", str(port), "--log", str(log), *arguments[cut:]]
    with output.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment, text=True)
    return process, output, log, port


def wait_until_ready(process: subprocess.Popen[str], output: Path) -> None:
    deadline = time.monotonic() + BOOT_SECONDS
    while "Ready at" not in output.read_text():
        assert process.poll() is None, f"geom serve ended with {process.returncode}:\n{output.read_text()}"
        assert time.monotonic() < deadline, f"no engine after {BOOT_SECONDS} s:\n{output.read_text()}"
        time.sleep(0.2)


def end(process: subprocess.Popen[str], patience: float = 30) -> int:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        return process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def kill(process: subprocess.Popen[str]) -> None:
    """Ends it and all that it started, at once: an engine takes four seconds to end by itself (test_serve.py)."""
    if process.poll() is not None:
        return
    main = psutil.Process(process.pid)
    family = main.children(recursive=True)
    for one in (main, *family):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    assert not psutil.wait_procs(family, 30)[1]


def sse(response: httpx.Response) -> list[dict[str, Any]]:
    """The JSON events of a finished stream; AssertionError unless it ends in [DONE]."""
    import json

    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


@contextlib.contextmanager
def started_directly(
    folder: Path,
    *arguments: str,
    without: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
    program: str | None = None,
) -> Iterator[Server]:
    """SGLang by the command that `geom serve` would run, less some of its words, with further environment.

    `program`: what to run in place of `python -m sglang.launch_server`.
    """
    folder.mkdir(parents=True)
    port = free_port()
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    shown = subprocess.run(
        [str(GEOM), "serve", *arguments[:cut], "--port", str(port), "--dry-run", *arguments[cut:]],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **{k: v for k, v in (environment or {}).items() if k == "PYTHONPATH"}},
    ).stdout.strip()
    for word in without:
        assert f" {word} " in shown
        shown = shown.replace(f" {word} ", " ")
    if program is not None:
        shown, count = re.subn(r"\S+ -P -m sglang\.launch_server", program, shown)
        assert count == 1
    with ready(["sh", "-c", f"exec env {shown}"], folder, port, {**os.environ, **(environment or {})}) as server:
        yield server


@contextlib.contextmanager
def ready(command: list[str], folder: Path, port: int, environment: dict[str, str]) -> Iterator[Server]:
    """SGLang by a command that makes it listen on a port; AssertionError if it never gets ready."""
    log = folder / "engine.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, cwd=folder, stdout=stream, stderr=stream, text=True, start_new_session=True, env=environment
        )
    try:
        deadline = time.monotonic() + BOOT_SECONDS
        while True:
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, f"no engine after {BOOT_SECONDS} s"
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200:
                    break
            time.sleep(0.3)
        yield Server(f"http://127.0.0.1:{port}", process, log, log)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def second_plugin(folder: Path, body: str) -> dict[str, str]:
    """A second SGLang plugin, found before ours, whose register() runs `body`: the environment that loads it."""
    (folder / "second.dist-info").mkdir(parents=True)
    (folder / "second.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: second\nVersion: 1\n")
    (folder / "second.dist-info" / "entry_points.txt").write_text("[sglang.srt.plugins]\nsecond = second:register\n")
    source = (
        "import multiprocessing\n\n\ndef register():\n    in_child = multiprocessing.parent_process() is not None\n"
    )
    (folder / "second.py").write_text(source + textwrap.indent(textwrap.dedent(body), "    "))
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))}
