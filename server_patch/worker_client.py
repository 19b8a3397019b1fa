"""Main process: starts the process that builds entries and orders from it; builds here when it is gone."""

from __future__ import annotations

import asyncio
import pickle
import socket
import subprocess
import sys
from collections import deque

from geomcli.server_patch import faults
from geomcli.server_patch.receiver import Receiver
from geomcli.server_patch.worker import LENGTH, Builder, Built, Order, read_message

_BUFFER_BYTES = 1 << 22
_START_SECONDS = 60.0


class EntryWorker:
    """Orders are answered one after the other, in their order; any number may be under way. For one event loop."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._connection: asyncio.Task[None] | None = None
        self._to_send: asyncio.Queue[Order] = asyncio.Queue()
        self._pending: deque[tuple[Order, asyncio.Future[Built | None]]] = deque()
        self._address: str | None = None
        self._builder: Builder | None = None
        self._unwatched: Receiver | None = None

    def start(self, address: str) -> None:
        """Start the process, which reads what is published at `address`; without it entries are built here."""
        self._address = address
        mine, its = socket.socketpair()
        try:
            for end in (mine, its):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            command = [sys.executable, "-P", "-m", "geomcli.server_patch.worker"]
            self.process = subprocess.Popen(command, stdin=its.fileno())
            its.close()
            data = pickle.dumps(address)
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
        if self._connection is None:
            self._connection = asyncio.create_task(self._connected(self._socket))
        self._pending.append((order, future))
        self._to_send.put_nowait(order)
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
            self._builder, self._unwatched = Builder(receiver), receiver
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

    async def _connected(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection, limit=_BUFFER_BYTES)
        sender = asyncio.create_task(self._send(writer))
        try:
            while True:
                await self._answered(reader)
        except (OSError, EOFError):
            faults.report("the process that builds entries is gone; they are built here")
        finally:
            sender.cancel()
            writer.close()
            self.stop()

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        while True:
            data = pickle.dumps(tuple(await self._to_send.get()), protocol=5)
            writer.write(LENGTH.pack(len(data)))
            writer.write(data)
            await writer.drain()

    async def _answered(self, reader: asyncio.StreamReader) -> None:
        size = LENGTH.unpack(await reader.readexactly(LENGTH.size))[0]
        answer = pickle.loads(await reader.readexactly(size))
        _, future = self._pending.popleft()
        if not future.done():
            future.set_result(answer)

    def stop(self) -> None:
        """End the process, and build here what it still owes."""
        if self._connection is not None:
            self._connection.cancel()
        elif self._socket is not None:
            self._socket.close()
        self._socket = None
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        while self._pending:
            order, future = self._pending.popleft()
            if not future.done():
                self._build_here(order, future)
