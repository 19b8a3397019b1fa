"""The sidecar and discovery under load: what their users would notice.

    python -P benchmarks/sidecar.py [--messages 50000] [--stored 1000000] [--points 20000] [--json FILE]

Four measurements, each of a real `geom` process: messages a second into a sidecar on one core, from a sender on
another, until all are in the store; latency of POST /classify over a kept connection; latency of SQL and of
`geom discover` with many fingerprints stored; `geom discover` with UMAP, seconds and peak memory.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import re
import resource
import sqlite3
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import zmq
from numpy.typing import NDArray

from geomcli.fingerprint import fingerprints_from_histograms, pack
from geomcli.sidecar.messages import Message, encode
from geomcli.store import Store

GEOM = Path(sysconfig.get_path("scripts")) / "geom"
BINS = ((0, 1), (3, 5), (6, 7), (9, 10), (12, 14))
REQUESTS = 3000
INSERT = (
    "INSERT INTO fingerprints (model, request_id, decode_step, created, fingerprint, zone) VALUES (?, ?, ?, ?, ?, ?)"
)


def planted(n: int, noise: float = 0.1, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Five clusters around two bins each, a share of noise, shuffled: (fingerprints [n, 20], labels [n])."""
    random = np.random.default_rng(seed)
    labels = np.where(random.random(n) < noise, -1, random.integers(0, len(BINS), n))
    weights = np.full((n, 16), 0.5)
    weights[labels < 0] = 0.3
    for label, bins in enumerate(BINS):
        for place in bins:
            weights[labels == label, place] = 60
    gammas = random.standard_gamma(weights)
    return fingerprints_from_histograms(gammas / gammas.sum(axis=1, keepdims=True)), labels


class Running:
    def __init__(self, folder: Path, *flags: str, core: int | None = None) -> None:
        self.db, log = folder / "traffic.db", folder / "sidecar.log"
        command = [str(GEOM), "sidecar", "--db", str(self.db), "--zmq-bind", "tcp://127.0.0.1:*", "--port", "0", *flags]
        if core is not None:
            command = ["taskset", "-c", str(core), *command]
        with log.open("w") as stream:
            self.process = subprocess.Popen(command, stdout=stream, stderr=stream)
        while not all(found := (re.search(r"fingerprints: (tcp\S+)", log.read_text()),
                                re.search(r"HTTP: (http[^\s,]+)", log.read_text()))):  # fmt: skip
            if self.process.poll() is not None:
                sys.exit(log.read_text())
            time.sleep(0.05)
        self.zmq, self.url = (str(match and match.group(1)) for match in found)
        where = urlsplit(self.url)
        for _ in range(200):
            try:
                self.http = http.client.HTTPConnection(str(where.hostname), where.port)
                self.ask("GET", "/health")
                return
            except OSError:
                time.sleep(0.05)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body)
        self.http.request(method, path, data, {"Content-Type": "application/json"})
        answer = self.http.getresponse()
        return json.loads(answer.read())

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(60)


def ingestion(folder: Path, count: int) -> dict[str, Any]:
    fingerprints, _ = planted(count)
    frames = [
        encode(Message(v=1, model="m", request_id=f"r{n // 100}", decode_step=n % 100 + 1, ts_ms=n,
                       fingerprint=pack(row), zone="diffuse", phase="output", sink_mass=0.4, drift=0.1))
        for n, row in enumerate(fingerprints)
    ]  # fmt: skip
    running = Running(folder, core=0)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {1 % (os.cpu_count() or 1)})
    context = zmq.Context()
    socket = context.socket(zmq.PUSH)
    socket.connect(running.zmq)
    began = time.perf_counter()
    for frame in frames:
        socket.send(frame)
    sent = time.perf_counter() - began
    while running.ask("GET", "/stats")["counters"]["received"] < count and time.perf_counter() - began < 120:
        time.sleep(0.02)
    stored = running.ask("POST", "/storage/flush")["stored"]
    seconds = time.perf_counter() - began
    counters = running.ask("GET", "/stats")["counters"]
    socket.close(0)
    context.term()
    running.end()
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    return {"messages": count, "stored": stored, "lost": count - stored, "dropped": counters["dropped"],
            "sent_in_s": sent, "stored_in_s": seconds, "per_second": count / seconds}  # fmt: skip


