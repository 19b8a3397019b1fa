"""The other end of the publisher: announcements of requests and the records of steps, in their order."""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geomcli.server_patch.publisher import GONE, KEPT, MESSAGE_BYTES, REQUEST, Part
from geomcli.server_patch.ring import Ring

_GREETING_SECONDS = 5.0


class Request(NamedTuple):
    """What the scheduler says of a request that asked, once."""

    stamp: int  # names it on the device
    key: str  # names it in the main process
    options: str  # CaptureOptions as JSON
    prompt_len: int


class Gone(NamedTuple):
    stamp: int


class Kept(NamedTuple):
    """What is held of a request's text from its next step on."""

    stamp: int
    length: int
    mask: bytes  # of presence.packed


class Step(NamedTuple):
    """Arrays of one step; they are overwritten once the next message was asked for."""

    flags: tuple[str, ...]  # raised on every entry of the step
    windows: tuple[int, ...]  # sliding windows of the captured layers in this kind of step, -1: none
    parts: dict[str, NDArray[Any]]
    judged: tuple[tuple[Any, ...], ...] = ()  # the fields of watching.Judged
    sampled: tuple[tuple[Any, ...], ...] = ()  # the fields of zone_sampling.Sampled


class Receiver:
    """OSError when nobody publishes at `address`."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.settimeout(_GREETING_SECONDS)
            self._socket.connect(address)
            hello, files, _, _ = socket.recv_fds(self._socket, MESSAGE_BYTES, 1)
            if not files:
                raise ConnectionError("the scheduler has closed the channel of records")
            size, self.layers = pickle.loads(hello)
            self._ring = Ring(files[0], size)
            os.close(files[0])  # mapped
            self._socket.setblocking(False)
        except BaseException:
            self._socket.close()
            raise
        self.open = True

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()
        self.open = False

    def messages(self) -> Iterator[Request | Gone | Kept | Step]:
        """Those that have come."""
        while self.open:
            try:
                data = self._socket.recv(MESSAGE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            try:
                kind, *fields = pickle.loads(data)
            except Exception:
                # The end, or what nobody can go on behind.
                self.close()
                return
            if kind == REQUEST:
                yield Request(*fields)
            elif kind == GONE:
                yield Gone(*fields)
            elif kind == KEPT:
                yield Kept(*fields)
            else:
                start, end, flags, windows, parts, judged, sampled = fields
                try:
                    yield Step(flags, windows, self._parts(start, parts), judged, sampled)
                finally:
                    self._ring.release(end)

    def _parts(self, start: int, parts: Any) -> dict[str, NDArray[Any]]:
        found = {}
        for fields in parts:
            part = Part(*fields)
            found[part.name] = self._ring.view(start, part.n_bytes).view(np.dtype(part.kind)).reshape(part.shape)
            start += part.n_bytes
        return found
