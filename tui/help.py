"""All keys of a pane, made from the table of actions."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from geomcli.tui.actions import PROMPT, Action, actions_in, actions_of

if TYPE_CHECKING:
    from geomcli.tui.app import GeomApp


class Help(ModalScreen[None]):
    """The keys of one mode, with the ids by which geom.toml changes them."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape,f1,q,question_mark", "dismiss", "close")]

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="help"):
            yield Static(self._text(), id="help-text")

    def _text(self) -> Text:
        app = cast("GeomApp", self.app)
        paint = app.paint
        text = Text().append(f"Keys in {self.mode.capitalize()}\n", paint.fore("primary", bold=True))
        offered = [a for a in actions_in(self.mode) if not a.id.startswith("mode.") or a.id[5:] in app.MODES]
        groups = [("", offered)]
        if self.mode == "chat":
            groups.append(("While you write a question", actions_of(PROMPT)))
        for title, actions in groups:
            if title:
                text.append(f"\n{title}\n", paint.fore("primary", bold=True))
            for action in actions:
                text.append(f"{self._keys(action):>16}  ", paint.fore("accent", bold=True))
                text.append(f"{action.help:<58}", paint.fore("foreground"))
                text.append(f" {action.id}\n", paint.fore("muted"))
        text.append("\nAnother key for an action, in geom.toml:   ", paint.fore("muted"))
        text.append('[tui.keys]  "token.pin" = "ctrl+y"\n', paint.fore("foreground"))
        return text.append("esc closes this.", paint.fore("muted"))

    def _keys(self, action: Action) -> str:
        return " ".join(cast("GeomApp", self.app).keys_of(action.id))
