"""The skeleton score in float64, key by key as docs/eviction.md defines it: what scores.py is tested against."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
HORIZON = 512  # positions ahead over which a coming query's rotation is averaged
POWER = 6
WEIGHTS = (0.3, 0.2, 0.5)
NEIGHBOURS = 2  # held tokens on either side that a score is averaged with


class Parts(NamedTuple):
    """Of each key [n]: received attention, expected attention times the value's norm, distinctness."""

    received: Floats
    expected: Floats
    distinct: Floats


def received(logits: Floats, visible: NDArray[np.bool_]) -> Floats:
    """[n] of one head: mean probability over the queries that see the key, as a share of the head's sum.

    logits [W, n]; visible [W, n]: the key is not behind the query.
    """
    hidden = np.where(visible, logits, -np.inf)
    p = np.exp(hidden - hidden.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    mean = p.sum(axis=0) / np.maximum(visible.sum(axis=0), 1)
    return np.asarray(mean / mean.sum(), dtype=np.float64)


def expected(queries: Floats, keys: Floats, values: Floats, turn: NDArray[np.complex128], scale: float) -> Floats:
    """[n] of one head: what a normally distributed query some way ahead would give each key, times its value's norm.

    queries [W, D] without rotation, keys [n, D] with it, values [n, Dv]; turn [D/2]: the mean rotation ahead of column
    pairs (i, i + D/2).
    """
    half = turn.shape[0]

    def turned(x: Floats) -> Floats:
        found = x.copy()
        pairs = (x[..., :half] + 1j * x[..., half : 2 * half]) * turn
        found[..., :half], found[..., half : 2 * half] = pairs.real, pairs.imag
        return found

    mean = queries.mean(axis=0)
    logits = scale * keys @ turned(mean)
    logits = logits + 0.5 * ((scale * keys @ turned(queries - mean).T) ** 2).mean(axis=1)
    p = np.exp(logits - logits.max())
    weighted = p / p.sum() * np.linalg.norm(values, axis=1)
    return np.asarray(weighted / weighted.sum(), dtype=np.float64)


def distinct(keys: Floats) -> Floats:
    """[n] of one key head, in [0, 2]: 1 - the cosine of a key [n, D] without rotation and the mean of all unit keys.

    KeyDiff (Park et al., 2025, arXiv 2504.15364) takes rotated keys, which differ by their place, too.
    """
    units = keys / np.maximum(np.linalg.norm(keys, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    mean = units.mean(axis=0)
    return np.asarray(1 - units @ mean / max(float(np.linalg.norm(mean)), np.finfo(np.float64).tiny), dtype=np.float64)


def ranks(values: Floats) -> Floats:
    """[n] in [0, 1]; of equal values the later ranks higher."""
    n = values.shape[0]
    found = np.empty(n, dtype=np.float64)
    found[np.argsort(values, kind="stable")] = np.arange(n)
    return np.asarray(found / max(n - 1, 1), dtype=np.float64)


def skeleton(parts: Parts, weights: tuple[float, float, float] = WEIGHTS) -> Floats:
    """[n]: the weighted sum of the parts' ranks to the POWER, averaged over each token and its NEIGHBOURS."""
    found = np.sum([w * ranks(part) ** POWER for w, part in zip(weights, parts, strict=True)], axis=0)
    near = [found[max(0, i - NEIGHBOURS) : i + NEIGHBOURS + 1].mean() for i in range(len(found))]
    return np.array(near, dtype=np.float64)
