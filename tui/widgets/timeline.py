"""Phases and drift of one turn over its tokens, with the cursor; a click moves the cursor there."""

from __future__ import annotations

from typing import NamedTuple

from rich.text import Text
from textual import events

from geomcli.compass import HALT_THRESHOLD, WARN_THRESHOLD
from geomcli.display import BARS, ZONE_GLYPHS
from geomcli.tui.session import Changed, Place
from geomcli.tui.turn import Turn
from geomcli.tui.widgets.text import LineText
from geomcli.zones import UNKNOWN

_LABEL = 7


class _Column(NamedTuple):
    """Neighbouring tokens: their most frequent zone ("" where none was captured), their phase, their highest drift."""

    zone: str
    phase: str
    drift: float | None


class _Columns:
    """The columns of a turn that grows, each of the same number of tokens; what is full is not counted again."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self.size = 1  # tokens of a column: doubled when there is no room
        self._full: list[_Column] = []

    def upto(self, width: int) -> list[_Column]:
        """At most `width` columns, and more than half as many when there are so many tokens."""
        count, size = len(self.turn.tokens), 1
        while count > size * width:
            size *= 2
        if size != self.size:
            self.size, self._full = size, []
        # The numbers of the newest tokens may still be on their way.
        while len(self._full) < count // size - 1:
            self._full.append(self._column(len(self._full)))
        return self._full + [self._column(n) for n in range(len(self._full), -(-count // size))]

    def _column(self, number: int) -> _Column:
        part = self.turn.tokens[number * self.size : (number + 1) * self.size]
        zones = [token.zone for token in part if token.captured]
        drifts = [token.drift for token in part if token.drift is not None]
        return _Column(max(set(zones), key=zones.count) if zones else "", part[0].phase, max(drifts, default=None))


class Timeline(LineText):
    """Two rows: which zone the tokens of a column have, and the drift; one row where there is little room."""

    WATCHES = Changed.TURNS | Changed.TOKENS | Changed.CURSOR | Changed.VIEW

    _columns: _Columns | None = None

    def lines(self) -> list[Text]:
        turn = self.session.turn
        if turn is None or not turn.tokens:
            return [Text(" no tokens yet", self.paint.fore("muted"))]
        if self._columns is None or self._columns.turn is not turn:
            self._columns = _Columns(turn)
        columns = self._columns.upto(self._room)
        cells = self._cells(len(turn.tokens))
        spread = [columns[cell * len(columns) // cells] for cell in range(cells)]
        rows = [self._phases(turn, spread)]
        if self.size.height > 1:
            rows.append(self._drift(spread))
        return rows

    @property
    def _room(self) -> int:
        return max(8, self.size.width - 2 * _LABEL - 6)

    def _cells(self, tokens: int) -> int:
        """Cells that the columns are drawn over: all, unless there are fewer tokens."""
        return min(self._room, tokens)

    def _phases(self, turn: Turn, spread: list[_Column]) -> Text:
        paint, token, count = self.paint, self.session.token, len(turn.tokens)
        text = Text(" " + ("thought" if spread[0].phase == "think" else "zones").ljust(_LABEL), paint.fore("muted"))
        cursor = None if token is None else min(len(spread) - 1, token.index * len(spread) // count)
        for cell, column in enumerate(spread):
            if cell == cursor:
                text.append("▲", paint.fore("foreground", bold=True))
                continue
            glyph = "░" if column.phase == "think" else "▒" if column.zone else "─"
            if paint.plain:
                glyph = ZONE_GLYPHS.get(column.zone, "·")
            text.append(glyph, paint.zone_mark(column.zone or UNKNOWN))
        place = "" if token is None else f"#{token.index} of {count}"
        text.append(" " * (self._room - len(spread)) + f" {place}".rjust(_LABEL + 5), paint.fore("foreground"))
        return text

    def _drift(self, spread: list[_Column]) -> Text:
        text = Text(" " + "drift".ljust(_LABEL), self.paint.fore("muted"))
        for column in spread:
            if column.drift is None:
                text.append(" ")
                continue
            step = min(len(BARS) - 1, round(column.drift / HALT_THRESHOLD * (len(BARS) - 1)))
            status = "HALT" if column.drift >= HALT_THRESHOLD else "WARN" if column.drift >= WARN_THRESHOLD else "OK"
            text.append(BARS[step], self.paint.status(status))
        text.append(
            " " * (self._room - len(spread)) + f" halt {HALT_THRESHOLD}".rjust(_LABEL + 5), self.paint.fore("muted")
        )
        return text

    def on_click(self, event: events.Click) -> None:
        turn = self.session.turn
        if turn is None or not turn.tokens:
            return
        cells = self._cells(len(turn.tokens))
        cell = event.get_content_offset_capture(self).x - _LABEL - 1
        if 0 <= cell < cells:
            self.session.stop_following()
            self.session.go(Place(self.session.turns.index(turn), cell * len(turn.tokens) // cells))
