"""The clusters of live traffic: HDBSCAN over the newest fingerprints every interval, or online as they come.

HDBSCAN runs in a process of its own, since it keeps Python's lock for longer than an answer may take. The process ends
itself when its sidecar is gone, or a grouping takes too long.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import CancelledError, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process

from geomcli import clusters
from geomcli.clusters import Clusters
from geomcli.errors import GeomError
from geomcli.sidecar.amounts import Amounts
from geomcli.sidecar.messages import Message
from geomcli.sidecar.online import THRESHOLD, OnlineClusters
from geomcli.sidecar.traffic import Floats, Traffic

BUFFER = 20_000  # newest fingerprints of a model
MOST_MODELS = 8
SAMPLE = 5_000  # HDBSCAN's time grows with their square
ONLINE_SECONDS = 0.5  # between looks at online clusters that nobody asks for: metrics count them
LONGEST_SECONDS = 300  # of a grouping
_START_SECONDS = 60  # of the process that groups
_END_SECONDS = 5
_DROPPED = 8


class UnknownModel(LookupError):
    """A model that no fingerprints are kept of."""


class Grouping:
    """Takes messages, and groups those of each model by themselves; a model beyond `most_models` pushes out the one
    that the least came of lately. `longest`: seconds of a grouping, and more is an error.
    """

    def __init__(
        self,
        *,
        online: bool = False,
        threshold: float | None = None,
        interval: float = 60.0,
        buffer: int = BUFFER,
        most_models: int = MOST_MODELS,
        longest: float = LONGEST_SECONDS,
    ) -> None:
        self.is_online = online
        self.most_models, self.longest = most_models, longest
        self.models_dropped = 0
        self.last_dropped: deque[str] = deque(maxlen=_DROPPED)  # their names
        self.runs = 0
        self._threshold = THRESHOLD if threshold is None else threshold
        self._interval = ONLINE_SECONDS if online else interval
        self._buffer = buffer
        self._traffic: dict[str, Traffic] = {}  # the one of the newest fingerprints last
        self._amounts = Amounts()
        self._lock = threading.Lock()
        self._running = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="grouping", daemon=True)
        self._thread.start()

    @property
    def traffic(self) -> list[Traffic]:
        """Of each model, the one of the newest fingerprints first."""
        with self._lock:
            return [*self._traffic.values()][::-1]

    @property
    def error(self) -> str:
        """Why fingerprints could not be grouped last time, "" where they were."""
        return "; ".join(f"{traffic.model}: {traffic.error}" for traffic in self.traffic if traffic.error)

    def of(self, model: str | None = None) -> Traffic | None:
        """The traffic of a model, by default that of the newest fingerprints, None before there are any.

        UnknownModel where none of the model's are kept.
        """
        every = self.traffic
        if model is None:
            return every[0] if every else None
        for traffic in every:
            if traffic.model == model:
                return traffic
        kept = ", ".join(traffic.model for traffic in every) or "no model at all"
        raise UnknownModel(f"no fingerprints of the model {model} are kept, but of {kept}.")

    def current(self, model: str | None = None) -> Traffic | None:
        """`of`, and online its clusters are of all that came before."""
        traffic = self.of(model)
        if traffic is not None and self.is_online:
            self._refresh(traffic)
        return traffic

    def put(self, messages: Sequence[Message]) -> None:
        of_model: dict[str, list[Message]] = {}
        for m in messages:
            of_model.setdefault(m.model, []).append(m)
        newest = messages[-1].model
        for model in sorted(of_model, key=lambda name: name == newest):
            self._amounts.add(model, len(of_model[model]))
            self._newest(model).put(of_model[model])

    def recluster(self, model: str | None = None) -> Traffic | None:
        """Group what is there of a model; one at a time. UnknownModel as `of`."""
        traffic = self.of(model)
        if traffic is not None:
            with self._running:
                self._group(traffic)
        return traffic

    def give_up(self) -> None:
        """A grouping that runs or waits is an error, and so are all later ones."""
        self._closing.set()
        _kill(self._pool)

    def close(self) -> None:
        self.give_up()
        self._thread.join(_END_SECONDS)

    def _newest(self, model: str) -> Traffic:
        with self._lock:
            found = self._traffic.pop(model, None)
            if found is None:
                online = OnlineClusters(self._threshold) if self.is_online else None
                found = Traffic(model, self._buffer, online)
                if len(self._traffic) >= self.most_models:
                    least = self._amounts.least(self._traffic)
                    del self._traffic[least]
                    self.models_dropped += 1
                    self.last_dropped.append(least)
            self._traffic[model] = found
            return found

    def _group(self, traffic: Traffic) -> None:
        before = traffic.now
        self.runs += traffic.group(self._find) is not before

    def _refresh(self, traffic: Traffic) -> None:
        """Group it where fingerprints came since. Its error says why that failed, whatever they are."""
        with self._running:
            try:
                if traffic.is_stale:
                    self._group(traffic)
            except Exception as error:
                traffic.error = f"{type(error).__name__}: {error}"

    def _run(self) -> None:
        while not self._closing.wait(self._interval):
            for traffic in self.traffic:
                if not self._closing.is_set():
                    self._refresh(traffic)

    def _find(self, values: Floats) -> Clusters:
        if self._closing.is_set():
            raise GeomError("the sidecar ends.")
        if self._pool is None:
            # No fork: threads are running.
            self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_bound_to_parent)
        try:
            return self._pool.submit(_found, values, self.longest).result(_START_SECONDS + self.longest)
        except (BrokenProcessPool, CancelledError, TimeoutError) as error:
            _kill(self._pool)
            self._pool = None  # the next one gets a process of its own
            if self._closing.is_set():
                raise GeomError("the sidecar ends.") from error
            raise GeomError(f"the process that groups was ended, or took longer than {self.longest:g} s.") from error


def _kill(pool: ProcessPoolExecutor | None) -> None:
    """What Python 3.14 calls kill_workers; of a pool that only shuts down, Python waits for the work before it ends."""
    if pool is None:
        return
    for process in [*(pool._processes or {}).values()]:
        process.kill()
    pool.shutdown(wait=False, cancel_futures=True)


def _found(values: Floats, longest: float) -> Clusters:
    # The signal ends the process whatever holds Python's lock.
    signal.setitimer(signal.ITIMER_REAL, longest)
    try:
        return clusters.find(values, sample=SAMPLE)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _bound_to_parent() -> None:
    """Whoever started this process ends it: not Ctrl-C in a terminal, which reaches all of a group, but kill -9 too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
