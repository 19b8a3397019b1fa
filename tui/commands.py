"""What the command palette finds: the pane's actions, themes, and stored traces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.content import Content
from textual.fuzzy import Matcher
from textual.markup import escape

from geomcli.display import printable
from geomcli.errors import GeomError
from geomcli.tui.actions import ACTIONS, APP, actions_in

if TYPE_CHECKING:
    from geomcli.tui.app import GeomApp

_MOST_TRACES = 200
_PATIENCE_SECONDS = 1.0  # with a store that is being written: actions are found without it


class _Command(NamedTuple):
    name: str
    help: str
    run: Callable[[], Any]


class GeomCommands(Provider):
    """Actions of the pane below the palette, every theme, the newest stored traces."""

    async def startup(self) -> None:
        app = cast("GeomApp", self.app)
        self._commands = [
            _Command(action.help, app.key_of(action.id), partial(app.run_action, _call(action.id), self.screen))
            for action in actions_in(app.current_mode)
            if action.id != "command.palette" and (not action.id.startswith("mode.") or action.id[5:] in app.MODES)
        ]
        self._commands += [
            _Command(f"Theme: {name}", "colours of the app", partial(setattr, app, "theme", name))
            for name in sorted(app.available_themes, key=lambda name: (not name.startswith("geom"), name))
        ]
        try:
            rows = []
            if app.storage.path.exists():
                rows = await asyncio.wait_for(app.storage.ls(_MOST_TRACES), _PATIENCE_SECONDS)
        except TimeoutError:
            app.notify("The store is busy: stored traces are not listed this time.", severity="warning")
            rows = []
        except GeomError as error:
            app.notify(str(error), severity="error")
            rows = []
        self._commands += [
            _Command(
                f"Open trace {row['id']}: {printable(row['title'])}",
                f"{printable(row['model'])}, {row['tokens'] or 0} tokens",
                partial(app.open_trace, row["id"]),
            )
            for row in rows
        ]

    async def discover(self) -> Hits:
        for command in self._commands:
            yield DiscoveryHit(Content(command.name), command.run, text=command.name, help=escape(command.help))

    async def search(self, query: str) -> AsyncIterator[Hit]:
        matcher = self.matcher(query)
        for command in self._commands:
            if (score := matcher.match(command.name)) > 0:
                shown = _highlighted(matcher, command.name)
                yield Hit(score, shown, command.run, text=command.name, help=escape(command.help))


def _highlighted(matcher: Matcher, name: str) -> Content:
    """The name with what was matched marked; the matcher's own would read markup in titles of traces."""
    content = Content(name)
    for offset in matcher.fuzzy_search.match(matcher.query, name)[1]:
        if not name[offset].isspace():
            content = content.stylize(matcher.match_style, offset, offset + 1)
    return content


def _call(action: str) -> str:
    if action.startswith("mode."):
        return f"app.mode('{action[5:]}')"
    entry = next(entry for entry in ACTIONS if entry.id == action)
    return f"app.{entry.method}" if APP in entry.where else f"screen.{entry.method}"
