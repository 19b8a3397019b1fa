"""The trace store for a UI loop: one thread owns it, nobody on the loop waits for SQLite."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from geomcli.errors import StoreError
from geomcli.schema import Record

if TYPE_CHECKING:
    from geomcli.store import Store, TraceWriter

T = TypeVar("T")


class Growing:
    """A trace that is written while it grows. The loop gives records, the store's thread takes them."""

    def __init__(self) -> None:
        self.writer: TraceWriter | None = None
        self.failed = False  # the last write
        self.whole = False  # the store has it to its end
        self._lock = threading.Lock()
        self._waiting: list[Record] = []
        self._ended = False

    def give(self, records: list[Record]) -> None:
        """Records that have come."""
        with self._lock:
            self._waiting += records
            self._ended = self._ended or any(record["record_type"] == "metrics" for record in records)

    def take(self) -> tuple[list[Record], bool]:
        """What has come since the last call, and whether that is all there will be."""
        with self._lock:
            taken, self._waiting = self._waiting, []
            return taken, self._ended


class Storage:
    """Opened on first use, in its own thread. Every method raises StoreError with one sentence."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="geom-store")
        self._store: Store | None = None
        self._growing: dict[str, Growing] = {}

    async def call(self, action: Callable[[Store], T]) -> T:
        """Run `action` with the open store in the store's thread; calls run one after the other."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: action(self._opened()))

    def hold(self, trace_id: str, records: list[Record]) -> None:
        """Take records of a trace that grows, header first, metrics last. `write` writes them; nothing is done here."""
        self._growing.setdefault(trace_id, Growing()).give(records)

    async def write(self, trace_id: str, *, at_once: bool = False) -> bool:
        """Write what `hold` took, as far as it is due; whether the store has the whole trace, to its end.

        `at_once`: all of it is due. After a StoreError nothing is lost: the next call that succeeds writes it.
        """
        growing = self._growing[trace_id]

        def write(store: Store) -> bool:
            if growing.whole:
                return True
            if growing.writer is None:
                growing.writer = store.writer()
            batch, ended = growing.take()
            for record in batch:
                growing.writer.take(record)
            begun = bool(batch) and batch[0]["record_type"] == "header"
            due, growing.failed = at_once or growing.failed or ended or begun, True
            if due:
                growing.writer.flush()
            else:
                growing.writer.flush_if_due()
            growing.failed, growing.whole = False, ended
            return ended

        return growing.whole or await self.call(write)

    async def add(self, records: list[Record]) -> str:
        """Write a whole trace at once, or what is missing of one that `hold` knows; its id."""
        trace_id = str(records[0].get("trace_id", ""))
        if trace_id not in self._growing:
            return await self.call(lambda store: store.add(records))
        await self.write(trace_id)
        return trace_id

    async def ls(self, limit: int = 50) -> list[dict[str, Any]]:
        """The newest traces, as `Store.ls` lists them."""
        return await self.call(lambda store: store.ls(limit=limit))

    async def records(self, name: str) -> list[Record]:
        """The records of the trace that `name` (an id, the start of one, `last`) means."""
        return await self.call(lambda store: list(store.records(store.find(name))))

    async def close(self) -> None:
        """Write what is still there and close; StoreError when something of it could not be written."""
        failure: StoreError | None = None
        for trace_id in self._growing:
            try:
                await self.write(trace_id, at_once=True)
            except StoreError as error:
                failure = error
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._end)
        finally:
            self._thread.shutdown(wait=False)
        if failure is not None:
            raise failure

    def _end(self) -> None:
        if self._store is not None:
            self._store.close()

    def _opened(self) -> Store:
        if self._store is None:
            from geomcli.store import Store

            self._store = Store(self.path)
        return self._store
