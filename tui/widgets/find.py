"""The line in which one searches; opened by its key, closed by escape."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.message import Message
from textual.widgets import Input, Static


class FindBar(Horizontal):
    """Posts `Searched` with the query when enter is pressed; `say` shows what came of it."""

    class Searched(Message):
        def __init__(self, query: str) -> None:
            super().__init__()
            self.query = query

    def compose(self) -> ComposeResult:
        yield Static("/", id="find-mark")
        yield Input(placeholder="text, zone:diffuse, @120, entropy>0.7", id="find-input", compact=True)
        yield Static("", id="find-said", markup=False)

    def open(self) -> None:
        """Show the line and put the cursor in it."""
        self.add_class("-open")
        self.screen.set_focus(self.query_one(Input))

    def close(self) -> None:
        self.remove_class("-open")
        self._leave()

    def _leave(self) -> None:
        """Give the keys back to what the pane is about."""
        self.screen.set_focus(None)
        self.screen.focus_next(self.screen.AUTO_FOCUS or "*")

    def say(self, text: str) -> None:
        self.query_one("#find-said", Static).update(text)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.post_message(self.Searched(event.value.strip()))
        self._leave()

    def key_escape(self) -> None:
        self.say("")
        self.close()
