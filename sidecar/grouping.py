"""The clusters of live traffic: HDBSCAN over the newest fingerprints every interval, or online as they come.

HDBSCAN runs in a process of its own, since it keeps Python's lock for longer than an answer may take.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomcli import clusters
from geomcli.clusters import NOISE, Clusters
from geomcli.compass import directions_of
from geomcli.discovery.traits import Trait, ZoneOf, name_of, traits_of
from geomcli.fingerprint import FINGERPRINT_SIZE
from geomcli.sidecar.messages import Message
from geomcli.sidecar.online import OnlineClusters
from geomcli.zones import classify

Floats = NDArray[np.float64]

BUFFER = 20_000  # newest fingerprints
LEAST = 50  # below, there is nothing to group
SAMPLE = 5_000  # HDBSCAN's time grows with their square


@dataclass(frozen=True, eq=False)
class Cluster:
    """centroid [20]: mean of the members; radius: in standard deviations, or online in radians."""

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
    batch: Clusters | None = None  # to assign by


class Grouping:
    """Takes messages; `now` are the clusters. One model at a time: the one of the newest fingerprints."""

    def __init__(
        self, *, online: bool = False, threshold: float | None = None, interval: float = 60.0, buffer: int = BUFFER
    ) -> None:
        self.online = OnlineClusters(threshold) if threshold is not None else OnlineClusters()
        self.is_online = online
        self.now = Grouped()
        self.error = ""
        self.runs = 0
        self._interval = interval
        self._values = np.zeros((buffer, FINGERPRINT_SIZE), dtype=np.float32)
        self._filled = 0  # of all that came
        self._lock = threading.Lock()
        self._running = threading.Lock()
        self._pool: Executor | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="grouping", daemon=True)
        self._thread.start()

    def put(self, messages: Sequence[Message]) -> None:
        every = np.frombuffer(b"".join(m.fingerprint for m in messages), dtype="<f4").reshape(-1, FINGERPRINT_SIZE)
        with self._lock:
            rows = every[-len(self._values) :]
            places = (self._filled + np.arange(len(rows))) % len(self._values)
            self._values[places] = rows
            self._filled += len(rows)
            if self.is_online:
                self.online.add(every)

    def newest(self) -> Floats:
        """[n, 20]: what is grouped, oldest first."""
        with self._lock:
            size = len(self._values)
            if self._filled <= size:
                return self._values[: self._filled].astype(np.float64)
            return np.roll(self._values, -(self._filled % size), axis=0).astype(np.float64)

    def recluster(self) -> Grouped:
        """Group what is there; one at a time."""
        with self._running:
            began = time.perf_counter()
            values = self.newest()
            if len(values) < LEAST:
                return self.now
            found = self._online(values) if self.is_online else self._batch(values)
            self.now = Grouped(
                found.clusters, found.n, found.noise, time.time(), time.perf_counter() - began, found.batch
            )
            self.runs += 1
            self.error = ""
            return self.now

    def predict(self, fingerprint: NDArray[Any]) -> tuple[Cluster | None, float, float]:
        """(cluster, distance, radius) of a fingerprint [20]; off the manifold None, and those of the nearest."""
        now = self.now
        if not now.clusters:
            return None, float("nan"), float("nan")
        if now.batch is not None:
            z = (np.asarray(fingerprint, dtype=np.float64) - now.batch.mean) / now.batch.scale
            apart = np.sqrt((((now.batch.medoids - now.batch.mean) / now.batch.scale - z) ** 2).sum(axis=1))
            radii = now.batch.radii
        else:
            centres = directions_of(np.array([cluster.centroid for cluster in now.clusters]))
            apart = np.arccos(np.clip(centres @ directions_of(fingerprint)[0], -1.0, 1.0))
            radii = np.array([cluster.radius for cluster in now.clusters])
        inside = np.flatnonzero(apart <= radii * (1 + 1e-9))
        best = int(inside[apart[inside].argmin()]) if len(inside) else int((apart / np.maximum(radii, 1e-9)).argmin())
        return (now.clusters[best] if len(inside) else None), float(apart[best]), float(radii[best])

    def close(self) -> None:
        self._closing.set()
        self._thread.join(5)
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        while not self._closing.wait(self._interval):
            try:
                self.recluster()
                self.error = ""
            except Exception as error:  # the thread has to live on, whatever one set of fingerprints does
                self.error = f"{type(error).__name__}: {error}"

    def _batch(self, values: Floats) -> Grouped:
        if self._pool is None:
            # No fork: threads are running.
            self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_quiet)
        try:
            found = self._pool.submit(clusters.find, values, sample=SAMPLE).result()
        except BrokenProcessPool:
            self._pool = None  # the next one gets a process of its own
            raise
        described = [_described(values, found.labels, k, float(found.radii[k])) for k in range(len(found))]
        return Grouped(described, len(values), int((found.labels == NOISE).sum()), batch=found)

    def _online(self, values: Floats) -> Grouped:
        with self._lock:
            labels = self.online.labels(values)
        described = []
        for k in range(int(labels.max(initial=NOISE)) + 1):
            members = values[labels == k]
            if len(members):
                centre = directions_of(members.mean(axis=0))[0]
                angles = np.arccos(np.clip(directions_of(members) @ centre, -1.0, 1.0))
                described.append(_described(values, labels, k, float(angles.max())))
        return Grouped(described, len(values), int((labels == NOISE).sum()))


def _quiet() -> None:
    """Ctrl-C in a terminal reaches every process of the group; whoever started this one ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _described(values: Floats, labels: NDArray[np.int64], label: int, radius: float) -> Cluster:
    members = values[labels == label]
    traits = traits_of(members, values)
    mean = members.mean(axis=0)
    zone = classify(mean).zone
    return Cluster(label, name_of(ZoneOf(zone, 1.0), traits), len(members), mean, radius, zone, traits)
