"""Traces of 100,000 steps and a file of 1 GB: seconds, CPU seconds and memory of every command that meets them.

    python -P benchmarks/large_traces.py [--steps 100000] [--gigabytes 1.0] [--folder DIR]

Each command runs in a process of its own, as a user would run it; `reading` is what `geom tui` does before its first
paint. CPU seconds are what to compare between machines that do other work meanwhile.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from geomcli import jsonl
from geomcli.fingerprint import fingerprints_from_histograms, rounded
from geomcli.zones import classify_many

GEOM = Path(sysconfig.get_path("scripts")) / "geom"
WORDS = (" the", " photon", " of", " a", " light", " and", ".", " scatter")
WEIGHTS = np.array([4, 3, 3, 2, 2, 1, 1, 1, 0.5, 0.5, 0.2, 0.1, 0.1, 0.05, 0.05, 0.05])
LINKS = 16


def write(stream: Any, trace_id: str, steps: int, seed: int, *, links: bool) -> None:
    """A trace with every field that the server gives; with links as `--mode raw`."""
    rng = np.random.default_rng(seed)
    fingerprints = fingerprints_from_histograms(rng.dirichlet(WEIGHTS, steps))
    zones = classify_many(fingerprints, np.full(steps, np.nan))
    numbers, picked = rounded(fingerprints), rng.integers(0, len(WORDS), steps).tolist()
    head = {"record_type": "header", "version": "1.0", "trace_id": trace_id, "model": "made", "created": 1}
    records: list[dict[str, Any]] = [
        {**head, "ruleset": "zones-v1", "capture": {}},
        {"record_type": "message", "id": "user-1", "role": "user", "content": "Tell me all about light"},
    ]
    for record in records:
        stream.write(jsonl.line(record).encode() + b"\n")
    for n in range(steps):
        text = WORDS[picked[n]]
        token = {"record_type": "token", "index": n, "text": text, "segmentId": "main", "tokenId": picked[n]}
        attention = None
        if links:
            attention = {
                "token_positions": list(range(LINKS)),
                "attention_scores": [0.0625] * LINKS,
                "topk_logits": [-3.123456] * LINKS,
                "logsumexp_candidates": 0.5,
                "topk_mass": 0.5,
            }
        step = {
            "record_type": "step", "tokenIndex": n, "attention": attention, "index": 0, "decode_step": n + 1,
            "token_id": picked[n], "token": text, "query_position": 10 + n, "prompt_len": 11, "think_phase": "output",
            "layer_id": 29, "heads": {"seen": 9, "total": 9}, "ruleset": "zones-v1", "schema": 1, "flags": [],
            "mode": "raw" if links else "fingerprint", "fingerprint": numbers[n], "zone": zones[n][0],
            "manifold": zones[n][0], "zone_confidence": round(zones[n][1], 6), "sink_mass": 0.4123,
            "drift": 0.0512 if n > 8 else None, "compass": "OK", "ripple": 0.1, "entropy_bits": 3.21, "bytes": 80,
        }  # fmt: skip
        stream.write(jsonl.line(token).encode() + b"\n" + jsonl.line(step).encode() + b"\n")
    for record in (
        {"record_type": "message", "id": "a", "role": "assistant", "content": "".join(WORDS[n] for n in picked)},
        {"record_type": "segment", "id": "main", "type": "assistant_main", "start": 0, "end": steps},
        {"record_type": "metrics", "tokens": steps, "entries": steps, "maxDrift": 0.0512, "flags": {}},
    ):
        stream.write(jsonl.line(record).encode() + b"\n")


def made(path: Path, trace_ids: list[str], steps: int, seed: int, *, links: bool) -> None:
    """Write traces in a process of its own: what a child is said to have used at most begins with its parent's size."""
    child = multiprocessing.get_context("spawn").Process(target=_make, args=(path, trace_ids, steps, seed, links))
    child.start()
    child.join()
    if child.exitcode:
        raise SystemExit(f"{path} could not be written")


def _make(path: Path, trace_ids: list[str], steps: int, seed: int, links: bool) -> None:
    with path.open("wb") as stream:
        for place, trace_id in enumerate(trace_ids):
            write(stream, trace_id, steps, seed + place, links=links)


