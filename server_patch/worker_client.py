"""Main process: starts the process that builds entries and orders from it; builds here when it is gone."""

from __future__ import annotations

import asyncio
import pickle
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any

from geomcli.server_patch import faults
from geomcli.server_patch.receiver import Receiver
from geomcli.server_patch.worker import LENGTH, Builder, Built, Order, Start, read_message

_BUFFER_BYTES = 1 << 22
_READ_BYTES = 1 << 18
_START_SECONDS = 60.0


class EntryWorker:
    """Orders are answered one after the other, in their order; any number may be under way. For one event loop."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # in which the socket is read
        self._unsent, self._received = bytearray(), bytearray()
        self._pending: deque[tuple[Order, asyncio.Future[Built | None]]] = deque()
        self._address: str | None = None
        self._model = ""
        self._builder: Builder | None = None
        self._unwatched: Receiver | None = None

    def start(self, address: str, model: str = "") -> None:
        """Start the process, which reads what is published at `address`; without it entries are built here.

        model: what messages for the sidecar call it; without there are none.
        """
        self._address, self._model = address, model
        mine, its = socket.socketpair()
        try:
            for end in (mine, its):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            command = [sys.executable, "-P", "-m", "geomcli.server_patch.worker"]
            self.process = subprocess.Popen(command, stdin=its.fileno())
            its.close()
            data = pickle.dumps(tuple(Start(address, model)))
            mine.sendall(LENGTH.pack(len(data)) + data)
            # Nothing that the scheduler publishes before it has a reader is kept.
            mine.settimeout(_START_SECONDS)
            with mine.makefile("rb", buffering=0) as stream:
                if not read_message(stream):
                    raise ConnectionError("the process that builds entries has ended")
            mine.settimeout(None)
            self._socket = mine
        except OSError:
            faults.report("the process that builds entries could not be started; they are built here")
            mine.close()
            if self.process is not None:
                self.process.kill()
                self.process.wait()
            self._here()
        finally:
            its.close()

    def listen(self) -> None:
        """For each request that asks, in the event loop, before its first token: its records need a reader by then."""
        if self._socket is None:
            self._here()
            self._watch()

    def build(self, order: Order) -> asyncio.Future[Built | None]:
        """None when the order could not be read; what the process does not answer is built here, with new compasses."""
        future: asyncio.Future[Built | None] = asyncio.get_running_loop().create_future()
        if self._socket is None:
            self._build_here(order, future)
            return future
        if self._loop is None:
            self._loop = self._connect(self._socket)
        self._pending.append((order, future))
        data = pickle.dumps(tuple(order), protocol=5)
        waiting = bool(self._unsent)
        self._unsent += LENGTH.pack(len(data)) + data
        if not waiting:
            self._send(self._socket, self._loop)
        return future

    def _build_here(self, order: Order, future: asyncio.Future[Built | None]) -> None:
        try:
            builder = self._here()
            self._watch()
            future.set_result(builder.build(order))
        except Exception:
            faults.report("a batch of entries could not be built")
            future.set_result(None)

    def _here(self) -> Builder:
        """Of this process, which then reads the records itself."""
        if self._builder is None:
            if self._address is None:
                self._builder = Builder(None)
                return self._builder
            try:
                receiver = Receiver(self._address)
            except OSError:
                faults.report("the scheduler publishes no records; captured tokens' entries are errors")
                return Builder(None)
            self._builder, self._unwatched = Builder(receiver, self._model), receiver
        return self._builder

    def _watch(self) -> None:
        """Read what comes between two orders, too: the scheduler keeps room for some steps only."""
        builder, receiver = self._builder, self._unwatched
        if builder is None or receiver is None:
            return
        self._unwatched = None
        loop, file = asyncio.get_running_loop(), receiver.fileno()

        def read() -> None:
            builder.take_in()
            if not receiver.open:
                loop.remove_reader(file)

        loop.add_reader(file, read)

    def _connect(self, connection: socket.socket) -> asyncio.AbstractEventLoop:
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        loop.add_reader(connection, self._read, connection)
        return loop

    def _send(self, connection: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        """What the socket takes at once, mostly all of it; the rest when it takes more."""
        try:
            del self._unsent[: connection.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self._lost()
            return
        if self._unsent:
            loop.add_writer(connection, self._send, connection, loop)
        else:
            loop.remove_writer(connection)

    def _read(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._received += data
        try:
            for answer in _messages(self._received):
                _, future = self._pending.popleft()
                if not future.done():
                    future.set_result(answer)
        except Exception:
            data = b""
        if not data:
            self._lost()

    def _lost(self) -> None:
        faults.note("the process that builds entries is gone; they are built here")
        self.stop()

    def stop(self) -> None:
        """End the process, and build here what it still owes."""
        if self._socket is not None:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.remove_reader(self._socket)
                self._loop.remove_writer(self._socket)
            self._socket.close()
        self._socket = None
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        while self._pending:
            order, future = self._pending.popleft()
            if not future.done():
                self._build_here(order, future)


def _messages(received: bytearray) -> Iterator[Any]:
    """The whole messages at the beginning of what was received, from which they are taken."""
    while len(received) >= LENGTH.size:
        end = LENGTH.size + LENGTH.unpack_from(received)[0]
        if len(received) < end:
            return
        message = received[LENGTH.size : end]
        del received[:end]
        yield pickle.loads(message)
