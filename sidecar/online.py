"""Clusters of a stream, a fingerprint at a time: micro-clusters by Bhattacharyya angle, joined where they touch.

A histogram [16] is the unit vector u of its roots, and angles between those are what the compass measures drift in. A
micro-cluster is the sum of the vectors that came within `threshold` of its direction; its weight fades by half every
`half_life` fingerprints, and one that has faded is forgotten, as in DenStream (Cao, Ester, Qian & Zhou 2006,
doi:10.1137/1.9781611972764.29). Clusters are micro-clusters of enough weight that lie within one and a half thresholds
of each other. They are described from sums that the micro-clusters keep, so that it costs the same however many came.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomcli.clusters import NOISE
from geomcli.compass import directions_of
from geomcli.fingerprint import FINGERPRINT_SIZE, N_BINS

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

THRESHOLD = 0.55  # radians
HALF_LIFE = 20_000
_MOST = 512  # micro-clusters
_FORGOTTEN = 0.5  # weight
_SHARE = 0.005  # of all weight: less is noise
_TOUCHING = 1.5  # thresholds between the directions of micro-clusters of one cluster
_RENORMALISED = 4096


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Micro-clusters as they were.

    directions [c, 16]; weights [c]: in fingerprints; sums [c, 20]: of their fingerprints, as faded as the weights;
    labels [c]: the cluster of each, NOISE where it is too light; mean, deviation [20]: of all fingerprints, as faded;
    threshold: in radians.
    """

    directions: Floats
    weights: Floats
    sums: Floats
    labels: Labels
    mean: Floats
    deviation: Floats
    threshold: float

    def nearest(self, fingerprints: NDArray[Any]) -> tuple[Labels, Floats]:
        """(clusters [m], angles [m]) of the micro-clusters nearest to fingerprints [m, 20]; NOISE past threshold."""
        u = directions_of(fingerprints)
        if not len(self.directions):
            return np.full(len(u), NOISE, dtype=np.int64), np.full(len(u), np.nan)
        near = u @ self.directions.T
        best = near.argmax(axis=1)
        cosines = near.max(axis=1)
        return (
            np.where(cosines >= np.cos(self.threshold), self.labels[best], NOISE),
            np.arccos(np.clip(cosines, -1.0, 1.0)),
        )


class OnlineClusters:
    """`add` fingerprints as they come; `labels` says which cluster each of some is in now."""

    def __init__(self, threshold: float = THRESHOLD, half_life: float = HALF_LIFE) -> None:
        self.threshold, self.half_life = threshold, half_life
        self.seen = 0
        self._fade = 0.5 ** (1 / half_life)
        # Side by side, so that a fingerprint is one addition: its direction, itself, and its weight.
        self._rows = np.zeros((_MOST, N_BINS + FINGERPRINT_SIZE + 1))
        self._sums = self._rows[:, :N_BINS]
        self._totals = self._rows[:, N_BINS:-1]
        self._weights = self._rows[:, -1]
        self._directions = np.zeros((_MOST, N_BINS))
        self._given = np.full(_MOST, NOISE)  # the number that each one's cluster had
        self._moments = np.zeros((3, FINGERPRINT_SIZE))  # of all, faded: their number, their sum, that of their squares
        self._count = 0
        # Weight of a fingerprint that comes now, in units of the sums: grows instead of all others fading.
        self._unit = 1.0

    @property
    def count(self) -> int:
        """Micro-clusters."""
        return self._count

    def add(self, fingerprints: NDArray[Any]) -> None:
        """Fingerprints [m, 20] in their order."""
        cosine = float(np.cos(self.threshold))
        every = np.atleast_2d(np.asarray(fingerprints, dtype=np.float64))
        directions = directions_of(every)
        some = directions.any(axis=1)
        every, directions = every[some], directions[some]
        rows = np.concatenate([directions, every, np.ones((len(every), 1))], axis=1)
        self._remember(every)
        for u, row in zip(directions, rows, strict=True):
            self.seen += 1
            self._unit /= self._fade
            near = self._directions[: self._count] @ u
            best = int(near.argmax()) if self._count else -1
            if best < 0 or near[best] < cosine:
                best = self._opened()
            self._rows[best] += self._unit * row
            total = self._sums[best]
            self._directions[best] = total / math.sqrt(total @ total)
            if self.seen % _RENORMALISED == 0:
                self._forget()

    def _remember(self, every: Floats) -> None:
        """Fingerprints [m, 20] in the moments of all, the earlier ones fading."""
        weights = self._fade ** np.arange(len(every) - 1, -1, -1.0)
        sums = np.stack([np.full(FINGERPRINT_SIZE, weights.sum()), weights @ every, weights @ (every * every)])
        self._moments = self._fade ** len(every) * self._moments + sums

    def _opened(self) -> int:
        if self._count == _MOST:  # the lightest makes room
            place = int(self._weights.argmin())
        else:
            place = self._count
            self._count += 1
        self._rows[place], self._given[place] = 0.0, NOISE
        return place

    def _forget(self) -> None:
        """Weights in units of a fingerprint again, without those that have faded."""
        kept = np.flatnonzero(self._weights[: self._count] / self._unit >= _FORGOTTEN)
        for array in (self._rows, self._directions, self._given):
            array[: len(kept)] = array[kept]
        self._count = len(kept)
        self._rows[: self._count] /= self._unit
        self._unit = 1.0

    def snapshot(self) -> Snapshot:
        """What there is now. A cluster keeps the number that most of its weight had; a new one gets the first free."""
        count = self._count
        weights = self._weights[:count] / self._unit
        number, total, squares = self._moments
        mean, squares = total / np.maximum(number, 1e-12), squares / np.maximum(number, 1e-12)
        labels = self._labelled(weights)
        return Snapshot(
            self._directions[:count].copy(), weights, self._totals[:count] / self._unit, labels, mean,
            np.sqrt(np.maximum(squares - mean * mean, 0.0)), self.threshold,
        )  # fmt: skip

    def labels(self, fingerprints: NDArray[Any]) -> Labels:
        """[m]: the cluster of the nearest micro-cluster of fingerprints [m, 20], NOISE beyond the threshold."""
        return self.snapshot().nearest(fingerprints)[0]

    def _labelled(self, weights: Floats) -> Labels:
        """[c]: the cluster of each micro-cluster, NOISE where it is too light."""
        labels = np.full(self._count, NOISE, dtype=np.int64)
        heavy = np.flatnonzero(weights >= max(2.0, _SHARE * weights.sum())) if self._count else np.zeros(0, np.int64)
        if not len(heavy):
            return labels
        directions = self._directions[heavy]
        parts = _connected(directions @ directions.T >= np.cos(_TOUCHING * self.threshold))
        taken: set[int] = set()
        sizes = np.bincount(parts, weights=weights[heavy])
        fresh = []
        for part in np.argsort(-sizes, kind="stable").tolist():
            members = heavy[parts == part]
            had = self._given[members]
            votes = np.bincount(had[had >= 0], weights=weights[members][had >= 0])
            number = int(votes.argmax()) if len(votes) else NOISE
            if number == NOISE or number in taken:
                fresh.append(members)
                continue
            labels[members] = number
            taken.add(number)
        for members in fresh:
            number = next(n for n in range(len(sizes)) if n not in taken)
            labels[members] = number
            taken.add(number)
        self._given[: self._count] = labels
        return labels


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
