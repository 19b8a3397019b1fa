"""What every pane has: title, HUD, footer, the session, and the actions that are the same everywhere."""

from __future__ import annotations

import asyncio
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
from geomcli.schema import Record
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
        if not self.is_mounted:
            self.call_after_refresh(self.on_screen_resume)
            return
        self.session_changed(Changed.ALL)
        self.refresh_bindings()
        # After the first paint: somebody may have run `geom discover` beside the app since the last look.
        self.call_after_refresh(self.geom.look_for_discovery)

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

    def action_trace_save(self) -> None:
        if self._is_reading():
            return
        self.run_worker(self._save(), group="save")

    async def _save(self) -> None:
        try:
            saved = await self.geom.live.keeper.save()
        except GeomError as error:
            self.notify(str(error), severity="error")
            return
        if saved:
            self.notify(f"Saved {saved} in {self.geom.storage.path}.")
        else:
            self.notify("Nothing to save: every finished trace shown here is in the store.")

    def _is_reading(self) -> bool:
        """Whether what is shown is not whole yet, and a person was told so."""
        if self.session.reading:
            self.notify(f"{self.session.reading} is still being read; again when the top line no longer says so.")
        return bool(self.session.reading)

    def action_trace_export(self) -> None:
        if self._is_reading():
            return
        turns = [turn for turn in self.session.turns if turn.tokens]
        if not turns:
            self.notify("There is no trace to export yet.", severity="warning")
            return
        # What there is at this key; a trace goes on growing while it is written.
        traces = [list(turn.trace.records()) for turn in turns]
        self.run_worker(self._export(traces, turns[-1].id), group="export")

    async def _export(self, traces: list[list[Record]], name: str) -> None:
        try:
            path = await asyncio.to_thread(_write, traces, name)
        except OSError as error:
            where = error.filename or "This folder"
            why = (error.strerror or str(error)).lower()
            self.notify(f"{where} cannot be written: {why}. ctrl+s keeps the trace in the store.", severity="error")
            return
        self.notify(f"Written to {path}; geom tui {path.name} opens it.")


def _write(traces: list[list[Record]], name: str) -> Path:
    path = _free_path(Path.cwd(), name)
    path.write_text("".join(jsonl.dump(records) for records in traces), encoding="utf-8")
    return path


def _free_path(folder: Path, name: str) -> Path:
    # An id comes from a file or a server: it names a file here, and no other place.
    name = re.sub(r"[^\w.-]", "_", name).lstrip(".")[:100] or "trace"
    path, number = folder / f"{name}.jsonl", 2
    while path.exists():
        path, number = folder / f"{name}-{number}.jsonl", number + 1
    return path
