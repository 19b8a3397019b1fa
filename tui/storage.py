"""The trace store for a UI loop: one thread owns it, nobody on the loop waits for SQLite."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from geomcli.errors import StoreError
from geomcli.schema import Record

if TYPE_CHECKING:
    from geomcli.store import Store, TraceWriter

T = TypeVar("T")


class Storage:
    """Opened on first use, in its own thread. Every method raises StoreError with one sentence."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="geom-store")
        self._store: Store | None = None
        self._writers: dict[str, TraceWriter] = {}
        self._failed: set[str] = set()  # traces whose last write failed

    async def call(self, action: Callable[[Store], T]) -> T:
        """Run `action` with the open store in the store's thread; calls run one after the other."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: action(self._opened()))

    async def append(self, trace_id: str, records: list[Record]) -> None:
        """Write records of a trace that grows, header first; an empty list commits what is due.

        After a StoreError nothing is lost: what could not be written is, with the next call that succeeds.
        """

        def write(store: Store) -> None:
            writer = self._writers.setdefault(trace_id, store.writer())
            failed = trace_id in self._failed
            for record in records:
                writer.take(record)
            ended = bool(records) and records[-1]["record_type"] == "metrics"
            begun = bool(records) and records[0]["record_type"] == "header"
            self._failed.add(trace_id)
            if ended or begun or failed:
                writer.flush()
            else:
                writer.flush_if_due()
            self._failed.discard(trace_id)
            if ended:
                del self._writers[trace_id]

        await self.call(write)

    async def add(self, records: list[Record]) -> str:
        """Write a whole trace at once, or what is missing of one that could not be written to its end; its id."""
        trace_id = str(records[0].get("trace_id", ""))

        def write(store: Store) -> str:
            if (writer := self._writers.get(trace_id)) is None:
                return store.add(records)
            writer.flush()
            self._failed.discard(trace_id)
            del self._writers[trace_id]
            return trace_id

        return await self.call(write)

    async def ls(self, limit: int = 50) -> list[dict[str, Any]]:
        """The newest traces, as `Store.ls` lists them."""
        return await self.call(lambda store: store.ls(limit=limit))

    async def records(self, name: str) -> list[Record]:
        """The records of the trace that `name` (an id, the start of one, `last`) means."""
        return await self.call(lambda store: list(store.records(store.find(name))))

    async def close(self) -> None:
        """Write what is still there and close; StoreError when something of it could not be written."""

        def end() -> None:
            failure: StoreError | None = None
            for writer in self._writers.values():
                try:
                    writer.flush()
                except StoreError as error:
                    failure = error
            if self._store is not None:
                self._store.close()
            if failure is not None:
                raise failure

        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, end)
        finally:
            self._thread.shutdown(wait=False)

    def _opened(self) -> Store:
        if self._store is None:
            from geomcli.store import Store

            self._store = Store(self.path)
        return self._store
