"""Planted clusters of fingerprints, and stores that hold them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geomcli.discovery.points import Points
from geomcli.fingerprint import fingerprints_from_histograms, pack
from geomcli.store import Store
from geomcli.zones import classify_many

CENTRES = ((0, 1), (3, 5), (6, 7), (9, 10), (12, 14))  # bins that have the mass of each cluster
NOISE = -1


def planted(size: int, *, noise: float = 0.1, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(fingerprints [n, 20], labels [n]): five clusters of `size` around two bins each, and a share of noise."""
    random = np.random.default_rng(seed)
    hists, labels = [], []
    for label, bins in enumerate(CENTRES):
        weights = np.full(16, 0.5)
        weights[list(bins)] = 60
        hists.append(random.dirichlet(weights, size))
        labels += [label] * size
    stray = round(5 * size * noise)
    hists.append(random.dirichlet(np.full(16, 0.3), stray))
    labels += [NOISE] * stray
    order = random.permutation(len(labels))
    return fingerprints_from_histograms(np.concatenate(hists))[order], np.array(labels)[order]


def points(size: int, *, noise: float = 0.1, seed: int = 0, tokens: int = 10) -> tuple[Points, NDArray[np.int64]]:
    """The same as points, each request with as many tokens of whatever cluster."""
    fingerprints, labels = planted(size, noise=noise, seed=seed)
    n = len(labels)
    zones = [zone for zone, _ in classify_many(fingerprints, np.full(n, np.nan))]
    return (
        Points(
            "made", fingerprints, [f"r{at // tokens}" for at in range(n)], np.arange(n) % tokens, zones,
            np.full(n, np.nan), "traffic", n,
        ),
        labels,
    )  # fmt: skip


def filled(path: Path, fingerprints: NDArray[np.float64], *, model: str = "made", tokens: int = 10) -> None:
    """Fingerprints as the sidecar stores them."""
    zones = classify_many(fingerprints, np.full(len(fingerprints), np.nan))
    rows = [
        {
            "model": model, "request_id": f"r{at // tokens}", "decode_step": at % tokens + 1, "created": 1000 + at,
            "fingerprint": pack(row), "zone": zones[at][0], "phase": "output", "sink_mass": 0.4, "drift": None,
            "ripple": None, "moe": None,
        }
        for at, row in enumerate(fingerprints)
    ]  # fmt: skip
    with Store(path) as store:
        store.insert({"fingerprints": rows})
