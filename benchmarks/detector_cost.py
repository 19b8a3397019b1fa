"""What a detector costs: microseconds of CPU time for each answer and step, by how many answers are watched at once.

    python benchmarks/detector_cost.py [--json docs/measurements/detector_cost.json] [--docs docs/geometry.md]

Four layers of 32 heads, 16 links a token, weights made at random; no engine. Rounds of all detectors in turn, each on
answers of its own; medians over the rounds. The answers are watched for some tokens first, so that windows are full.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from geomcli.detectors import registry
from geomcli.detectors.calibration import About, Calibration, Stack
from geomcli.detectors.observations import Links, Observations
from geomcli.detectors.summary import WINDOW, Summarised
from geomcli.fingerprint import fingerprints_from_histograms

LAYERS, HEADS, LINKS, PROMPT = (7, 15, 23, 31), 32, 16, 512
ANSWERS = (1, 32, 128)
WARM, STEPS = 64, 64
TABLE = re.compile(r"(?<=<!-- detector_cost -->\n).*?(?=\n<!-- /detector_cost -->)", re.DOTALL)


def detector(name: str) -> Any:
    kind, random = registry.DETECTORS[name], np.random.default_rng(0)
    about = About(model="none", detector=name, layers=LAYERS, heads=HEADS, threshold=1.0, false_alarms=0.01, n=99)
    if kind.features is None:
        return registry.create(name)
    names = Summarised(kind.features(LAYERS, HEADS, kind.set(None))).names
    size = len(names)
    stack = Stack(names, np.zeros(size), np.ones(size), random.normal(size=size) / size, 0.0, 1.0, 0.0, 0.3, WINDOW)
    return registry.create(name, None, Calibration(about, stack))


def steps(answers: int, seed: int) -> list[Observations]:
    """One observation of all answers for each step."""
    random = np.random.default_rng(seed)
    made = []
    for step in range(WARM + STEPS):
        query = np.full(answers, PROMPT + step)
        positions = np.stack([random.choice(PROMPT + step + 1, LINKS, replace=False) for _ in range(answers)])
        made.append(
            Observations(
                fingerprints_from_histograms(random.dirichlet(np.ones(16), answers)).astype(np.float64),
                -random.exponential(1, answers), random.uniform(0, 8, answers), random.exponential(2, answers),
                random.uniform(0, 1, (answers, len(LAYERS), 4, HEADS)),
                Links(query, positions, random.dirichlet(np.ones(LINKS), answers)),
            )
        )  # fmt: skip
    return made


def microseconds(watching: Any, seen: list[Observations]) -> float:
    """Median over the steps behind the first WARM, of one answer."""
    states = [watching.start() for _ in range(len(seen[0]))]
    taken = []
    for at, one in enumerate(seen):
        begin = time.process_time_ns()
        watching.update(states, one)
        if at >= WARM:
            taken.append((time.process_time_ns() - begin) / 1e3 / len(states))
    return statistics.median(taken)


def measured(rounds: int) -> dict[str, Any]:
    found: dict[str, dict[int, list[float]]] = {name: {n: [] for n in ANSWERS} for name in registry.DETECTORS}
    for turn in range(rounds):
        for n in ANSWERS:
            seen = steps(n, turn)
            for name in registry.DETECTORS:
                found[name][n].append(microseconds(detector(name), seen))
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {_processor()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "shape": {"layers": len(LAYERS), "heads": HEADS, "links": LINKS, "tokens": [WARM, WARM + STEPS]},
        "rounds": rounds,
        "microseconds": {
            name: {
                str(n): {
                    "median": round(statistics.median(v), 2),
                    "lowest": round(min(v), 2),
                    "highest": round(max(v), 2),
                }
                for n, v in of.items()
            }
            for name, of in found.items()
        },
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def table(document: dict[str, Any]) -> str:
    heading = " | ".join(f"{n} answer{'s' if n > 1 else ''}" for n in ANSWERS)
    rows = [f"| µs for each answer and step | {heading} |", "|---|" + "---|" * len(ANSWERS)]
    for name, of in document["microseconds"].items():
        rows.append(f"| {name} | " + " | ".join(f"{of[str(n)]['median']:.1f}" for n in ANSWERS) + " |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--docs", type=Path, help="Write the table between its marks in this page.")
    options = parser.parse_args()
    document = measured(options.rounds)
    print(table(document))
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    if options.docs:
        page = options.docs.read_text()
        options.docs.write_text(TABLE.sub(lambda _: table(document), page))


if __name__ == "__main__":
    main()
