"""Main process: starts the process that builds entries and orders from it; builds here when it is gone."""

from __future__ import annotations

import asyncio
import pickle
import socket
import subprocess
import sys

from geomcli.server_patch import faults
from geomcli.server_patch.worker import LENGTH, Builder, Built, Order

_BUFFER_BYTES = 1 << 22
# The first order may come while the process still imports, on a machine that is busy starting an engine.
_PATIENCE_SECONDS = 60.0


class EntryWorker:
    """Takes one order after the other, from one event loop."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._here = Builder(())

    def start(self, layers: tuple[int, ...]) -> None:
        """Start the process; without it entries are built here."""
        self._here = Builder(layers)
        mine, its = socket.socketpair()
        try:
            for end in (mine, its):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            command = [sys.executable, "-P", "-m", "geomcli.server_patch.worker"]
            self.process = subprocess.Popen(command, stdin=its.fileno())
            data = pickle.dumps(layers)
            mine.sendall(LENGTH.pack(len(data)) + data)
            self._socket = mine
        except OSError:
            faults.report("the process that builds entries could not be started; they are built here")
            mine.close()
        finally:
            its.close()

    async def build(self, order: Order) -> Built | None:
        """None when the order could not be read; what the process does not answer is built here, with new compasses."""
        async with self._turn:
            if self._socket is not None:
                try:
                    return await asyncio.wait_for(self._ordered(order), _PATIENCE_SECONDS)
                except (OSError, EOFError, TimeoutError):
                    faults.report("the process that builds entries is gone; they are built here")
                    self.stop()
            return self._here.build(order)

    async def _ordered(self, order: Order) -> Built | None:
        if self._streams is None:
            self._streams = await asyncio.open_connection(sock=self._socket, limit=_BUFFER_BYTES)
        reader, writer = self._streams
        data = pickle.dumps(tuple(order), protocol=5)
        writer.write(LENGTH.pack(len(data)))
        writer.write(data)
        await writer.drain()
        size = LENGTH.unpack(await reader.readexactly(LENGTH.size))[0]
        answer = pickle.loads(await reader.readexactly(size))
        return None if answer is None else Built(*answer)

    def stop(self) -> None:
        """Let the process end: it does when the connection closes."""
        if self._streams is not None:
            self._streams[1].close()
        elif self._socket is not None:
            self._socket.close()
        self._socket = self._streams = None
        if self.process is not None:
            self.process.kill()
            self.process.wait()
