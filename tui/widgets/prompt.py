"""The text field in which one asks: enter sends, escape leaves."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import BindingType
from textual.message import Message
from textual.widgets import TextArea

from geomcli.tui.actions import PROMPT, bindings


class Prompt(TextArea):
    """Posts `Sent` with the text and keeps it; who can ask it clears the field."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings(PROMPT)]

    class Sent(Message):
        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self) -> None:
        super().__init__(
            id="prompt",
            compact=True,
            soft_wrap=True,
            show_line_numbers=False,
            highlight_cursor_line=False,
            placeholder="Ask something …",
        )

    # These keys reach the app before the field has taken the letters typed just before: behind those in its queue.
    def action_prompt_send(self) -> None:
        self.call_later(self._send)

    def action_prompt_newline(self) -> None:
        self.call_later(self.insert, "\n")

    def _send(self) -> None:
        if self.text.strip():
            self.post_message(self.Sent(self.text.strip()))

    def action_prompt_leave(self) -> None:
        self.screen.focus_next("TokenView")
