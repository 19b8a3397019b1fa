"""A list of thousands of rows of which only those on screen are made, with a cursor."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual import events
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from geomcli.tui.themes import Paint

if TYPE_CHECKING:
    from geomcli.tui.app import GeomApp


class RowView(ScrollView, can_focus=True, inherit_bindings=False):
    """Subclasses make `row(n, width)`; `show(count)` says how many there are. Keys are the screen's.

    `cursor`: the row looked at; 0 where there is none.
    """

    class Moved(Message):
        """The cursor is on another row."""

    class Opened(Message):
        """A row was clicked twice."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.count = 0
        self.cursor = 0
        self._strips: dict[int, Strip] = {}

    @property
    def paint(self) -> Paint:
        return cast("GeomApp", self.app).paint

    def row(self, number: int, width: int) -> Text:
        """One line of at most `width` cells."""
        raise NotImplementedError

    def show(self, count: int, *, cursor: int = 0) -> None:
        """Other rows."""
        self.count = count
        self.cursor = max(0, min(cursor, count - 1))
        self.virtual_size = Size(self.size.width, count)
        self.redraw()
        self._keep_in_sight()

    def redraw(self) -> None:
        """Make every row anew."""
        self._strips.clear()
        self.refresh()

    def go(self, number: int) -> None:
        """Put the cursor on a row, the nearest that there is."""
        number = max(0, min(number, self.count - 1))
        if number == self.cursor:
            return
        before, self.cursor = self.cursor, number
        for row in (before, number):
            self._strips.pop(row, None)
            self.refresh(Region(0, row - self.scroll_offset.y, self.size.width, 1))
        self._keep_in_sight()
        self.post_message(self.Moved())

    def move(self, delta: int) -> None:
        """Move the cursor by rows."""
        self.go(self.cursor + delta)

    @property
    def page(self) -> int:
        """Rows of a page."""
        return max(1, self.size.height - 1)

    def _keep_in_sight(self) -> None:
        margin = min(2, self.size.height // 4)
        region = Region(0, max(0, self.cursor - margin), 1, 1 + 2 * margin)
        self.scroll_to_region(region, animate=False, immediate=True, force=True)

    def on_resize(self) -> None:
        self.virtual_size = Size(self.size.width, self.count)
        self.redraw()
        self._keep_in_sight()

    def render_line(self, y: int) -> Strip:
        number = self.scroll_offset.y + y
        strip = self._strips.get(number)
        if strip is None:
            strip = self._strips[number] = self._drawn(number)
        return strip

    def _drawn(self, number: int) -> Strip:
        width, base = self.scrollable_content_region.width, self.rich_style
        if number >= self.count:
            return Strip.blank(width, base)
        if number == self.cursor:
            base += Style(bgcolor=self.paint.colour("panel"), bold=True)
        text = self.row(number, width)
        segments = [Segment(s.text, base + (s.style or Style())) for s in text.render(self.app.console)]
        return Strip(segments).adjust_cell_length(width, base)

    def on_click(self, event: events.Click) -> None:
        number = self.scroll_offset.y + event.y
        if number < self.count:
            self.go(number)
            if event.chain == 2:
                self.post_message(self.Opened())