def measured(name: str, command: list[str], *, wanted: int = 0) -> None:
    """Run a command and print what it took; `wanted`: its exit code."""
    began = time.monotonic()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        said.seek(0)
        message = said.read().decode(errors="replace").strip()
    process.returncode = os.waitstatus_to_exitcode(status)
    cpu = usage.ru_utime + usage.ru_stime
    print(f"{name:<44} {seconds:7.1f} s {cpu:7.1f} s CPU {usage.ru_maxrss / 1024:7.0f} MB", flush=True)
    if process.returncode != wanted:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}: {message}")
    if wanted:
        print(f"    {message.splitlines()[0]}", flush=True)
    elif message.startswith("of it"):
        print(f"    {message}", flush=True)


READING = """
import sys
from pathlib import Path
from geomcli import jsonl
from geomcli.store import Store
from geomcli.tui.turn import Turn
if sys.argv[1] == "file":
    traces = jsonl.load(Path(sys.argv[2]))
else:
    with Store(Path(sys.argv[2])) as store:
        traces = [list(store.records(store.find(sys.argv[3])))]
assert Turn(traces[0], source="x").tokens
"""


COMPARING = """
import gc, sys, time
from pathlib import Path
from geomcli import jsonl
from geomcli.comparison import compare
from geomcli.trace import Trace
gc.disable()
a, b = (Trace(jsonl.load(Path(name))[0]) for name in sys.argv[1:])
began = time.process_time()
compare(a, b)
print(f"    of it compare() with the bootstrap: {time.process_time() - began:.1f} s CPU", file=sys.stderr)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, help="where the files go; a temporary folder if left out")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        run(Path(folder), arguments.steps, arguments.gigabytes)


def run(folder: Path, steps: int, gigabytes: float) -> None:
    a, b, raw = (folder / f"{name}.jsonl" for name in ("a", "b", "raw"))
    for path, seed in ((a, 1), (b, 2), (raw, 3)):
        made(path, [path.stem], steps, seed, links=path is raw)
        print(f"{path.name:<44} {path.stat().st_size / 1e6:7.0f} MB, {steps} steps")
    geom, db = [str(GEOM)], folder / "traces.db"
    store = ["--db", str(db)]
    measured("import, fingerprints", [*geom, "traces", "import", str(a), *store])
    measured("import, 16 links a step", [*geom, "traces", "import", str(raw), *store])
    measured("import of what is there", [*geom, "traces", "import", str(a), *store])
    measured("export", [*geom, "traces", "export", "a", "-o", str(folder / "out.jsonl"), *store])
    measured("export, compressed", [*geom, "traces", "export", "a", "-o", str(folder / "out.jsonl.zst"), *store])
    measured("search", [*geom, "traces", "search", "photon", *store])
    measured("compare, two files", [*geom, "compare", str(a), str(b), *store])
    measured("compare, without the command around it", [sys.executable, "-P", "-c", COMPARING, str(a), str(b)])
    measured("compare, file and store with links", [*geom, "compare", str(a), "raw", *store])
    python = [sys.executable, "-P", "-c", READING]
    measured("reading for geom tui, file", [*python, "file", str(a)])
    measured("reading for geom tui, store", [*python, "store", str(db), "a"])
    measured("rm", [*geom, "traces", "rm", "--yes", "raw", *store])

    large = folder / "large.jsonl"
    pieces = max(1, round(gigabytes * 1e9 / raw.stat().st_size))
    made(large, [f"large-{piece}" for piece in range(pieces)], steps, 10, links=True)
    size = large.stat().st_size
    print(f"{large.name:<44} {size / 1e6:7.0f} MB, {pieces} traces")
    measured("import of all of it", [*geom, "traces", "import", str(large), "--db", str(folder / "large.db")])
    os.truncate(large, size - 1000)
    measured("import, cut off at its end", [*geom, "traces", "import", str(large), *store], wanted=1)
    with large.open("r+b") as stream:
        stream.seek(size // 2)
        stream.write(b"\xff" * 50)
    measured("import, damaged in the middle", [*geom, "traces", "import", str(large), *store], wanted=1)
    one_line = folder / "line.jsonl"
    with one_line.open("wb") as stream:
        stream.truncate(size)  # zeros, and no line break
    measured("import, one line of that size", [*geom, "traces", "import", str(one_line), *store], wanted=1)


if __name__ == "__main__":
    main()
