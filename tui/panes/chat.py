"""Chat: questions and answers as they are written, coloured by what their attention is like."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.widget import Widget
from textual.widgets import Static

from geomcli.errors import GeomError
from geomcli.tui.actions import pane_bindings
from geomcli.tui.panes.tokens import TokenPane
from geomcli.tui.session import Changed
from geomcli.tui.widgets.find import FindBar
from geomcli.tui.widgets.lens import Lens
from geomcli.tui.widgets.prompt import Prompt
from geomcli.tui.widgets.timeline import Timeline
from geomcli.tui.widgets.token_view import TokenView
from geomcli.tui.widgets.welcome import Welcome


class ChatPane(TokenPane):
    """The transcript, the timeline of the turn under the cursor, the lens, and the prompt."""

    MODE = "chat"
    BINDINGS: ClassVar[list[BindingType]] = [*pane_bindings(MODE)]
    AUTO_FOCUS: ClassVar[str | None] = "TokenView"

    def body(self) -> Iterable[Widget]:
        with Horizontal(id="chat-columns"):
            with Vertical(id="chat-left"):
                yield Welcome(self.session, id="welcome")
                yield TokenView(self.session, id="tokens")
                yield Timeline(self.session, id="timeline")
            yield Lens(self.session)
        yield FindBar(id="find")
        with Horizontal(id="ask"):
            yield Static("❯", id="ask-mark")
            yield Prompt()
            yield Static("", id="ask-with", markup=False)

    @property
    def view(self) -> TokenView:
        return self.query_one(TokenView)

    @property
    def prompt(self) -> Prompt:
        return self.query_one(Prompt)

    def session_changed(self, changed: Changed) -> None:
        if changed & (Changed.TURNS | Changed.STATE):
            self.view.display = self.query_one(Timeline).display = bool(self.session.turns)
            self.query_one("#ask-with", Static).update(self.geom.live.steering.plan().described())
        super().session_changed(changed)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "run_stop":
            return self.geom.live.running or self.session.player is not None
        return super().check_action(action, parameters)

    def on_prompt_sent(self, event: Prompt.Sent) -> None:
        self.prompt.clear()
        self.run_worker(self._ask(event.text), group="answer", exit_on_error=True)

    async def _ask(self, text: str) -> None:
        try:
            await self.geom.live.ask(text)
        except GeomError as error:
            # It was not asked: the question goes back into the field, before what was typed meanwhile.
            self.prompt.text = "\n".join(part for part in (text, self.prompt.text) if part)
            self.notify(str(error), severity="error")

    def action_prompt_focus(self) -> None:
        # At once: what is typed next is text, however fast it comes.
        self.set_focus(self.prompt)

    def action_think_fold(self) -> None:
        self.view.toggle_folds()
        if not any(token.phase == "think" for turn in self.session.turns for token in turn.tokens):
            what = "folded" if self.view.folded else "shown"
            self.notify(f"There is no thinking here; where there is some it will be {what}.", timeout=2)

    def action_run_stop(self) -> None:
        self.geom.live.stop()

    def action_chat_new(self) -> None:
        self.geom.live.stop()
        self.session.clear()
        # At once: what is typed next is text, however fast it comes.
        self.set_focus(self.prompt)

    def action_engine_start(self) -> None:
        self.geom.start_engine()

    def action_demo_play(self) -> None:
        self.geom.play_demo()


PANE = ChatPane
