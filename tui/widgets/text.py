"""Base of the widgets that are a few lines of styled text, made anew from the session when it changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from rich.text import Text
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
