"""Clusters of a stream, a fingerprint at a time: micro-clusters by Bhattacharyya angle, joined where they touch.

A histogram [16] is the unit vector u of its roots, and angles between those are what the compass measures drift in. A
micro-cluster is the sum of the vectors that came within `threshold` of its direction; its weight fades by half every
`half_life` fingerprints, and one that has faded is forgotten, as in DenStream (Cao, Ester, Qian & Zhou 2006,
doi:10.1137/1.9781611972764.29). Clusters are micro-clusters of enough weight that lie within one and a half thresholds
of each other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomcli.clusters import NOISE
from geomcli.compass import directions_of
from geomcli.fingerprint import N_BINS

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

THRESHOLD = 0.35  # radians
HALF_LIFE = 20_000
_MOST = 512  # micro-clusters
_FORGOTTEN = 0.5  # weight
_SHARE = 0.005  # of all weight: less is noise
_TOUCHING = 1.5  # thresholds between the directions of micro-clusters of one cluster
_RENORMALISED = 4096


class OnlineClusters:
    """`add` fingerprints as they come; `labels` says which cluster each of some is in now."""

    def __init__(self, threshold: float = THRESHOLD, half_life: float = HALF_LIFE) -> None:
        self.threshold, self.half_life = threshold, half_life
        self.seen = 0
        self._fade = 0.5 ** (1 / half_life)
        self._sums = np.zeros((_MOST, N_BINS))
        self._directions = np.zeros((_MOST, N_BINS))
        self._weights = np.zeros(_MOST)
        self._count = 0
        self._unit = (
            1.0  # weight of a fingerprint that comes now, in units of the sums: grows instead of all others fading
        )

    @property
    def count(self) -> int:
        """Micro-clusters."""
        return self._count

    def add(self, fingerprints: NDArray[Any]) -> None:
        """Fingerprints [m, 20] in their order."""
        cosine = float(np.cos(self.threshold))
        for u in directions_of(fingerprints):
            if not u.any():
                continue
            self.seen += 1
            self._unit /= self._fade
            near = self._directions[: self._count] @ u
            best = int(near.argmax()) if self._count else -1
            if best < 0 or near[best] < cosine:
                best = self._opened()
            self._sums[best] += self._unit * u
            self._weights[best] += self._unit
            self._directions[best] = self._sums[best] / np.linalg.norm(self._sums[best])
            if self.seen % _RENORMALISED == 0:
                self._forget()

    def _opened(self) -> int:
        if self._count == _MOST:
            self._forget()
        if self._count == _MOST:  # nothing has faded: the lightest makes room
            lightest = int(self._weights[: self._count].argmin())
            self._sums[lightest], self._weights[lightest] = 0.0, 0.0
            return lightest
        self._count += 1
        self._sums[self._count - 1], self._weights[self._count - 1] = 0.0, 0.0
        return self._count - 1

    def _forget(self) -> None:
        """Weights in units of a fingerprint again, without those that have faded."""
        kept = np.flatnonzero(self._weights[: self._count] / self._unit >= _FORGOTTEN)
        for array in (self._sums, self._directions, self._weights):
            array[: len(kept)] = array[kept]
        self._count = len(kept)
        self._sums[: self._count] /= self._unit
        self._weights[: self._count] /= self._unit
        self._unit = 1.0

    def groups(self) -> tuple[Floats, Floats, Labels]:
        """(directions [c, 16], weights [c] in fingerprints, clusters [c]) of the micro-clusters.

        Clusters are numbered by weight; NOISE where a micro-cluster is too light.
        """
        weights = self._weights[: self._count] / self._unit
        directions = self._directions[: self._count].copy()
        heavy = np.flatnonzero(weights >= max(2.0, _SHARE * weights.sum())) if self._count else np.zeros(0, np.int64)
        labels = np.full(self._count, NOISE, dtype=np.int64)
        if not len(heavy):
            return directions, weights, labels
        touching = directions[heavy] @ directions[heavy].T >= np.cos(_TOUCHING * self.threshold)
        parts = _connected(touching)
        sizes = np.bincount(parts, weights=weights[heavy])
        place = np.empty(len(sizes), dtype=np.int64)
        place[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
        labels[heavy] = place[parts]
        return directions, weights, labels

    def labels(self, fingerprints: NDArray[Any]) -> Labels:
        """[m]: the cluster of the nearest micro-cluster of fingerprints [m, 20], NOISE beyond the threshold."""
        directions, _, labels = self.groups()
        u = directions_of(fingerprints)
        if not len(directions):
            return np.full(len(u), NOISE, dtype=np.int64)
        near = u @ directions.T
        best = near.argmax(axis=1)
        return np.where(near.max(axis=1) >= np.cos(self.threshold), labels[best], NOISE)


def _connected(touching: NDArray[np.bool_]) -> Labels:
    """[n]: the connected component of each row of a symmetric relation [n, n]."""
    found = np.full(len(touching), -1, dtype=np.int64)
    for start in range(len(touching)):
        if found[start] >= 0:
            continue
        label, stack = int(found.max()) + 1, [start]
        found[start] = label
        while stack:
            fresh = np.flatnonzero(touching[stack.pop()] & (found < 0))
            found[fresh] = label
            stack += fresh.tolist()
    return found
