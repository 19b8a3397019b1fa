"""Scheduler process: what the device found goes straight to the process that builds entries.

SGLang's own way back, with the tokens through two more processes, costs the scheduler a copy and a pickle of every
record, which the GPU waits for. Here a step costs it one small message, whatever the number of requests.
"""

from __future__ import annotations

import errno
import os
import pickle
import secrets
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geomcli.server_patch import faults
from geomcli.server_patch.ring import Ring

REQUEST, GONE, STEP, KEPT = range(4)  # first item of a message
MESSAGE_BYTES = 1 << 18  # that a reader takes at a time
_PEER = struct.Struct("3i")
_SEND_BUFFER_BYTES = 1 << 22
_MESSAGES_HELD = 256
_PAUSE_SECONDS = 0.1
_STEPS_HELD = 48  # of the largest kind
_LEAST_BYTES, _MOST_BYTES = 16 << 20, 256 << 20


class Part(NamedTuple):
    """One array of 4-byte numbers of a step."""

    name: str
    kind: str  # numpy's name of its type
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        size = 4
        for n in self.shape:
            size *= n
        return size


class Reservation(NamedTuple):
    """Room for the parts of one step, one behind the other."""

    reader: int
    start: int
    end: int
    parts: tuple[Part, ...]


class Publisher:
    """Waits for a reader at `address`; a new one takes the place of the last. Nothing here blocks or raises.

    largest: bytes of the largest step. layers: those that are captured.
    """

    def __init__(self, layers: tuple[int, ...], largest: int) -> None:
        self.ring = Ring.create(max(2 * largest, min(_MOST_BYTES, max(_LEAST_BYTES, _STEPS_HELD * largest))))
        # In Linux's abstract namespace: no file is left behind.
        self.address = f"\0geom-{os.getpid()}-{secrets.token_hex(8)}"
        self._hello = pickle.dumps((self.ring.size, layers))
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(self.address)
        self._listener.listen(1)
        self._arrival = threading.Lock()
        self._incoming: socket.socket | None = None
        self._connection: socket.socket | None = None
        self._reader = 0
        self._requests: dict[int, bytes] = {}  # announcements of the requests that live, by stamp
        self._kept: dict[int, bytes] = {}  # what is held of their texts, by stamp
        self._outbox: deque[bytes] = deque()
        threading.Thread(target=self._accept, name="geom-records", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
                peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
                if _PEER.unpack(peer)[1] != os.getuid():
                    connection.close()
                    continue
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
                connection.setblocking(False)
                # Whoever has read the greeting is the reader of whatever is published from then on.
                with self._arrival:
                    socket.send_fds(connection, [self._hello], [self.ring.file])
                    self._incoming = connection
            except OSError:
                faults.report("a reader of records could not be served")
                time.sleep(_PAUSE_SECONDS)

    def announce(self, stamp: int, description: tuple[Any, ...]) -> None:
        """A request whose records will follow; description: the rest of the fields of receiver.Request."""
        self._requests[stamp] = message = pickle.dumps((REQUEST, stamp, *description))
        if self._connection is not None:
            self._outbox.append(message)

    def forget(self, stamp: int) -> None:
        """The request is over. May be called while any other method runs."""
        self._kept.pop(stamp, None)
        if self._requests.pop(stamp, None) is not None and self._connection is not None:
            self._outbox.append(pickle.dumps((GONE, stamp)))

    def keep(self, stamp: int, length: int, mask: bytes) -> None:
        """From the request's next step on, those tokens of its text are held that the mask of `presence.packed` has."""
        message = pickle.dumps((KEPT, stamp, length, mask))
        if len(message) > MESSAGE_BYTES:
            faults.note("a text is too long for its entries to say which tokens have left")
            return
        self._kept[stamp] = message
        if self._connection is not None and len(self._outbox) <= _MESSAGES_HELD:
            self._outbox.append(message)

    def reserve(self, parts: Sequence[Part]) -> Reservation | None:
        """None when nobody reads, or too slowly: the step is lost."""
        self._greet()
        if self._connection is None:
            faults.note("records are lost: nobody reads them")
            return None
        place = self.ring.reserve(sum(part.n_bytes for part in parts))
        if place is None:
            faults.note("records are lost: the process that builds entries is too slow")
            return None
        return Reservation(self._reader, *place, tuple(parts))

    def views(self, at: Reservation) -> list[NDArray[Any]]:
        """The parts' places, to be filled."""
        views, start = [], at.start
        for part in at.parts:
            views.append(self.ring.view(start, part.n_bytes).view(np.dtype(part.kind)).reshape(part.shape))
            start += part.n_bytes
        return views

    def publish(
        self,
        at: Reservation,
        flags: tuple[str, ...],
        windows: tuple[int, ...],
        judged: tuple[Any, ...] = (),
        sampled: tuple[Any, ...] = (),
    ) -> None:
        """The parts are in their place; flags, windows, judged, sampled: see receiver.Step."""
        self._greet()
        if self._connection is None or at.reader != self._reader:
            return
        self._flush()
        if len(self._outbox) > _MESSAGES_HELD:
            faults.note("records are lost: the process that builds entries does not listen")
            return
        parts = tuple(tuple(part) for part in at.parts)
        said = (tuple(tuple(one) for one in judged), tuple(tuple(one) for one in sampled))
        self._outbox.append(pickle.dumps((STEP, at.start, at.end, flags, windows, parts, *said)))
        self._flush()

    def _greet(self) -> None:
        """A reader that has come hears of all requests that live, and of nothing that was meant for the last."""
        with self._arrival:
            connection, self._incoming = self._incoming, None
        if connection is None:
            return
        if self._connection is not None:
            self._connection.close()
        self._connection, self._reader = connection, self._reader + 1
        self.ring.forget()
        self._outbox.clear()
        self._outbox.extend(self._requests.copy().values())
        self._outbox.extend(self._kept.copy().values())

    def _flush(self) -> None:
        while self._outbox and self._connection is not None:
            try:
                self._connection.send(self._outbox[0])
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.EMSGSIZE:
                    faults.report("a message to the process that builds entries is too long")
                    self._outbox.popleft()
                    continue
                self._connection.close()
                self._connection = None
                self._outbox.clear()
                return
            self._outbox.popleft()
