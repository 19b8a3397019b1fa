"""The skeleton score in float64, key by key as docs/eviction.md defines it: what scores.py is tested against."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
ENERGY = 0.7
HORIZON = 512  # positions ahead over which a coming query's rotation is averaged
POWER = 6
WEIGHTS = (0.4, 0.3, 0.3)


class Parts(NamedTuple):
    """Of each key [n]: received attention, expected attention times the value's norm, leverage."""

    received: Floats
    expected: Floats
    leverage: Floats


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


def leverage(keys: Floats) -> Floats:
    """[n] of one key head: squared rows of the left singular vectors of the centred keys [n, D] without rotation, of
    the directions that hold ENERGY of their energy together."""
    u, s, _ = np.linalg.svd(keys - keys.mean(axis=0), full_matrices=False)
    energy = np.cumsum(s**2) / max(float((s**2).sum()), np.finfo(np.float64).tiny)
    r = int(np.searchsorted(energy, ENERGY - 1e-12)) + 1
    return np.asarray((u[:, :r] ** 2).sum(axis=1), dtype=np.float64)


def ranks(values: Floats) -> Floats:
    """[n] in [0, 1]; of equal values the later ranks higher."""
    n = values.shape[0]
    found = np.empty(n, dtype=np.float64)
    found[np.argsort(values, kind="stable")] = np.arange(n)
    return np.asarray(found / max(n - 1, 1), dtype=np.float64)


def skeleton(parts: Parts, weights: tuple[float, float, float] = WEIGHTS) -> Floats:
    """[n]: the weighted sum of the parts' ranks to the POWER."""
    return np.asarray(sum(w * ranks(part) ** POWER for w, part in zip(weights, parts, strict=True)), dtype=np.float64)
