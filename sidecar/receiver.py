"""The PULL socket: frames are read on a thread of their own, decoded, and handed on in batches.

Whatever is no message is counted and dropped. A frame beyond HARD_LIMIT closes its sender's connection, which is what
ZMQ does with it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import zmq

from geomcli.errors import UsageError
from geomcli.sidecar.counters import Counters
from geomcli.sidecar.messages import LONGEST, Malformed, Message, decode

HARD_LIMIT = 1 << 20
HIGH_WATER = 100_000  # messages that wait in the socket before senders have to
_BATCH = 500
_POLL_MS = 100
_LAST_SECONDS = 1.0  # of senders that go on while it ends
_END_SECONDS = 10  # of its thread; longer, and whoever takes messages hangs
_REASONS = 20


class Receiver:
    """Binds at once; `take` is called from its thread with each batch. UsageError where it cannot bind."""

    def __init__(self, url: str, counters: Counters, take: Callable[[Sequence[Message]], None]) -> None:
        self._counters = counters
        self._take = take
        self.reasons: deque[str] = deque(maxlen=_REASONS)  # why the last frames were no messages
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.set(zmq.RCVHWM, HIGH_WATER)
        self._socket.set(zmq.MAXMSGSIZE, HARD_LIMIT)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.IPV6, "[" in url)
        try:
            if not url.startswith(("tcp://", "ipc://")):
                raise zmq.ZMQError(msg="it is neither tcp:// nor ipc://")
            self._socket.bind(url)
        except zmq.ZMQError as error:
            self._context.destroy(0)
            raise UsageError(f"--zmq-bind {url}: {error.strerror}.", "--zmq-bind tcp://127.0.0.1:9001") from None
        self.url = str(self._socket.getsockopt_string(zmq.LAST_ENDPOINT)).rstrip("\0")
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
            batch: list[Message] = []
            for _ in range(_BATCH if waiting else 0):
                try:
                    frames = self._socket.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                self._decoded(frames, batch)
            if batch:
                self._take(batch)
                self._counters.received += len(batch)

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