def discovery(folder: Path, count: int) -> dict[str, Any]:
    db = folder / "points.db"
    fingerprints, _ = planted(count)
    fill(db, fingerprints)
    found = {}
    for flag in ("--umap", "--no-umap"):
        command = [str(GEOM), "discover", "--db", str(db), "-o", str(folder / "discovery"), flag, "--json",
                   "--max-points", str(count)]  # fmt: skip
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        manifest = json.loads(done.stdout)
        found[flag] = {
            "points": manifest["n"], "seconds": time.perf_counter() - began, "stages": manifest["seconds"],
            "clusters": len(manifest["clusters"]), "calibration": manifest["calibration"],
            "peak_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        }  # fmt: skip
    return found


def fill(db: Path, fingerprints: NDArray[np.float64]) -> None:
    with Store(db):
        pass
    with sqlite3.connect(db) as connection:
        connection.executemany(
            INSERT,
            (("m", f"r{n // 100}", n % 100 + 1, n, pack(row), "diffuse") for n, row in enumerate(fingerprints)),
        )


def classify(folder: Path) -> dict[str, Any]:
    running = Running(folder, "--discovery-dir", str(folder / "discovery"))
    vectors = planted(REQUESTS, seed=5)[0].tolist()
    for vector in vectors[:200]:
        running.ask("POST", "/classify", {"vector": vector})
    times = []
    for vector in vectors:
        began = time.perf_counter()
        running.ask("POST", "/classify", {"vector": vector})
        times.append((time.perf_counter() - began) * 1000)
    running.end()
    cuts = statistics.quantiles(times, n=1000)
    return {"requests": len(times), "median_ms": statistics.median(times), "p99_ms": cuts[989], "max_ms": max(times)}


def stored(folder: Path, count: int) -> dict[str, Any]:
    db = folder / "million.db"
    made = planted(min(count, 100_000))[0]
    with Store(db):
        pass
    blobs = [pack(row) for row in made]
    with sqlite3.connect(db) as connection:
        connection.executemany(
            INSERT,
            (("m", f"r{n // 100}", n % 100 + 1, n, blobs[n % len(blobs)], "diffuse") for n in range(count)),
        )
    queries = {
        "one request": "SELECT * FROM fingerprints WHERE model = 'm' AND request_id = 'r77' ORDER BY decode_step",
        "newest 100": "SELECT * FROM fingerprints ORDER BY id DESC LIMIT 100",
        "count": "SELECT count(*) FROM fingerprints",
    }
    found: dict[str, Any] = {"fingerprints": count, "mb": db.stat().st_size / 1e6}
    with Store(db) as store:
        for name, sql in queries.items():
            began = time.perf_counter()
            store.rows(sql)
            found[f"{name}_ms"] = (time.perf_counter() - began) * 1000
    began = time.perf_counter()
    command = [str(GEOM), "discover", "--db", str(db), "-o", str(folder / "d"), "--no-umap", "--max-points", "5000"]
    subprocess.run(command, capture_output=True, check=True)
    found["discover_5000_of_them_s"] = time.perf_counter() - began
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=50_000)
    parser.add_argument("--stored", type=int, default=1_000_000)
    parser.add_argument("--points", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3, help="of ingestion and classification")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="geom-sidecar-") as name:
        folder = Path(name)
        found: dict[str, Any] = {
            "machine": {"cpu": platform.processor(), "cores": os.cpu_count(), "load": os.getloadavg()}
        }
        found["ingestion"] = []
        for round_ in range(options.rounds):
            (folder / f"in{round_}").mkdir()
            found["ingestion"].append(ingestion(folder / f"in{round_}", options.messages))
            print(json.dumps(found["ingestion"][-1]), flush=True)
        found["discovery"] = discovery(folder, options.points)
        print(json.dumps(found["discovery"]), flush=True)
        found["classify"] = [classify(folder) for _ in range(options.rounds)]
        print(json.dumps(found["classify"]), flush=True)
        found["stored"] = stored(folder, options.stored)
        print(json.dumps(found["stored"]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
