"""How sure an assignment is: measured where requests were left out, and said to be unknown where it cannot be."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from geomcli.discovery.calibration import calibrate
from tests.discovery.made_points import planted

COVERAGE = 0.99


def standardised(size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    f, labels = planted(size, seed=seed)
    return (f - f.mean(axis=0)) / np.maximum(f.std(axis=0), 1e-3), labels


def names(n: int, *, side: int | None = None) -> list[str]:
    """Names of requests of ten tokens; `side`: all of them in one half."""
    found, at = [], 0
    while len(found) * 10 < n:
        if side is None or zlib.crc32(f"r{at}".encode()) & 1 == side:
            found.append(f"r{at}")
        at += 1
    return [name for name in found for _ in range(10)][:n]


def test_a_small_cluster_leaves_the_others_calibrated() -> None:
    z, labels = standardised(200)
    few = np.flatnonzero(labels == 4)
    labels[few[2:]] = -1
    labels[few[:2]] = 4
    found = calibrate(z, labels, names(len(z)), COVERAGE)
    assert len(z) - 4 <= found.held_out <= len(z)
    assert found.error is not None
    assert len(found.inside.x) > 1


def test_the_error_where_one_half_alone_can_be_judged() -> None:
    """Clusters of which one half of the requests has no member: that half's radii are not known."""
    z, labels = standardised(200)
    requests = np.array(names(len(z)))
    halves = np.array([zlib.crc32(name.encode()) & 1 for name in requests])
    labels[halves == 0] = -1
    found = calibrate(z, labels, requests.tolist(), COVERAGE)
    assert found.held_out == (halves == 0).sum()
    # Everything that the medoids took in is noise by these labels, and the curves know it.
    assert found.error is not None
    assert found.error <= 0.1


def test_an_error_that_cannot_be_known_is_none() -> None:
    z, labels = standardised(20)
    one = zlib.crc32(b"r0")
    other = next(name for name in (f"s{n}" for n in range(99)) if zlib.crc32(name.encode()) & 1 != one & 1)
    requests = ["r0"] * len(z)
    held = np.arange(len(z)) < 40
    labels[held] = -1
    for place in np.flatnonzero(held):
        requests[place] = other
    found = calibrate(z, labels, requests, COVERAGE)
    assert found.held_out == 40
    assert found.error is None


@pytest.mark.parametrize("seed", range(3))
def test_confidences_are_calibrated(seed: int) -> None:
    z, labels = standardised(300, seed)
    found = calibrate(z, labels, names(len(z)), COVERAGE)
    assert found.held_out == len(z)
    assert found.error is not None
    assert found.error <= 0.05
