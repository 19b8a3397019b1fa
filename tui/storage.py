"""The trace store for a UI loop: one thread owns it, nobody on the loop waits for SQLite."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from geomcli.errors import GeomError, StoreChanged, StoreError
from geomcli.schema import Record

if TYPE_CHECKING:
    from geomcli.store import Store, TraceWriter

T = TypeVar("T")
_LAST_MS = 1000


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
        """Run `action` with the open store in the store's thread; calls run one after the other.

        Whatever goes wrong there is a StoreError: a record that cannot be encoded must not end the app.
        """

        def act() -> T:
            try:
                return action(self._opened())
            except StoreChanged:
                self._end()
                self._store = None
                raise
            except GeomError:
                raise
            except Exception as error:
                what = f"{type(error).__name__}: {error}"
                raise StoreError(f"the trace store {self.path} cannot do this: {what}.", "geom traces ls") from error

        return await asyncio.get_running_loop().run_in_executor(self._thread, act)

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
            if ended:
                growing.writer = None  # with its buffers
            return ended

        return growing.whole or await self.call(write)

    async def add(self, records: list[Record]) -> None:
        """Write a whole trace at once, or what is missing of one that `hold` knows; nothing where the store has it."""
        trace_id = str(records[0].get("trace_id", ""))
        if trace_id in self._growing:
            await self.write(trace_id, at_once=True)
        else:
            await self.call(lambda store: None if store.has(trace_id) else store.add(records))

    async def ls(self, limit: int = 50) -> list[dict[str, Any]]:
        """The newest traces, as `list_traces` lists them."""
        from geomcli.store_listing import list_traces

        return await self.call(lambda store: list_traces(store, limit=limit))

    async def records(self, name: str) -> list[Record]:
        """The records of the trace that `name` (an id, the start of one, `last`) means."""
        return await self.call(lambda store: list(store.records(store.find(name))))

    async def hurry(self) -> None:
        """Wait for others at the store no longer than a person waits for the end of the app."""
        with contextlib.suppress(StoreError):
            await self.call(lambda store: store.wait_at_most(_LAST_MS))

    async def close(self) -> None:
        """Close what is open; what was not written before is not written here."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._end)
        finally:
            self._thread.shutdown(wait=False)

    def _end(self) -> None:
        if self._store is not None:
            self._store.close()

    def _opened(self) -> Store:
        if self._store is None:
            from geomcli.store import Store

            try:
                self._store = Store(self.path)
            except StoreError:
                if not self.path.is_file():
                    raise
                self._store = Store(self.path, create=False)  # what may not be written may be readable
        return self._store
