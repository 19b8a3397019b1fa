"""The trace store for a UI loop: one thread owns it, nobody on the loop waits for SQLite."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

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

    async def call(self, action: Callable[[Store], T]) -> T:
        """Run `action` with the open store in the store's thread; calls run one after the other."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: action(self._opened()))

    async def append(self, trace_id: str, records: list[Record]) -> None:
        """Write records of a trace that grows, header first; an empty list commits what is due."""

        def write(store: Store) -> None:
            writer = self._writers.setdefault(trace_id, store.writer())
            for record in records:
                writer.write(record)
            writer.flush_if_due()
            if records and records[-1]["record_type"] == "metrics":
                del self._writers[trace_id]

        await self.call(write)

    async def add(self, records: list[Record]) -> str:
        """Write a whole trace at once; its id."""
        return await self.call(lambda store: store.add(records))

    async def ls(self, limit: int = 50) -> list[dict[str, Any]]:
        """The newest traces, as `Store.ls` lists them."""
        return await self.call(lambda store: store.ls(limit=limit))

    async def records(self, name: str) -> list[Record]:
        """The records of the trace that `name` (an id, the start of one, `last`) means."""
        return await self.call(lambda store: list(store.records(store.find(name))))

    async def close(self) -> None:
        """Write what is still there and close."""

        def end() -> None:
            for writer in self._writers.values():
                writer.flush()
            if self._store is not None:
                self._store.close()

        await asyncio.get_running_loop().run_in_executor(self._thread, end)
        self._thread.shutdown(wait=False)

    def _opened(self) -> Store:
        if self._store is None:
            from geomcli.store import Store

            self._store = Store(self.path)
        return self._store
