"""What every pane has: title, HUD, footer, the session, and the actions that are the same everywhere."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, cast, runtime_checkable

from textual.app import ComposeResult
from textual.containers import Container
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Footer, Input, TextArea

from geomcli import jsonl
from geomcli.errors import GeomError
from geomcli.tui.actions import ACTIONS
from geomcli.tui.session import Changed, Session
from geomcli.tui.widgets.hud import Hud, TitleBar

if TYPE_CHECKING:
    from geomcli.tui.app import GeomApp


@runtime_checkable
class Watcher(Protocol):
    """A widget that draws the session; told what changed, at most 20 times a second."""

    def session_changed(self, changed: Changed) -> None: ...


class Pane(Screen[None]):
    """A screen of one mode. Subclasses set `MODE` and `BINDINGS = pane_bindings(MODE)`, and yield widgets from `body`.

    Every widget below that has `session_changed(changed)` is called when the session changed while the pane is shown,
    and with `Changed.ALL` when it is shown again.
    """

    MODE: ClassVar[str] = ""
    # Nothing, unless a pane names what: a text field that had the focus would take the keys.
    AUTO_FOCUS: ClassVar[str | None] = ""
    TYPED: ClassVar[frozenset[str]] = frozenset(action.method for action in ACTIONS if action.typed)

    @property
    def geom(self) -> GeomApp:
        """The app, by its own type."""
        return cast("GeomApp", self.app)

    @property
    def is_going(self) -> bool:
        """Whether its widgets are being removed."""
        return self._pruning or self._closing

    @property
    def session(self) -> Session:
        return self.geom.session

    def compose(self) -> ComposeResult:
        yield TitleBar(self.session, id="title")
        yield Hud(self.session, id="hud")
        with Container(id="body"):
            yield from self.body()
        yield Footer(show_command_palette=False, compact=True)

    def body(self) -> Iterable[Widget]:
        """The pane's own widgets."""
        raise NotImplementedError

    def session_changed(self, changed: Changed) -> None:
        """Hand a change on to the widgets."""
        for widget in self.walk_children(Widget):
            if isinstance(widget, Watcher):
                widget.session_changed(changed)
        if changed & (Changed.STATE | Changed.TURNS):
            self.refresh_bindings()

    def on_screen_resume(self) -> None:
        self.session_changed(Changed.ALL)
        self.refresh_bindings()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        """Keys that a text field takes as text are not offered while one has the focus."""
        typing = isinstance(self.focused, Input | TextArea)
        return not (typing and action in self.TYPED)

    def action_view_freeze(self) -> None:
        if self.session.frozen:
            self.session.thaw()
        else:
            self.session.freeze()

    def action_signal_next(self) -> None:
        self.session.set_overlay(self.session.overlay.next)
        self.notify(f"Colour: {self.session.overlay.value}", timeout=1.5)

    def action_pane_maximize(self) -> None:
        if self.maximized is not None:
            self.minimize()
        elif self.focused is not None:
            self.maximize(self.focused)

    async def action_trace_save(self) -> None:
        turns = [turn for turn in self.session.turns if turn.finished and not turn.saved]
        if not turns:
            self.notify("Nothing to save: every finished trace shown here is in the store.")
            return
        try:
            for turn in turns:
                await self.geom.storage.add(list(turn.trace.records()))
                turn.saved = True
        except GeomError as error:
            self.notify(str(error), severity="error")
            return
        self.session.touch(Changed.STATE)
        self.notify(f"Saved {len(turns)} in {self.geom.storage.path}.")

    async def action_trace_export(self) -> None:
        turns = [turn for turn in self.session.turns if turn.tokens]
        if not turns:
            self.notify("There is no trace to export yet.", severity="warning")
            return
        text = "".join(jsonl.dump(turn.trace.records()) for turn in turns)
        try:
            path = _free_path(Path.cwd(), turns[-1].id)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            where = error.filename or "This folder"
            why = (error.strerror or str(error)).lower()
            self.notify(f"{where} cannot be written: {why}. ctrl+s keeps the trace in the store.", severity="error")
            return
        self.notify(f"Written to {path}; geom tui {path.name} opens it.")


def _free_path(folder: Path, name: str) -> Path:
    # An id comes from a file or a server: it names a file here, and no other place.
    name = re.sub(r"[^\w.-]", "_", name).lstrip(".")[:100] or "trace"
    path, number = folder / f"{name}.jsonl", 2
    while path.exists():
        path, number = folder / f"{name}-{number}.jsonl", number + 1
    return path
