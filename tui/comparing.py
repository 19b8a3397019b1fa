"""What Compare shows: two traces, their comparison or why there is none. Knows no widget."""

from __future__ import annotations

import asyncio
import json
import shlex

import msgspec
import numpy as np
from numpy.typing import NDArray

from geomcli.comparison import Comparison, compare
from geomcli.errors import GeomError
from geomcli.projection import Projection
from geomcli.trace import Trace
from geomcli.tui.session import Session
from geomcli.tui.turn import Turn

A, B = 0, 1
NAMES = ("A", "B")


class Comparing:
    """`result`: the comparison of `turns`; None while there is none, with `error` where there cannot be one.

    `projection`: fitted axes to read the difference on, None: the four named ones. `texts_differ`, `zones_differ`:
    bool for each row of the alignment.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.result: Comparison | None = None
        self.error: GeomError | None = None
        self.projection: Projection | None = None
        self.turns: tuple[Turn, ...] = ()
        self.texts_differ: NDArray[np.bool_] = np.zeros(0, bool)
        self.zones_differ: NDArray[np.bool_] = np.zeros(0, bool)
        self._of: tuple[object, ...] = ()

    def sides(self) -> tuple[Turn, ...]:
        """The traces chosen, at most two; before one is, A is the trace that is open."""
        if self.session.compared:
            return tuple(self.session.compared[:2])
        turn = self.session.turn
        return (turn,) if turn is not None and turn.tokens else ()

    def choose(self, side: int, turn: Turn) -> None:
        """Put a trace on a side; B without an A becomes A."""
        chosen = list(self.sides())
        chosen[side : side + 1] = [turn]
        self.session.compared = chosen

    def swap(self) -> bool:
        """Exchange the sides; False where there are no two."""
        sides = self.sides()
        if len(sides) == 2:
            self.session.compared = [sides[1], sides[0]]
        return len(sides) == 2

    @property
    def is_due(self) -> bool:
        """Whether what is shown is not, or no longer, what was compared: other traces, other axes, or one has ended."""
        return self._wanted() != self._of

    def _wanted(self) -> tuple[object, ...]:
        return (*((turn, turn.finished) for turn in self.sides()), self.projection)

    def begin(self) -> None:
        """Forget the last comparison; `run` makes the one that is wanted now."""
        self._of = self._wanted()
        self.turns, self.result, self.error = self.sides(), None, None

    async def run(self) -> None:
        """Compare, in a thread: 4,000 tokens against 4,000 others take a tenth of a second."""
        wanted, turns = self._of, self.turns
        if len(turns) < 2:
            return
        # A turn that is still written grows meanwhile.
        a, b = (Trace(list(turn.trace.records())) for turn in turns)
        result: Comparison | GeomError
        try:
            result = await asyncio.to_thread(compare, a, b, projection=self.projection)
        except GeomError as error:
            result = error
        if self._of is not wanted:
            return
        if isinstance(result, GeomError):
            self.error = result
            return
        self.result = result
        self.texts_differ = np.array([row.kind != "same" for row in result.alignment], dtype=bool)
        self.zones_differ = np.array([row.zones_differ for row in result.alignment], dtype=bool)

    def as_json(self) -> str | None:
        """What `geom compare --json` writes."""
        return (
            None if self.result is None else json.dumps(msgspec.to_builtins(self.result), ensure_ascii=False, indent=2)
        )

    def command(self, db: str) -> str:
        """The command that compares the same; GeomError where a side cannot be named by it."""
        sides = self.sides()
        if len(sides) < 2:
            raise GeomError("There are no two traces to compare.")
        names = []
        for name, turn in zip(NAMES, sides, strict=True):
            if not turn.saved and not turn.path:
                raise GeomError(f"{name} is neither in the store nor in a file of its own; ctrl+s saves it in Chat.")
            names.append(turn.id if turn.saved else turn.path)
        stored = db and any(turn.saved for turn in sides)
        return shlex.join(["geom", "compare", *names, *(["--db", db] if stored else [])])


def next_run(flags: NDArray[np.bool_], row: int, direction: int) -> int | None:
    """The first row of the next run of flagged rows behind `row` (direction 1), or before it (-1); None without one."""
    starts = np.flatnonzero(flags & ~np.concatenate([[False], flags[:-1]]))
    found = starts[starts > row] if direction > 0 else starts[starts < row][::-1]
    return int(found[0]) if len(found) else None
