"""A real sidecar process, and a sender beside it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

from geomcli.fingerprint import pack
from geomcli.sidecar.messages import Message, encode
from geomcli.store import Store
from geomcli.zones import classify_many
from tests.conftest import GEOM

SECONDS = 60
HEALTHY = {"status": "ok", "problems": [], "notices": []}


class Sidecar:
    def __init__(self, process: subprocess.Popen[str], zmq_url: str, url: str, db: Path) -> None:
        self.process, self.zmq_url, self.url, self.db = process, zmq_url, url, db

    def get(self, path: str, **headers: str) -> Any:
        return self.ask("GET", path, None, **headers)[1]

    def post(self, path: str, body: Any = None, **headers: str) -> Any:
        return self.ask("POST", path, body, **headers)[1]

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json", **headers}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                status, text = answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read().decode()
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text

    def received(self, count: int, **headers: str) -> dict[str, Any]:
        """/stats once so many messages were taken."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            stats: dict[str, Any] = self.get("/stats", **headers)
            if stats["counters"]["received"] >= count:
                return stats
            time.sleep(0.05)
        raise AssertionError(f"{count} messages were not received: {self.get('/stats', **headers)}")

    def rows(self, sql: str) -> list[dict[str, Any]]:
        with Store(self.db) as store:
            return store.rows(sql)

    def children(self, what: str = "multiprocessing") -> list[int]:
        """Processes that it started for its groupings, those with `what` in their arguments."""
        command = ["ps", "-ww", "--ppid", str(self.process.pid), "-o", "pid=", "-o", "args="]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS).stdout
        return [int(line.split()[0]) for line in shown.splitlines() if what in line]

    def end(self, sign: int = signal.SIGTERM) -> int:
        """Its exit code; where it does not end, what its threads do."""
        self.process.send_signal(sign)
        try:
            return self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            threads = [
                f"{(task / 'comm').read_text().strip()}: {(task / 'wchan').read_text()}"
                for task in Path(f"/proc/{self.process.pid}/task").glob("*")
            ]
            self.process.send_signal(signal.SIGABRT)  # faulthandler writes Python's stacks into the log
            self.process.wait(SECONDS)
            log = self.db.with_name("sidecar.log").read_text()
            raise AssertionError(f"the sidecar did not end within {SECONDS} s: {threads}\n{log}") from None


@contextmanager
def sidecar(folder: Path, *flags: str, **environment: str) -> Iterator[Sidecar]:
    """Started with free ports; ended at the latest with the block."""
    db = folder / "sidecar.db"
    command = [GEOM, "sidecar", "--db", str(db), "--zmq-bind", "tcp://127.0.0.1:*", "--port", "0", *flags]
    log = folder / "sidecar.log"
    settings = {**os.environ, "PYTHONFAULTHANDLER": "1", **environment}
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, text=True, env=settings)
    try:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            said = log.read_text()
            urls = re.search(r"fingerprints: (tcp\S+)", said), re.search(r"HTTP: (http[^\s,]+)", said)
            if all(urls):
                made = Sidecar(process, *(found.group(1) for found in urls if found), db)
                try:
                    if made.ask("GET", "/health")[0] == 200:
                        break
                except OSError:
                    pass
            time.sleep(0.05)
        else:
            raise AssertionError(f"the sidecar did not start:\n{log.read_text()}")
        yield made
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(SECONDS)


def messages(fingerprints: NDArray[Any], *, tokens: int = 10, model: str = "m", start: int = 0) -> list[Message]:
    zones = classify_many(fingerprints, np.full(len(fingerprints), np.nan))
    return [
        Message(
            v=1, model=model, request_id=f"r{(start + at) // tokens}", decode_step=(start + at) % tokens + 1,
            ts_ms=1_000_000 + at, fingerprint=pack(row), zone=zones[at][0], phase="output", sink_mass=0.4, drift=0.1,
        )
        for at, row in enumerate(fingerprints)
    ]  # fmt: skip


@contextmanager
def sender(url: str) -> Iterator[zmq.Socket[bytes]]:
    """A PUSH socket that waits when the other side cannot take more; zmq.Again after SECONDS."""
    context = zmq.Context()
    socket = context.socket(zmq.PUSH)
    socket.set(zmq.LINGER, SECONDS * 1000)
    socket.set(zmq.SNDTIMEO, SECONDS * 1000)
    socket.connect(url)
    try:
        yield socket
    finally:
        socket.close()
        context.term()


def send(url: str, some: Sequence[Message]) -> None:
    with sender(url) as socket:
        for frame in map(encode, some):
            socket.send(frame)
