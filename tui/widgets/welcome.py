"""What an empty chat shows: what can be done without a server, and with one."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from rich.text import Text

from geomcli.tui.live import State
from geomcli.tui.session import Changed
from geomcli.tui.widgets.text import SessionText

if TYPE_CHECKING:
    from geomcli.tui.app import GeomApp


class Welcome(SessionText):
    """Shown while there is no turn."""

    WATCHES = Changed.TURNS | Changed.STATE

    def session_changed(self, changed: Changed) -> None:
        self.display = not self.session.turns
        super().session_changed(changed)

    def lines(self) -> list[Text]:
        app, paint = cast("GeomApp", self.app), self.paint
        muted, plain, strong = paint.fore("muted"), paint.fore("foreground"), paint.fore("primary", bold=True)
        lines = [Text("What is the model looking at while it writes?", strong), Text("")]
        match app.live.state:
            case State.READY:
                said = [f"{app.live.model} is ready at {app.live.place}.", "Press enter and ask something."]
            case State.STARTING:
                said = [f"{app.live.detail}", "You can watch the demo meanwhile."]
            case State.REFUSED:
                said = [app.live.detail]
            case State.LOOKING:
                said = [f"Looking for a server at {app.live.place} …"]
            case _:
                said = [f"No server answers at {app.live.place}; geom goes on looking for one."]
        lines += [Text(line, plain) for line in said] + [Text("")]
        offers = [("demo.play", "play the recording that comes with geom")]
        if app.live.state in (State.ABSENT, State.LOST):
            offers.insert(0, ("engine.start", "start the built-in engine with a small model, on this machine"))
        offers += [
            ("command.palette", "open a stored trace, change the theme, everything else"),
            ("keys.show", "all keys"),
        ]
        for name, what in offers:
            key = Text().append(f"  {app.key_of(name):>6}  ", paint.fore("accent", bold=True))
            lines.append(key.append(what, muted))
        return lines
