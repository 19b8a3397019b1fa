"""The app: modes, themes, keys, the session and what feeds it; panes do the rest."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import msgspec
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.theme import Theme

from geomcli import config, jsonl
from geomcli.display import printable
from geomcli.errors import GeomError, UsageError
from geomcli.tui import panes, remembered
from geomcli.tui.actions import ACTIONS, APP, bindings
from geomcli.tui.collector import Collector
from geomcli.tui.commands import GeomCommands
from geomcli.tui.help import Help
from geomcli.tui.keymap import checked
from geomcli.tui.learned import Learned
from geomcli.tui.live import Live
from geomcli.tui.panes.base import Pane
from geomcli.tui.reading import Opened, Reading
from geomcli.tui.session import Changed, Overlay, Session
from geomcli.tui.storage import Storage
from geomcli.tui.themes import DEFAULT_THEME, THEMES, Paint, zone_defaults

FLUSH_SECONDS = 1 / 20
CALM_SECONDS = 0.3  # from the first screen until what it does not need is read
REST_SECONDS = 1.0  # from the end of an answer until memory is tidied up
DEMO_RATE = 14.0  # tokens a second
DEMO_FILE = Path(__file__).parent.parent / "demo.jsonl"

Severity = Literal["information", "warning", "error"]


class GeomApp(App[None]):
    """`geom tui`.

    `opened`: what was named on the command line; one is shown, of two the second is for Compare. `demo`: play the
    recording. `keys`: action id -> key. `unreadable`: why the app ended by itself, a file that goes on as no trace.
    UsageError for keys that clash or themes that do not exist.
    """

    TITLE = "geom"
    CSS_PATH = "styles.tcss"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]  # noqa: RUF012  (Textual declares no ClassVar)
    BINDINGS: ClassVar[list[BindingType]] = [*bindings(APP)]
    MODES: ClassVar[dict[str, str | Callable[[], Screen[Any]]]] = {
        mode: partial(panes.pane, mode) for _, mode in panes.offered()
    }
    DEFAULT_MODE = "chat"
    COMMANDS: ClassVar[set[Any]] = {GeomCommands}

    def __init__(
        self,
        settings: config.Settings,
        *,
        opened: Sequence[Opened] = (),
        demo: bool = False,
        mode: str = "",
        save: bool = True,
        keys: dict[str, str] | None = None,
        theme: str = "",
    ) -> None:
        super().__init__()
        self.session = Session()
        self.storage = Storage(settings.db_path)
        self.learned = Learned(config.discovery_path(settings.db_path))
        self.live = Live(self.session, settings, self.storage, save=save, notify=self._notice)
        self.reading = Reading(self.session, self.storage)
        self.unreadable: GeomError | None = None
        self._opened, self._demo, self._mode = opened, demo, mode
        self._paint: Paint | None = None
        self._flush_is_due = False
        self._collector = Collector()
        self.remembered = remembered.load()
        self._remembered_before = msgspec.structs.replace(self.remembered)
        for made in THEMES:
            self.register_theme(made)
        msgspec.structs.replace(settings.tui, keys={}).check(actions=(), themes=self.available_themes)
        self.theme = self._known_theme(theme or settings.tui.theme or DEFAULT_THEME)
        self.session.overlay = Overlay(settings.tui.signal)
        self.set_keymap(checked({**settings.tui.keys, **(keys or {})}))
        self.session.on_change = self._flush_soon
        self.live.on_rest = self._rest_soon

    def _known_theme(self, name: str) -> str:
        if name not in self.available_themes:
            ours = ", ".join(theme.name for theme in THEMES)
            raise UsageError(f"there is no theme {name!r}.", f"geom tui --theme NAME, one of {ours}")
        return name

    def on_mount(self) -> None:
        self.theme_changed_signal.subscribe(self, self._theme_changed)
        self.set_interval(FLUSH_SECONDS, self.flush)
        if self._opened:
            first = self._opened[0]
            self.session.show(first.traces, title=first.title, saved=first.saved)
            if len(first.traces) == 1:
                self.session.turns[0].path = first.path
            if all(opened.whole for opened in self._opened):
                if len(self._opened) > 1:
                    self.session.compared = [opened.compared() for opened in self._opened[:2]]
            else:
                self.call_after_refresh(self.run_worker, self._read_on, group="reading")
        if self._demo:
            self.play_demo()
        # Looking for a server needs imports that the first paint does not.
        self.call_after_refresh(self._collector.begin)
        self.call_after_refresh(self.run_worker, self.live.watch, group="watch", exit_on_error=True)
        wanted = self._mode or ("compare" if len(self._opened) > 1 else "")
        if wanted in self.MODES and wanted != self.current_mode:
            self.switch_mode(wanted)

    async def _read_on(self) -> None:
        try:
            await self.reading.run(self._opened)
        except GeomError as error:
            self.unreadable = error
            self.exit(return_code=error.exit_code)
        self._rest_soon()

    async def on_unmount(self) -> None:
        self._collector.end()
        if self.remembered != self._remembered_before:
            remembered.save(self.remembered)
        await self.live.close()

    @property
    def paint(self) -> Paint:
        """Styles of the theme that is on."""
        if self._paint is None:
            self._paint = Paint.of(cast("App[object]", self))
        return self._paint

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return zone_defaults(self.current_theme)

    def _theme_changed(self, _theme: Theme) -> None:
        self._paint = None
        self.session.touch(Changed.VIEW | Changed.STATE)

    def offered_panes(self) -> Sequence[tuple[int, str]]:
        """(number, mode) of the panes."""
        return panes.offered()

    def keys_of(self, action: str) -> list[str]:
        """The keys of an action, as they are shown to people."""
        given = next(entry.keys for entry in ACTIONS if entry.id == action)
        keys = self._keymap.get(action, given).split(",")
        return [self.get_key_display(Binding(key.strip(), "", "")) for key in keys]

    def key_of(self, action: str) -> str:
        """The first of `keys_of`."""
        return self.keys_of(action)[0]

    def flush(self) -> None:
        """Hand what changed to the pane that is shown; called 20 times a second, and at once for what a key did."""
        self._flush_is_due = False
        changed = self.session.take_changes()
        pane = self.screen_stack[0] if self.screen_stack else None
        # While the app ends, the widgets of a pane go one after the other.
        if changed and isinstance(pane, Pane) and pane.is_mounted and not pane.is_going:
            pane.session_changed(changed)

    def _flush_soon(self) -> None:
        if not self._flush_is_due and self.is_running:
            self._flush_is_due = True
            self.call_later(self.flush)

    def _rest_soon(self) -> None:
        self.set_timer(REST_SECONDS, self._rest)

    def _rest(self) -> None:
        if not self.live.running:
            self._collector.rest()

    def notify(
        self,
        message: str,
        *,
        title: str = "",
        severity: Severity = "information",
        timeout: float | None = None,
        markup: bool = False,  # noqa: ARG002
    ) -> None:
        """A toast, never read as markup: texts of servers and traces are in it."""
        super().notify(printable(message), title=title, severity=severity, timeout=timeout, markup=False)

    def _notice(self, text: str, severity: str) -> None:
        self.notify(text, severity=cast("Severity", severity), timeout=8)

    def play_demo(self) -> None:
        """Play the recording that comes with geom in place of what is shown."""
        self.live.stop()
        self.session.play(jsonl.load(DEMO_FILE), title="demo", rate=DEMO_RATE)

    def start_engine(self) -> None:
        """Start the built-in engine; what becomes of it is shown in the HUD."""
        self.run_worker(self._start_engine(), group="engine", exclusive=True)

    async def _start_engine(self) -> None:
        try:
            await self.live.start_engine()
        except GeomError as error:
            self._notice(str(error), "error")

    def open_trace(self, name: str) -> None:
        """Show a stored trace: an id, the start of one, or `last`. Keys are answered while it is read."""
        self.run_worker(self._open_trace(name), group="open", exclusive=True)

    async def _open_trace(self, name: str) -> None:
        try:
            shown = (self.session.turns, len(self.session.turns))
            opened = await self.reading.stored(name)
        except GeomError as error:
            self._notice(str(error), "error")
            return
        if shown[0] is not self.session.turns or shown[1] != len(self.session.turns):
            self._notice(f"{name} is not shown: something else was begun while it was read.", "warning")
            return
        self.live.stop()
        self.session.show(opened.traces, title=opened.title, saved=True)
        if self.current_mode != "chat":
            self.switch_mode("chat")
        turns = self.session.turns
        try:
            await self.reading.run([opened])
        except GeomError as error:
            self._notice(str(error), "error")
            if self.session.turns is turns:
                self.session.clear()
        self._rest_soon()

    def lose_terminal(self) -> None:
        """The terminal is gone: end, keeping what was captured; what is still drawn goes nowhere.

        Textual's thread that writes to the terminal has died of it, and who hands it more waits for ever.
        """
        driver = self._driver
        writer = getattr(driver, "_writer_thread", None)
        if driver is not None and writer is not None:
            vars(driver).update(_writer_thread=None, write=lambda _data: None)
            with contextlib.suppress(queue.Empty):
                while True:
                    writer._queue.get_nowait()
        self.exit(return_code=130)

    def look_for_discovery(self) -> None:
        """Read the discovery beside the store, if there is another one than before; the first time not at once."""
        if self.learned.looked:
            self.run_worker(self._look_for_discovery(), group="discovery")
        else:
            self.set_timer(CALM_SECONDS, lambda: self.run_worker(self._look_for_discovery(), group="discovery"))

    async def _look_for_discovery(self) -> None:
        if await self.learned.look():
            self.session.touch(Changed.STATE | Changed.VIEW)

    def action_mode(self, mode: str) -> None:
        self.switch_mode(mode)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "mode":
            return parameters[0] in self.MODES
        return super().check_action(action, parameters)

    def action_keys_show(self) -> None:
        if not isinstance(self.screen, Help):
            self.push_screen(Help(self.current_mode))

    def action_leave(self) -> None:
        self.exit()

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:  # noqa: ARG002
        return ()
