"""Online clusters of the sidecar beside river's: adjusted Rand index on streams with planted clusters, and speed.

    pip install river
    python -P benchmarks/online_clusters.py [--points 3000] [--seeds 5] [--json FILE]

Four streams of fingerprints: five clusters of one size, as benchmarks/sidecar.py and the sidecar's tests plant them;
five of 50, 25, 15, 7 and 3 %; five of one size whose distances move by a bin along the stream; and five whose members
scatter more widely. Each has a tenth of noise. Every method takes each fingerprint once, then says the cluster of the
last thousand. Its settings are those of a grid that score best over all streams of other seeds; the metric is one of
them: fingerprints, or roots of their histograms, between which the Euclidean distance goes with the Bhattacharyya
angle. Ours runs with the sidecar's own threshold as well. It takes fingerprints by the hundred, as the sidecar does,
and river's one at a time, as they only can; how fast ours is one at a time is measured beside it. Methods run in random
order. Adjusted Rand index (Hubert & Arabie 1985), and that of the clusters' members alone, since river's put noise into
the nearest cluster; fingerprints a second of learning. Medians with the smallest and the largest.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geomcli.fingerprint import fingerprints_from_histograms
from geomcli.sidecar.online import THRESHOLD, OnlineClusters

BINS = ((0, 1), (3, 5), (6, 7), (9, 10), (12, 14))
EVEN = (0.2,) * 5
SHARES = {"even": EVEN, "uneven": (0.5, 0.25, 0.15, 0.07, 0.03), "moving": EVEN, "wide": EVEN}
BATCH = 100
NARROW = 0.35  # radians
NOISE_SHARE, LAST, TUNING_SEEDS = 0.1, 1000, (101, 102)

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


def stream(kind: str, n: int, seed: int) -> tuple[Floats, Labels]:
    """(fingerprints [n, 20], labels [n], -1 for noise)."""
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(n) < NOISE_SHARE, -1, rng.choice(len(BINS), n, p=SHARES[kind]))
    weights = np.full((n, 16), 0.5)
    weights[labels < 0] = 0.3
    mass = 12 if kind == "wide" else 60
    moved = np.arange(n) / n if kind == "moving" else np.zeros(n)
    for label, bins in enumerate(BINS):
        rows = np.flatnonzero(labels == label)
        for place in bins:
            weights[rows, place] += mass * (1 - moved[rows])
            weights[rows, place + 1] += mass * moved[rows]
    gammas = rng.standard_gamma(weights)
    return fingerprints_from_histograms(gammas / gammas.sum(axis=1, keepdims=True)), labels


class Method(NamedTuple):
    """name, settings: of a grid; run: (fingerprints) -> (clusters of the last, seconds of learning)."""

    name: str
    settings: dict[str, Any]
    run: Callable[[Floats], tuple[Labels, float]]


def ours(batch: int = BATCH, **settings: Any) -> Callable[[Floats], tuple[Labels, float]]:
    def run(fingerprints: Floats) -> tuple[Labels, float]:
        made = OnlineClusters(**settings)
        began = time.perf_counter()
        for at in range(0, len(fingerprints), batch):
            made.add(fingerprints[at : at + batch])
        seconds = time.perf_counter() - began
        return made.labels(fingerprints[-LAST:]), seconds

    return run


def rivers(kind: Callable[..., Any], metric: str, settings: dict[str, Any]) -> Callable[[Floats], tuple[Labels, float]]:
    def run(fingerprints: Floats) -> tuple[Labels, float]:
        values = fingerprints if metric == "fingerprints" else np.sqrt(fingerprints[:, -16:])
        rows = [dict(enumerate(row)) for row in values.tolist()]
        model = kind(**settings)
        began = time.perf_counter()
        for row in rows:
            model.learn_one(row)
        seconds = time.perf_counter() - began
        return np.array([model.predict_one(row) for row in rows[-LAST:]], dtype=np.int64), seconds

    return run


def grid() -> dict[str, list[Method]]:
    try:
        from river import cluster
    except ImportError:
        sys.exit("benchmarks/online_clusters.py compares with river. Try: pip install river")
    made: dict[str, list[Method]] = {
        "micro-clusters by angle (ours)": [],
        "DBSTREAM": [],
        "DenStream": [],
        "CluStream": [],
    }
    ours_, dbstream, denstream, clustream = made
    for threshold in (0.25, 0.35, 0.45, 0.55, 0.65):
        made[ours_].append(Method(ours_, {"threshold": threshold}, ours(threshold=threshold)))
    metrics = ("fingerprints", "roots")
    for metric, threshold, shared in itertools.product(metrics, (0.2, 0.3, 0.4, 0.5, 0.6), (0.01, 0.05, 0.1, 0.3)):
        how = {
            "clustering_threshold": threshold, "fading_factor": 0.0001, "minimum_weight": 3, "cleanup_interval": 200,
            "intersection_factor": shared,
        }  # fmt: skip
        made[dbstream].append(Method(dbstream, {"metric": metric, **how}, rivers(cluster.DBSTREAM, metric, how)))
    for metric, epsilon, mu in itertools.product(metrics, (0.2, 0.3, 0.4, 0.5, 0.6, 0.8), (2, 3, 10)):
        how = {
            "decaying_factor": 0.0001,
            "beta": 0.4 if mu == 3 else 0.6,
            "mu": mu,
            "epsilon": epsilon,
            "n_samples_init": 300,
        }
        made[denstream].append(Method(denstream, {"metric": metric, **how}, rivers(cluster.DenStream, metric, how)))
    for metric, sigma, half_life in itertools.product(metrics, (0.1, 0.3), (0.1, 0.5)):
        # It is told how many clusters there are, which the others find; sigma, half-life: of the k-means in it.
        how = {
            "n_macro_clusters": 5, "max_micro_clusters": 50, "time_gap": 250, "seed": 0, "mu": 0.2, "sigma": sigma,
            "halflife": half_life,
        }  # fmt: skip
        made[clustream].append(Method(clustream, {"metric": metric, **how}, rivers(cluster.CluStream, metric, how)))
    return made


class Score(NamedTuple):
    ari: float
    ari_of_members: float
    per_second: float


def scored(method: Method, fingerprints: Floats, labels: Labels) -> Score:
    from sklearn.metrics import adjusted_rand_score

    given, seconds = method.run(fingerprints)
    truth = labels[-LAST:]
    members = truth >= 0
    return Score(
        float(adjusted_rand_score(truth, given)),
        float(adjusted_rand_score(truth[members], given[members])),
        len(fingerprints) / seconds,
    )


def tuned(methods: list[Method], points: int) -> Method:
    """The method with the best mean adjusted Rand index over all streams of seeds that nothing else is measured on."""
    streams = [stream(kind, points, seed) for kind in SHARES for seed in TUNING_SEEDS]
    return max(methods, key=lambda method: statistics.mean(scored(method, *each).ari for each in streams))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    import river

    chosen = [tuned(methods, options.points) for methods in grid().values()]
    for threshold in (NARROW, THRESHOLD):
        name = f"ours, {threshold}"
        chosen.append(Method(name, {"threshold": threshold}, ours(threshold=threshold)))
    chosen.append(Method(f"{name}, one at a time", {"threshold": THRESHOLD}, ours(1)))
    scores: dict[tuple[str, str], list[Score]] = {}
    for kind, seed in itertools.product(SHARES, range(options.seeds)):
        each = stream(kind, options.points, seed)
        for method in random.sample(chosen, len(chosen)):
            scores.setdefault((method.name, kind), []).append(scored(method, *each))
    rows = []
    for method in chosen:
        print(f"\n{method.name}: {method.settings}")
        for kind in SHARES:
            found = scores[method.name, kind]
            row = {"what": method.name, "stream": kind}
            for field in Score._fields:
                values = [getattr(score, field) for score in found]
                row[field] = [round(f(values), 3) for f in (statistics.median, min, max)]  # type: ignore[assignment]
            rows.append(row)
            print(json.dumps(row), flush=True)
    if options.json:
        document = {
            "points": options.points, "seeds": options.seeds, "river": river.__version__,
            "python": platform.python_version(), "settings": {m.name: m.settings for m in chosen}, "results": rows,
        }  # fmt: skip
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
