"""Traces are on screen before they are read to their end: the first records at once, the others while one looks.

Knows no widget. What cannot be read to its end is not shown by half: the error goes to whoever waits for `run`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from geomcli.schema import Record
from geomcli.tui.session import Changed, Session
from geomcli.tui.storage import Storage
from geomcli.tui.turn import Turn

if TYPE_CHECKING:
    from geomcli.store import Store

FIRST = 600  # records that are there at the first paint: a few screens
_BATCH = 4000  # records that are read at a time, beside the loop
_PIECE = 1000  # records that are taken between two looks at the keys: about ten milliseconds
_DRAW_SECONDS = 0.25

Batches = Callable[[], Awaitable[list[Record]]]


class Opened(NamedTuple):
    """Traces to show from the start.

    `traces`: what was read before the app began, so that a file that is none is an error of the command. `rest`: the
    records behind them in a file; `stored`: the trace of the store that goes on behind them. `path`: the file, as a
    command would name it; "" for a stored trace.
    """

    title: str
    traces: Sequence[Sequence[Record]]
    saved: bool = False
    path: str = ""
    rest: Iterator[Record] | None = None
    stored: str = ""

    @property
    def whole(self) -> bool:
        """Whether there is no more to be read."""
        return self.rest is None and not self.stored

    def compared(self) -> Turn:
        """The trace that is compared: the last one."""
        turn = Turn(self.traces[-1], source=self.title)
        turn.saved = self.saved
        turn.path = self.path if len(self.traces) == 1 else ""
        return turn


class Reading:
    """Reads on into a session, which says meanwhile what is being read."""

    def __init__(self, session: Session, storage: Storage) -> None:
        self.session, self.storage = session, storage

    async def run(self, opened: Sequence[Opened]) -> None:
        """Read to their end: the first, which is shown, as it comes; of two the second too, then they are compared.

        Other turns in the session end it: something else was begun. GeomError where there is no going on.
        """
        turns = self.session.turns
        for number, one in enumerate(opened[:2]):
            self.session.reading = one.title
            try:
                if number == 0:
                    await self._show(one, turns)
                else:
                    await self._compare(one, turns)
            finally:
                if self.session.turns is turns:
                    self.session.reading = ""
            if self.session.turns is not turns:
                return
        self.session.touch(Changed.STATE)

    async def stored(self, name: str) -> Opened:
        """The beginning of a stored trace: an id, the start of one, or `last`."""

        def first(store: Store) -> tuple[str, list[Record]]:
            trace_id = store.find(name)
            return trace_id, list(islice(store.records(trace_id), FIRST))

        trace_id, records = await self.storage.call(first)
        return Opened(trace_id, [records], saved=True, stored=trace_id if len(records) == FIRST else "")

    async def _show(self, opened: Opened, turns: list[Turn]) -> None:
        if opened.whole:
            return
        batches, due = self._batches(opened), 0.0
        while records := await batches():
            for start in range(0, len(records), _PIECE):
                if self.session.turns is not turns:
                    return
                self.session.extend(records[start : start + _PIECE], saved=opened.saved)
                await asyncio.sleep(0)
            if time.monotonic() > due:
                self.session.grown()
                due = time.monotonic() + _DRAW_SECONDS
        self.session.grown()
        turns[0].path = opened.path if len(turns) == 1 else ""

    async def _compare(self, opened: Opened, turns: list[Turn]) -> None:
        """The second of two: not shown, so nobody sees it grow."""
        traces = [list(records) for records in opened.traces]
        if not opened.whole:
            batches = self._batches(opened)
            while records := await batches():
                for record in records:
                    if record["record_type"] == "header":
                        traces.append([])
                    traces[-1].append(record)
        turn = await asyncio.to_thread(opened._replace(traces=traces).compared)
        if self.session.turns is turns:
            self.session.compare(turns[-1], turn)

    def _batches(self, opened: Opened) -> Batches:
        if opened.stored:
            return self._stored(opened.stored, sum(map(len, opened.traces)))
        rest = opened.rest
        assert rest is not None
        return lambda: asyncio.to_thread(lambda: list(islice(rest, _BATCH)))

    def _stored(self, trace_id: str, start: int) -> Batches:
        """Records of a stored trace from a place on, read where the store is."""
        found: list[Iterator[Record]] = []

        def batch(store: Store) -> list[Record]:
            if not found:
                found.append(islice(store.records(store.find(trace_id)), start, None))
            return list(islice(found[0], _BATCH))

        return lambda: self.storage.call(batch)
