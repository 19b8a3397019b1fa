"""Base of the widgets that are a few lines of styled text, made anew from the session when it changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from rich.console import Console
from rich.style import Style
from rich.text import Text
from textual.geometry import Region, Size
from textual.strip import Strip
from textual.widget import Widget

from geomcli.tui.session import Changed, Session
from geomcli.tui.themes import Paint

if TYPE_CHECKING:
    from geomcli.tui.app import GeomApp


class SessionText(Widget):
    """Draws `lines()`; `WATCHES` says which changes make it draw again."""

    WATCHES = Changed.ALL

    def __init__(self, session: Session, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, classes=classes)
        self.session = session

    @property
    def paint(self) -> Paint:
        return cast("GeomApp", self.app).paint

    def session_changed(self, changed: Changed) -> None:
        """Draw anew if the change concerns this widget."""
        if changed & self.WATCHES:
            self.refresh()

    def lines(self) -> list[Text]:
        """What to draw, one Text a line."""
        raise NotImplementedError

    def render(self) -> Text:
        text = Text("\n", end="").join(self.lines())
        text.no_wrap, text.overflow = True, "crop"
        return text


class LineText(SessionText):
    """Lines that are made once for each time the widget is drawn, and no longer than it is wide.

    Without the detour over Textual's own content, which takes a widget's text apart and together again.
    """

    _ready: Sequence[Text] = ()
    _base = Style()

    def refresh_others(self) -> None:
        """Draw again only the lines that are others than those on screen; for widgets without padding."""
        made, drawn = self._split(), self._ready
        others = [
            y
            for y in range(max(len(made), len(drawn)))
            if y >= len(made) or y >= len(drawn) or not alike(made[y], drawn[y])
        ]
        if others:
            self.refresh(*(Region(0, y, self.size.width, 1) for y in others))

    def _split(self) -> list[Text]:
        return [part for line in self.lines() for part in line.split("\n", allow_blank=True)]

    def render_lines(self, crop: Region) -> list[Strip]:
        self._ready, self._base = self._split(), self.rich_style
        return super().render_lines(crop)

    def render_line(self, y: int) -> Strip:
        if self.text_selection is not None:
            return super().render_line(y)
        line = self._ready[y] if y < len(self._ready) else Text("")
        return strip_of(line, self.size.width, self._base, self.app.console).apply_offsets(0, y)


class KeptText(SessionText):
    """Lines of which only those are drawn again that are others than before.

    `GROWS`: the widget is as high as they are many, and the screen is laid out again only when their number changed;
    else what does not fit is left out, and an ellipsis says so.
    """

    GROWS = False

    def __init__(self, session: Session, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__(session, id=id, classes=classes)
        self._made: list[Text] = []
        self._made_for: tuple[int, ...] = ()
        self._strips: dict[int, Strip] = {}
        self._drawn_for = (0, Style())  # width and style of the strips

    def session_changed(self, changed: Changed) -> None:
        if not changed & self.WATCHES:
            return
        before, self._made_for = self._made, ()
        made = self._current()
        if len(made) != len(before):
            self._strips.clear()
            self.refresh(layout=self.GROWS)
            return
        others = [y for y, (line, old) in enumerate(zip(made, before, strict=True)) if not alike(line, old)]
        for y in others:
            self._strips.pop(y, None)
        if others:
            self.refresh(*(Region(0, y, self.size.width, 1) for y in others))

    def _current(self) -> list[Text]:
        """The lines, made once for a change and a size."""
        size = (*self.size, *self.container_size, self.screen.size.height)
        if self._made_for != size:
            self._made, self._made_for = self.lines(), size
            self._strips.clear()
        return self._made

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return max(1, len(self._current())) if self.GROWS else super().get_content_height(container, viewport, width)

    def render_lines(self, crop: Region) -> list[Strip]:
        now = (self.size.width, self.rich_style)
        if now != self._drawn_for:
            self._drawn_for = now
            self._strips.clear()
        return super().render_lines(crop)

    def render_line(self, y: int) -> Strip:
        if self.text_selection is not None:
            return super().render_line(y)
        lines = self._current()
        if y not in self._strips:
            width, base = self._drawn_for
            cut = not self.GROWS and y == self.size.height - 1 and len(lines) > self.size.height
            line = Text().append("…") if cut else lines[y] if y < len(lines) else Text("")
            self._strips[y] = strip_of(line, width, base, self.app.console).apply_offsets(0, y)
        return self._strips[y]

    def render(self) -> Text:
        return Text("\n", end="", no_wrap=True, overflow="crop").join(self._current())


def alike(one: Text, other: Text) -> bool:
    """Whether two texts look the same; Rich's own comparison leaves out the style of the whole."""
    return one == other and one.style == other.style


def strip_of(text: Text, width: int, base: Style, console: Console) -> Strip:
    """A line of exactly `width` cells; what is longer ends with an ellipsis."""
    if not text.plain:
        return Strip.blank(width, base)
    if text.cell_len > width:
        text = text.copy()
        text.truncate(width, overflow="ellipsis")
    # A text without spans renders without its own style, and none of them pads with it.
    whole = base + console.get_style(text.style)
    return Strip(list(text.render(console))).apply_style(whole).adjust_cell_length(width, base)
