"""Lists of thousands of one-line rows: only what is in view is drawn."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from rich.style import Style
from rich.text import Text
from textual import events
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from geomcli.tui.session import Session
from geomcli.tui.themes import Paint
from geomcli.tui.widgets.text import strip_of

if TYPE_CHECKING:
    from geomcli.tui.app import GeomApp


class Rows(ScrollView, can_focus=True, inherit_bindings=False):
    """Rows `0..count-1`, drawn by `row`; subclasses say what they are and what a click on one does.

    Keys are the pane's: the view binds none, so that its own scrolling takes none away.
    """

    EMPTY = "Nothing yet."

    def __init__(self, session: Session, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.session = session
        self._moving = False  # while the view scrolls by itself
        self._strips: dict[int, Strip] = {}
        self._drawn_for = (0, Style())  # width and style of the strips

    @property
    def paint(self) -> Paint:
        return cast("GeomApp", self.app).paint

    @property
    def count(self) -> int:
        """How many rows there are."""
        raise NotImplementedError

    def row(self, number: int, width: int) -> Text:
        """One row of `width` cells; what is longer is cut by `render_line`."""
        raise NotImplementedError

    def clicked(self, number: int) -> None:
        """A row was clicked."""

    def scrolled_by_user(self, *, up: bool) -> None:
        """The user scrolled."""

    def empty_lines(self) -> list[Text]:
        """What is shown when there is no row."""
        return [Text().append(self.EMPTY, self.paint.fore("muted"))]

    def forget(self, rows: Iterable[int] | None = None) -> None:
        """Draw these rows anew, all if left out."""
        if rows is None:
            self._strips.clear()
        else:
            for number in rows:
                self._strips.pop(number, None)
        self.refresh()

    def fit(self) -> None:
        """Take another number of rows into account; rows that were drawn stay until they are forgotten."""
        height = self.count
        if self.virtual_size.height != height:
            self._moving = True
            try:
                size = Size(self.scrollable_content_region.width, height)
                if self.show_vertical_scrollbar and height > self.size.height:
                    # Set as such it would lay out the whole screen for every new row.
                    self.set_reactive(Rows.virtual_size, size)
                    self._scroll_update(size)
                else:
                    self.virtual_size = size
            finally:
                self._moving = False
        self.refresh()

    def show_row(self, number: int) -> None:
        """Scroll so that a row is in view, with its neighbours."""
        self._moving = True
        try:
            first = max(0, number - 1)
            self.scroll_to_region(Region(0, first, 1, number - first + 2), animate=False, immediate=True, force=True)
        finally:
            self._moving = False

    @property
    def page(self) -> int:
        """Rows of a page."""
        return max(1, self.scrollable_content_region.height - 1)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        if not self._moving and old_value != new_value:
            self.scrolled_by_user(up=new_value < old_value)

    def render_lines(self, crop: Region) -> list[Strip]:
        # Once for all lines: the style takes longer to find than a line to draw.
        now = (self.scrollable_content_region.width, self.rich_style)
        if now != self._drawn_for:
            self._drawn_for = now
            self._strips.clear()
        return super().render_lines(crop)

    def render_line(self, y: int) -> Strip:
        number = self.scroll_offset.y + y
        strip = self._strips.get(number)
        if strip is None:
            strip = self._drawn(number, y)
            if number < self.count:
                self._strips[number] = strip
        return strip

    def _drawn(self, number: int, y: int) -> Strip:
        width, base = self._drawn_for
        if self.count == 0:
            lines = self.empty_lines()
            text = lines[y] if y < len(lines) else Text("")
        elif number < self.count:
            text = self.row(number, width)
        else:
            text = Text("")
        return strip_of(text, width, base, self.app.console).apply_offsets(0, number)

    def on_click(self, event: events.Click) -> None:
        offset = event.get_content_offset(self)
        if offset is not None and 0 <= (number := self.scroll_offset.y + offset.y) < self.count:
            self.clicked(number)
