"""Lists of thousands of one-line rows, with a cursor or without one: only what is in view is drawn."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from rich.style import Style
from rich.text import Text
from textual import events
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from geomcli.tui.themes import Paint
from geomcli.tui.widgets.text import strip_of

if TYPE_CHECKING:
    from geomcli.tui.app import GeomApp


class Rows(ScrollView, can_focus=True, inherit_bindings=False):
    """Rows `0..count-1`, drawn by `row`; subclasses say what they are and what a click on one does.

    Keys are the pane's: the view binds none, so that its own scrolling takes none away.
    """

    EMPTY = "Nothing yet."

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
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

    def clicked(self, number: int, *, again: bool) -> None:
        """A row was clicked; `again`: for the second time in a row."""

    def over(self, number: int) -> Style:  # noqa: ARG002
        """What lies over the widget's own style in a row."""
        return Style()

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
        return strip_of(text, width, base + self.over(number), self.app.console).apply_offsets(0, number)

    def on_click(self, event: events.Click) -> None:
        offset = event.get_content_offset(self)
        if offset is not None and 0 <= (number := self.scroll_offset.y + offset.y) < self.count:
            self.clicked(number, again=event.chain == 2)


class CursorRows(Rows):
    """Rows with a cursor; `show(count)` says how many there are.

    `cursor`: the row looked at; 0 where there is none.
    """

    class Moved(Message):
        """The cursor is on another row."""

    class Opened(Message):
        """A row was clicked twice."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.cursor = 0
        self._count = 0

    @property
    def count(self) -> int:
        return self._count

    def over(self, number: int) -> Style:
        marked = number == self.cursor and number < self.count
        return Style(bgcolor=self.paint.colour("panel"), bold=True) if marked else Style()

    def empty_lines(self) -> list[Text]:
        return []

    def show(self, count: int, *, cursor: int = 0) -> None:
        """Other rows."""
        self._count = count
        self.cursor = max(0, min(cursor, count - 1))
        self.forget()
        self.fit()
        self._keep_in_sight()

    def go(self, number: int) -> None:
        """Put the cursor on a row, the nearest that there is."""
        number = max(0, min(number, self.count - 1))
        if number == self.cursor:
            return
        before, self.cursor = self.cursor, number
        self.forget((before, number))
        self._keep_in_sight()
        self.post_message(self.Moved())

    def move(self, delta: int) -> None:
        """Move the cursor by rows."""
        self.go(self.cursor + delta)

    def on_resize(self) -> None:
        self.fit()
        self._keep_in_sight()

    def clicked(self, number: int, *, again: bool) -> None:
        self.go(number)
        if again:
            self.post_message(self.Opened())

    def _keep_in_sight(self) -> None:
        margin = min(2, self.size.height // 4)
        region = Region(0, max(0, self.cursor - margin), 1, 1 + 2 * margin)
        self.scroll_to_region(region, animate=False, immediate=True, force=True)
