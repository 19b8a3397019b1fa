"""The PULL socket: frames are read on a thread of their own, decoded, and handed on in batches.

Whatever is no message is counted and dropped. A frame beyond HARD_LIMIT closes its sender's connection, which is what
ZMQ does with it. ZMQ hands a message on when its last frame is there and keeps the others without a bound, so memory
beyond MOST_MEMORY closes every connection; senders connect again by themselves.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import zmq

from geomcli.errors import UsageError
from geomcli.sidecar.addresses import problem_of
from geomcli.sidecar.counters import Counters
from geomcli.sidecar.memory import resident
from geomcli.sidecar.messages import LONGEST, Malformed, Message, decode

HARD_LIMIT = 1 << 20
HIGH_WATER = 100_000  # messages that wait in the socket before senders have to
MOST_MEMORY = 1 << 30  # bytes more than at the start
_BATCH = 500
_POLL_MS = 100
_LAST_SECONDS = 1.0  # of senders that go on while it ends
_END_SECONDS = 10  # of its thread; longer, and whoever takes messages hangs
_LOOK_SECONDS = 0.25  # between looks at the memory
_BIND_SECONDS = 5.0
_REASONS = 20
_NOTICES = 5


class Receiver:
    """Binds at once; `take` is called from its thread with each batch. UsageError where it cannot bind."""

    def __init__(
        self,
        url: str,
        counters: Counters,
        take: Callable[[Sequence[Message]], None],
        *,
        most_memory: int = MOST_MEMORY,
    ) -> None:
        self._counters = counters
        self._take = take
        self.reasons: deque[str] = deque(maxlen=_REASONS)  # why the last frames were no messages
        self.notices: deque[str] = deque(maxlen=_NOTICES)
        try:
            if problem := problem_of(url):
                raise zmq.ZMQError(msg=problem)
            self._context, self._socket = _listening(url)
        except zmq.ZMQError as error:
            raise UsageError(f"--zmq-bind {url}: {error.strerror}.", "--zmq-bind tcp://127.0.0.1:9001") from None
        self.url = str(self._socket.getsockopt_string(zmq.LAST_ENDPOINT)).rstrip("\0")
        self._most_memory, self._memory, self._looked = most_memory, resident(), time.monotonic()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="receiver", daemon=True)
        self._thread.start()

    def close(self) -> bool:
        """Take no new senders, read what has arrived for at most a second, then stop; whether it did."""
        self._closing.set()
        self._thread.join(_END_SECONDS)
        if self._thread.is_alive():  # the context would wait for its socket without end
            return False
        self._context.term()
        return True

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._read()
        finally:
            self._socket.close()

    def _read(self) -> None:
        ends = 0.0
        while not ends or time.monotonic() < ends:
            if self._closing.is_set() and not ends:
                ends = time.monotonic() + _LAST_SECONDS
                self._socket.unbind(self.url)
            waiting = self._socket.poll(_POLL_MS)
            if not waiting and ends:
                return
            if waiting:
                self._take_some()
            if not ends and time.monotonic() - self._looked > _LOOK_SECONDS:
                self._looked = time.monotonic()
                if resident() - self._memory > self._most_memory:
                    self._close_connections()

    def _take_some(self) -> bool:
        """Whether any frames were there."""
        batch: list[Message] = []
        some = False
        for _ in range(_BATCH):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            some = True
            self._decoded(frames, batch)
        if batch:
            self._take(batch)
            self._counters.received += len(batch)
        return some

    def _close_connections(self) -> None:
        """Of every sender, after what is whole has been read, as far as they do not go on."""
        for _ in range(HIGH_WATER // _BATCH):
            if not self._take_some():
                break
        self._socket.close()
        self._context.term()
        self._context, self._socket = _listening(self.url, _BIND_SECONDS)
        self._memory = max(self._memory, resident())
        self._counters.oversized += 1
        self.reasons.append("messages without an end: every connection was closed")
        self.notices.append(
            f"messages without an end filled the memory at {time.strftime('%Y-%m-%d %H:%M:%S')}: every connection was "
            "closed, and what others were sending then may be lost."
        )

    def _decoded(self, frames: Sequence[bytes], batch: list[Message]) -> None:
        try:
            if len(frames) != 1:
                raise Malformed(f"{len(frames)} frames in one message")
            batch.append(decode(frames[0]))
        except Malformed as error:
            if sum(map(len, frames)) > LONGEST:
                self._counters.oversized += 1
            else:
                self._counters.malformed += 1
            self.reasons.append(str(error))


def _listening(url: str, seconds: float = 0.0) -> tuple[zmq.Context[zmq.Socket[bytes]], zmq.Socket[bytes]]:
    """A socket in a context of its own, tried again for so long; ZMQError where it cannot bind."""
    context = zmq.Context()
    made = context.socket(zmq.PULL)
    made.set(zmq.RCVHWM, HIGH_WATER)
    made.set(zmq.MAXMSGSIZE, HARD_LIMIT)
    made.set(zmq.LINGER, 0)
    made.set(zmq.IPV6, "[" in url)
    ends = time.monotonic() + seconds
    while True:
        try:
            made.bind(url)
            return context, made
        except zmq.ZMQError:
            if time.monotonic() >= ends:
                context.destroy(0)
                raise
            time.sleep(0.05)
