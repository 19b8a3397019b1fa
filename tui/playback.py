"""Playing recorded traces at the pace at which they could have been written."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from geomcli.schema import Record
from geomcli.tui.turn import Turn

_PAUSE = 0.9  # seconds between a question and its answer, and between turns


class Player:
    """Feeds traces turn by turn. `begin` opens a turn, `feed` takes its next records; `advance` is called often."""

    def __init__(
        self,
        traces: Sequence[Sequence[Record]],
        begin: Callable[[], Turn],
        feed: Callable[[Turn, Sequence[Record]], None],
        *,
        rate: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._traces = list(traces)
        self._begin, self._feed = begin, feed
        self._rate, self._clock = rate, clock
        self._turn: Turn | None = None
        self._next = 0  # record of the first trace that is due next
        self._due = clock()

    def advance(self) -> bool:
        """Feed what is due by now; whether everything has been played."""
        now = self._clock()
        while self._traces and self._due <= now:
            self._step()
        return not self._traces

    def finish(self) -> None:
        """Feed all the rest at once."""
        while self._traces:
            self._step()

    def _step(self) -> None:
        """One token with its steps, or all records before the first and behind the last token."""
        records = self._traces[0]
        if self._turn is None:
            self._turn = self._begin()
        start = self._next
        end = start + 1 if start < len(records) else start
        is_token = start < len(records) and records[start]["record_type"] == "token"
        while end < len(records) and not (records[end]["record_type"] == "token" or (is_token and _ends(records[end]))):
            end += 1
        self._feed(self._turn, records[start:end])
        self._next = end
        self._due += 1 / self._rate if is_token else _PAUSE
        if end >= len(records):
            self._traces.pop(0)
            self._turn, self._next = None, 0


def _ends(record: Record) -> bool:
    return bool(record["record_type"] != "step")
