"""Phases and drift of one turn over its tokens, with the cursor; a click moves the cursor there."""

from __future__ import annotations

from rich.text import Text
from textual import events

from geomcli.compass import HALT_THRESHOLD, WARN_THRESHOLD
from geomcli.display import BARS, ZONE_GLYPHS, thinned
from geomcli.tui.session import Changed, Place
from geomcli.tui.turn import Turn
from geomcli.tui.widgets.text import SessionText

_LABEL = 7


class Timeline(SessionText):
    """Two rows: which zone the tokens of a column have, and the drift; one row where there is little room."""

    WATCHES = Changed.TURNS | Changed.TOKENS | Changed.CURSOR | Changed.VIEW

    def lines(self) -> list[Text]:
        turn = self.session.turn
        width = self._columns
        if turn is None or not turn.tokens:
            return [Text(" no tokens yet", self.paint.fore("muted"))]
        rows = [self._phases(turn, width)]
        if self.size.height > 1:
            rows.append(self._drift(turn, width))
        return rows

    @property
    def _columns(self) -> int:
        return max(8, self.size.width - 2 * _LABEL - 6)

    def _phases(self, turn: Turn, width: int) -> Text:
        token = self.session.token
        text = Text(
            " " + ("thought" if turn.phases()[0][0] == "think" else "zones").ljust(_LABEL), self.paint.fore("muted")
        )
        count = len(turn.tokens)
        cursor = None if token is None else token.index
        columns = min(width, count)
        for column in range(columns):
            first, end = column * count // columns, max(column * count // columns + 1, (column + 1) * count // columns)
            part = turn.tokens[first:end]
            here = cursor is not None and first <= cursor < end
            zones = [t.zone for t in part if t.captured]
            zone = max(set(zones), key=zones.count) if zones else "unknown"
            style = self.paint.zone_mark(zone)
            glyph = "▲" if here else ("░" if part[0].phase == "think" else "▒" if zones else "─")
            if self.paint.plain and not here:
                glyph = ZONE_GLYPHS.get(zone, "·")
            text.append(glyph, self.paint.fore("foreground", bold=True) if here else style)
        place = "" if cursor is None else f"#{cursor} of {count}"
        text.append(" " * (width - columns) + f" {place}".rjust(_LABEL + 5), self.paint.fore("foreground"))
        return text

    def _drift(self, turn: Turn, width: int) -> Text:
        text = Text(" " + "drift".ljust(_LABEL), self.paint.fore("muted"))
        values = thinned([t.drift for t in turn.tokens], width)
        for value in values:
            if value is None:
                text.append(" ")
                continue
            step = min(len(BARS) - 1, round(value / HALT_THRESHOLD * (len(BARS) - 1)))
            status = "HALT" if value >= HALT_THRESHOLD else "WARN" if value >= WARN_THRESHOLD else "OK"
            text.append(BARS[step], self.paint.status(status))
        text.append(" " * (width - len(values)) + f" halt {HALT_THRESHOLD}".rjust(_LABEL + 5), self.paint.fore("muted"))
        return text

    def on_click(self, event: events.Click) -> None:
        turn = self.session.turn
        if turn is None or not turn.tokens:
            return
        columns = min(self._columns, len(turn.tokens))
        column = event.get_content_offset_capture(self).x - _LABEL - 1
        if 0 <= column < columns:
            self.session.stop_following()
            self.session.go(Place(self.session.turns.index(turn), column * len(turn.tokens) // columns))
