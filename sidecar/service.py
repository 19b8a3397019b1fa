"""The parts of a sidecar, started together and ended in the order in which nothing is lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from geomcli.sidecar.counters import Counters
from geomcli.sidecar.grouping import BUFFER, Grouping
from geomcli.sidecar.messages import Message
from geomcli.sidecar.receiver import Receiver
from geomcli.sidecar.reloading import Discoveries
from geomcli.sidecar.storage import Storage


@dataclass(frozen=True)
class Options:
    """zmq_bind: where messages come in; db: the store; discovery: folder of artifacts; interval, reload: seconds;
    threshold: of online micro-clusters, in radians; buffer: newest fingerprints of each model that HDBSCAN groups.
    """

    zmq_bind: str
    db: Path
    discovery: Path | None = None
    interval: float = 60.0
    reload: float = 300.0
    online: bool = False
    threshold: float | None = None
    buffer: int = BUFFER


class Service:
    """Runs from the moment it is made until `close`."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.counters = Counters()
        self._closed = False
        self._failed: list[str] = []
        self.storage = Storage(options.db, self.counters)
        self.grouping = Grouping(
            online=options.online, threshold=options.threshold, interval=options.interval, buffer=options.buffer
        )
        self.discoveries = Discoveries(options.discovery, options.reload)
        try:
            self.receiver = Receiver(options.zmq_bind, self.counters, self._take)
        except BaseException:
            self._close_rest()
            raise

    def _take(self, messages: Sequence[Message]) -> None:
        self.storage.put(messages)
        self.grouping.put(messages)

    def problems(self) -> list[str]:
        """What does not work now, a sentence each."""
        found = [] if self.receiver.alive else ["the receiver has ended: no message is read."]
        if not self.storage.alive:
            found.append("the writer has ended: nothing is stored.")
        if problem := self.storage.problem:
            found.append(problem)
        if self.grouping.error:
            found.append(f"grouping failed: {self.grouping.error}.")
        return found

    def close(self) -> list[str]:
        """What has arrived is stored first; what failed, a sentence each. Closed twice, it stays closed."""
        if not self._closed:
            self._closed = True
            if not self.receiver.close():
                self._failed.append("the receiver did not end: messages may be lost.")
            if lost := self._close_rest():
                self._failed.append(f"{lost} messages were not stored: {self.storage.error}")
        return self._failed

    def _close_rest(self) -> int:
        self.discoveries.close()
        self.grouping.close()
        return self.storage.close()
