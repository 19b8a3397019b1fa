"""A trace against a discovery: the cluster of each of its tokens, and how far it leaves the manifold on its way."""

from __future__ import annotations

from collections import Counter

import msgspec
import numpy as np
from numpy.typing import NDArray

from geomcli.clusters import NOISE
from geomcli.compass import DRIFT_WINDOW
from geomcli.discovery.classification import Classification, Classifier, OffManifold
from geomcli.fingerprint import FINGERPRINT_SIZE, N_BINS
from geomcli.schema import has_numbers
from geomcli.trace import Trace


class Share(msgspec.Struct, frozen=True):
    """A cluster, by its name, and the share of a trace's classified tokens that are in it."""

    cluster: int
    name: str
    share: float


class TraceReading(msgspec.Struct, frozen=True):
    """run_id, n, unit: the discovery and how many tokens or requests it rests on; tokens [m]: indices of those with a
    fingerprint; classified: each of them, or their mean where requests were learned; shares: the largest first, without
    noise; on_manifold: share of what is classified that is in a cluster; off: for each token the angle of its window
    from the nearest cluster, None before the window is full; calibrated: whether confidences rest on held-out
    fingerprints.
    """

    run_id: str
    n: int
    tokens: list[int]
    classified: list[Classification]
    shares: list[Share]
    on_manifold: float
    confidence: float
    off: list[OffManifold | None]
    calibrated: bool = True
    unit: str = "token"


def read(trace: Trace, classifier: Classifier) -> TraceReading | None:
    """None where the trace has no fingerprint, or is of another model than the discovery."""
    manifest = classifier.artifacts.manifest
    if str(trace.header.get("model", "")) != manifest.model:
        return None
    first: dict[int, list[float]] = {}
    for step in trace.steps:
        if has_numbers(step) and len(step["fingerprint"]) == FINGERPRINT_SIZE:  # type: ignore[arg-type]
            first.setdefault(step["tokenIndex"], step["fingerprint"])
    values = np.array(list(first.values()), dtype=np.float64).reshape(-1, FINGERPRINT_SIZE)
    sound = np.flatnonzero(np.isfinite(values).all(axis=1))
    indices = list(first)
    tokens = [indices[place] for place in sound.tolist()]
    values = np.clip(values[sound], 0.0, 1.0)
    if not len(values):
        return None
    of_requests = manifest.unit == "request"
    classified = classifier.classify(values.mean(axis=0, keepdims=True) if of_requests else values)
    counts = Counter(c.cluster for c in classified)
    on = len(classified) - counts.pop(NOISE, 0)
    names = {cluster.cluster: cluster.name for cluster in manifest.clusters}
    shares = [
        Share(cluster, names[cluster], count / len(classified))
        for cluster, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    return TraceReading(
        manifest.run_id, manifest.n, tokens, classified, shares, on / len(classified),
        float(np.mean([c.confidence for c in classified])), off_manifold(values, classifier),
        manifest.calibrated, manifest.unit,
    )  # fmt: skip


def off_manifold(fingerprints: NDArray[np.float64], classifier: Classifier) -> list[OffManifold | None]:
    """For each of fingerprints [n, 20] in their order: the mean direction of the compass' window behind it."""
    roots = np.sqrt(np.maximum(fingerprints[:, -N_BINS:], 0.0))
    sums = np.concatenate([np.zeros((1, N_BINS)), roots.cumsum(axis=0)])
    made: list[OffManifold | None] = [None] * min(len(roots), DRIFT_WINDOW - 1)
    made += [
        classifier.off_manifold(np.maximum(sums[end] - sums[end - DRIFT_WINDOW], 0.0))
        for end in range(DRIFT_WINDOW, len(roots) + 1)
    ]
    return made
