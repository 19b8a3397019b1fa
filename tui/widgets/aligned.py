"""Two traces' tokens in aligned rows, and where along them they differ."""

from __future__ import annotations

import numpy as np
from rich.style import Style
from rich.text import Text
from textual import events
from textual.message import Message

from geomcli.comparison import AlignedToken
from geomcli.compass import HALT_THRESHOLD
from geomcli.display import ZONE_GLYPHS
from geomcli.tui.comparing import NAMES, Comparing
from geomcli.tui.session import Changed, Overlay
from geomcli.tui.turn import Token, Turn
from geomcli.tui.widgets.lens import token_name
from geomcli.tui.widgets.rows import CursorRows
from geomcli.tui.widgets.text import SessionText

_MARK = 3  # cells between the sides


class Aligned(CursorRows):
    """Rows of the alignment: index, zone and text on each side, ≠ between them where their zones differ."""

    def __init__(self, comparing: Comparing, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.comparing = comparing
        self._strongest = (1.0, 1.0)

    def session_changed(self, changed: Changed) -> None:
        """Colours may be others."""
        if changed & Changed.VIEW:
            self.forget()

    def renew(self) -> None:
        """Show the comparison that there is now."""
        result = self.comparing.result
        if result is None:
            self.show(0)
            return
        one, other = (max(turn.influence, default=0.0) or 1.0 for turn in self.comparing.turns)
        self._strongest = (one, other)
        self.show(len(result.alignment), cursor=min(self.cursor, len(result.alignment) - 1))

    @property
    def aligned(self) -> AlignedToken | None:
        """The row under the cursor."""
        result = self.comparing.result
        return result.alignment[self.cursor] if result is not None and result.alignment else None

    def row(self, number: int, width: int) -> Text:
        result = self.comparing.result
        assert result is not None
        row = result.alignment[number]
        room = cell_width(width)
        text = Text().append("▸" if number == self.cursor else " ", self.paint.fore("accent"))
        text.append_text(self._cell(0, row.a, row.zone_a, room, differs=row.kind != "same"))
        text.append(" ≠ " if row.zones_differ else "   ", self.paint.fore("warning", bold=True))
        return text.append_text(self._cell(1, row.b, row.zone_b, room, differs=row.kind != "same"))

    def _cell(self, side: int, index: int | None, zone: str | None, room: int, *, differs: bool) -> Text:
        muted = self.paint.fore("muted")
        if index is None:
            return Text("    –".ljust(room), muted)
        turn = self.comparing.turns[side]
        token = turn.tokens[index] if index < len(turn.tokens) else None
        cell = Text().append(f"{index:>5} ", muted)
        cell.append(f"{ZONE_GLYPHS.get(zone or '', ' ')} ", self.paint.zone_mark(zone or ""))
        style = Style() if token is None else self._style(side, turn, token)
        if differs:
            style += Style(bold=True, underline=True)
        cell.append("?" if token is None else token_name(token), style)
        cell.truncate(room, overflow="ellipsis", pad=True)
        return cell

    def _style(self, side: int, turn: Turn, token: Token) -> Style:
        value: float | None = None
        match self.comparing.session.overlay:
            case Overlay.ZONE:
                return self.paint.zone(token.zone) if token.captured else Style()
            case Overlay.ENTROPY:
                value = token.entropy
            case Overlay.DRIFT:
                value = None if token.drift is None else token.drift / HALT_THRESHOLD
            case Overlay.INFLUENCE:
                value = turn.influence[token.index] / self._strongest[side]
        return Style() if value is None else self.paint.ramp(value)


def cell_width(width: int) -> int:
    """Cells of one side of a row of this many."""
    return max(12, (width - 1 - _MARK) // 2)


class AlignedHead(SessionText):
    """Two lines above the rows: what their columns are, and where along them texts and zones differ. A click there
    goes there.
    """

    WATCHES = Changed.VIEW

    class Chosen(Message):
        def __init__(self, row: int) -> None:
            super().__init__()
            self.row = row

    def __init__(self, comparing: Comparing, rows: Aligned, *, id: str) -> None:  # noqa: A002
        super().__init__(comparing.session, id=id)
        self.comparing, self.rows = comparing, rows

    def lines(self) -> list[Text]:
        muted, paint = self.paint.fore("muted"), self.paint
        room = cell_width(self.rows.scrollable_content_region.width)
        head = Text(" ")
        for name, style in zip(NAMES, ("primary", "accent"), strict=True):
            side = (
                Text().append("    # ", muted).append(f"{name} ", paint.fore(style, bold=True)).append("token", muted)
            )
            side.truncate(room, pad=True)
            head.append_text(side).append("   ")
        legend = Text().append("≠", paint.fore("warning", bold=True)).append(" other zone", muted)
        head.truncate(max(1, self.size.width - legend.cell_len - 1), pad=True)
        head.append_text(legend)
        return [head, self._map()]

    @property
    def _columns(self) -> int:
        return max(1, min(self.size.width - 14, len(self.comparing.texts_differ)))

    def _map(self) -> Text:
        comparing, paint = self.comparing, self.paint
        rows, columns = len(comparing.texts_differ), self._columns
        line = Text(" ")
        if not rows or comparing.result is None:
            return line
        starts = np.arange(columns) * rows // columns
        texts = np.logical_or.reduceat(comparing.texts_differ, starts).tolist()
        zones = np.logical_or.reduceat(comparing.zones_differ, starts).tolist()
        here = int(np.searchsorted(starts, self.rows.cursor, side="right")) - 1
        for column in range(columns):
            if column == here:
                line.append("▲", paint.fore("foreground", bold=True))
            elif texts[column]:
                line.append("▒", paint.fore("accent"))
            elif zones[column]:
                line.append("≠", paint.fore("warning"))
            else:
                line.append("─", paint.fore("muted"))
        line.append(f"{self.rows.cursor + 1}/{rows}".rjust(self.size.width - line.cell_len - 1), paint.fore("muted"))
        return line

    def on_click(self, event: events.Click) -> None:
        place = event.get_content_offset_capture(self)
        column, rows = place.x - 1, len(self.comparing.texts_differ)
        if place.y == 1 and 0 <= column < self._columns and rows:
            self.post_message(self.Chosen(column * rows // self._columns))
