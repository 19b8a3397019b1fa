"""The traffic of one model, and the clusters among it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomcli.clusters import NOISE, Clusters
from geomcli.compass import directions_of
from geomcli.discovery.traits import Trait, ZoneOf, name_of, traits_of
from geomcli.fingerprint import FINGERPRINT_SIZE
from geomcli.sidecar.messages import Message
from geomcli.sidecar.online import OnlineClusters, Snapshot
from geomcli.zones import classify

Floats = NDArray[np.float64]

LEAST = 50  # fingerprints; below, there is nothing to group


@dataclass(frozen=True, eq=False)
class Cluster:
    """centroid [20]: mean of the members; size: of them, online as far as they have not faded; radius: in standard
    deviations from the medoid, or online in radians from the centroid.
    """

    cluster: int
    name: str
    size: int
    centroid: Floats
    radius: float
    zone: str
    traits: list[Trait]


@dataclass(frozen=True, eq=False)
class Grouped:
    """Clusters as they were at `at` (epoch seconds), of `n` fingerprints; `seconds`: what it took."""

    clusters: list[Cluster] = field(default_factory=list)
    n: int = 0
    noise: int = 0
    at: float = 0.0
    seconds: float = 0.0
    by: Clusters | Snapshot | None = None  # to assign by

    def assign(self, fingerprint: NDArray[Any]) -> tuple[Cluster | None, float, float]:
        """(cluster, distance, radius) of a fingerprint [20]; off the manifold None, and those of the nearest.

        Distances are to a medoid in standard deviations, or online to a micro-cluster in radians.
        """
        if not self.clusters or self.by is None:
            return None, float("nan"), float("nan")
        if isinstance(self.by, Snapshot):
            labels, angles = self.by.nearest(fingerprint)
            found = next((cluster for cluster in self.clusters if cluster.cluster == labels[0]), None)
            return found, float(angles[0]), self.by.threshold
        z = (np.asarray(fingerprint, dtype=np.float64) - self.by.mean) / self.by.scale
        apart = np.sqrt((((self.by.medoids - self.by.mean) / self.by.scale - z) ** 2).sum(axis=1))
        radii = self.by.radii
        inside = np.flatnonzero(apart <= radii * (1 + 1e-9))
        best = int(inside[apart[inside].argmin()]) if len(inside) else int((apart / np.maximum(radii, 1e-9)).argmin())
        return (self.clusters[best] if len(inside) else None), float(apart[best]), float(radii[best])


class Traffic:
    """`now`: its clusters; `seen`: fingerprints that came; `error`: why they could not be grouped last time."""

    def __init__(self, model: str, buffer: int, online: OnlineClusters | None = None) -> None:
        self.model, self.online = model, online
        self.now = Grouped()
        self.seen = 0
        self.error = ""
        self._values = np.zeros((buffer if online is None else 0, FINGERPRINT_SIZE), dtype=np.float32)
        self._newest: dict[tuple[str, int], None] = {}  # request and step of the newest `buffer`, the oldest first
        self._buffer = buffer
        self._grouped = 0  # of those that were seen
        self._lock = threading.Lock()

    @property
    def is_stale(self) -> bool:
        """Whether fingerprints came since it was grouped."""
        return self.seen != self._grouped

    def put(self, messages: Sequence[Message]) -> None:
        """In their order; what came before, of the newest `buffer`, is not taken again."""
        with self._lock:
            fresh = self._fresh(messages)
            fingerprints = np.frombuffer(b"".join(fresh), dtype="<f4").reshape(-1, FINGERPRINT_SIZE)
            if self.online is not None:
                self.online.add(fingerprints)
            else:
                rows = fingerprints[-len(self._values) :]
                first = self.seen + len(fingerprints) - len(rows)
                self._values[(first + np.arange(len(rows))) % len(self._values)] = rows
            self.seen += len(fingerprints)

    def _fresh(self, messages: Sequence[Message]) -> list[bytes]:
        made = []
        for m in messages:
            key = (m.request_id, m.decode_step)
            if key not in self._newest:
                self._newest[key] = None
                made.append(m.fingerprint)
        for key in list(islice(self._newest, max(0, len(self._newest) - self._buffer))):
            del self._newest[key]
        return made

    def group(self, find: Callable[[Floats], Clusters]) -> Grouped:
        """Group what is there, with `find` where it is not online."""
        began = time.perf_counter()
        with self._lock:
            seen = self.seen
            snapshot = None if self.online is None else self.online.snapshot()
        if seen >= LEAST:
            found = self._found(find) if snapshot is None else _described_online(snapshot)
            self.now = Grouped(found.clusters, found.n, found.noise, time.time(), time.perf_counter() - began, found.by)
        self._grouped, self.error = seen, ""
        return self.now

    def newest(self) -> Floats:
        """[n, 20]: what HDBSCAN groups, oldest first."""
        with self._lock:
            size = len(self._values)
            if self.seen <= size:
                return self._values[: self.seen].astype(np.float64)
            return np.roll(self._values, -(self.seen % size), axis=0).astype(np.float64)

    def _found(self, find: Callable[[Floats], Clusters]) -> Grouped:
        values = self.newest()
        found = find(values)
        described = []
        for k in range(len(found)):
            members = values[found.labels == k]
            described.append(
                _described(k, len(members), members.mean(axis=0), float(found.radii[k]), traits_of(members, values))
            )
        return Grouped(described, len(values), int((found.labels == NOISE).sum()), by=found)


def _described_online(snapshot: Snapshot) -> Grouped:
    # Two rows with the mean and the deviation of all: no more of them than that is asked.
    everything = np.stack([snapshot.mean - snapshot.deviation, snapshot.mean + snapshot.deviation])
    described = []
    for k in sorted({*snapshot.labels.tolist()} - {NOISE}):
        members = snapshot.labels == k
        weight = float(snapshot.weights[members].sum())
        mean = snapshot.sums[members].sum(axis=0) / weight
        angles = np.arccos(np.clip(snapshot.directions[members] @ directions_of(mean)[0], -1.0, 1.0))
        traits = traits_of(mean[None], everything)
        described.append(_described(k, round(weight), mean, float(angles.max()) + snapshot.threshold, traits))
    noise = float(snapshot.weights[snapshot.labels == NOISE].sum())
    return Grouped(described, round(float(snapshot.weights.sum())), round(noise), by=snapshot)


def _described(label: int, size: int, mean: Floats, radius: float, traits: list[Trait]) -> Cluster:
    zone = classify(mean).zone
    return Cluster(label, name_of(ZoneOf(zone, 1.0), traits), size, mean, radius, zone, traits)
