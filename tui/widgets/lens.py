"""The token lens: what one token looked at, what its attention is like, and which experts it went to."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from rich.style import Style
from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll

from geomcli.tui import cache
from geomcli.tui.session import MAX_PINS, Changed, Place, Session
from geomcli.tui.turn import Token, Turn
from geomcli.tui.widgets.colouring import LEFT
from geomcli.tui.widgets.flow import quoted
from geomcli.tui.widgets.lens_tabs import experts_lines, links_lines, signal_lines
from geomcli.tui.widgets.text import LineText

if TYPE_CHECKING:
    from geomcli.tui.app import GeomApp

TABS = ("links", "signal", "experts")
WIDTH = 40
_PINS = "pins"
_NARROWEST, _WIDEST = 28, 80


def token_name(token: Token) -> str:
    """A token on one line."""
    return quoted(token.text)


class Lens(Vertical):
    """The drawer. Shows the token under the mouse, else the one under the cursor; pinned tokens below."""

    def __init__(self, session: Session, *, id: str = "lens") -> None:  # noqa: A002
        super().__init__(id=id)
        self.session = session
        self.tab = TABS[0]

    def compose(self) -> ComposeResult:
        yield LensHead(self)
        with VerticalScroll(can_focus=False):
            yield LensBody(self)

    def on_mount(self) -> None:
        width = cast("GeomApp", self.app).remembered.lens_width
        if width is not None:
            self.styles.width = width

    @property
    def is_open(self) -> bool:
        return bool(self.display)

    def toggle(self) -> None:
        """Open or close; on a narrow screen it lies over the text."""
        self.toggle_class("-open" if self.screen.has_class("-narrow") else "-closed")

    def next_tab(self) -> None:
        self.show_tab(TABS[(TABS.index(self.tab) + 1) % len(TABS)])

    def show_tab(self, tab: str) -> None:
        self.tab = tab
        self.session.touch(Changed.VIEW)

    def resize(self, cells: int) -> None:
        """Make the drawer wider by `cells`, within bounds."""
        width = max(_NARROWEST, min(_WIDEST, self.outer_size.width + cells))
        self.styles.width = cast("GeomApp", self.app).remembered.lens_width = width

    def looked_at(self) -> tuple[Place, Token, Turn] | None:
        """The token that is shown, with its turn."""
        place = self.session.hover or self.session.cursor
        token = self.session.token_of(place)
        return None if token is None or place is None else (place, token, self.session.turns[place.turn])


class LensHead(LineText):
    """Which token, which tab, which pins; tabs and pins can be clicked."""

    WATCHES = Changed.TURNS | Changed.TOKENS | Changed.CURSOR | Changed.VIEW

    def __init__(self, lens: Lens) -> None:
        super().__init__(lens.session, id="lens-head")
        self.lens = lens

    def lines(self) -> list[Text]:
        paint, looked = self.paint, self.lens.looked_at()
        first = Text().append("LENS ", paint.fore("primary", bold=True))
        if looked is None:
            first.append("no token yet", paint.fore("muted"))
        else:
            _, token, _ = looked
            first.append(f"#{token.index} ", paint.fore("muted"))
            first.append(token_name(token), paint.fore("foreground", bold=True))
        second = Text()
        for tab in TABS:
            here = tab == self.lens.tab
            style = paint.fore("accent" if here else "muted", bold=here, underline=here)
            second.append(tab.capitalize(), style + Style.from_meta({"tab": tab}))
            second.append("  ")
        pins = Text()
        for place in self.session.pins:
            here = looked is not None and place == looked[0]
            style = paint.fore("accent", bold=True, underline=here)
            pins.append(" ").append(str(place.token), style + Style.from_meta({"pin": tuple(place)}))
        pins.append(" –" * (MAX_PINS - len(self.session.pins)), paint.fore("muted"))
        room = self.size.width - second.cell_len - pins.cell_len
        if room >= len(_PINS):
            second.append(" " * (room - len(_PINS))).append(_PINS, paint.fore("muted"))
            room = 0
        second.append(" " * room).append_text(pins)
        for line in (first, second):
            line.truncate(max(1, self.size.width), overflow="ellipsis")
        return [first, second]

    def on_click(self, event: events.Click) -> None:
        meta = event.style.meta
        if "tab" in meta:
            self.lens.show_tab(meta["tab"])
        elif "pin" in meta:
            self.session.go(Place(*meta["pin"]), remember=True)


class LensBody(LineText):
    """The chosen tab; a click on an attended position goes there."""

    WATCHES = Changed.TURNS | Changed.TOKENS | Changed.CURSOR | Changed.VIEW

    def __init__(self, lens: Lens) -> None:
        super().__init__(lens.session, id="lens-body")
        self.lens = lens

    _drawn: list[Text] | None = None

    def session_changed(self, changed: Changed) -> None:
        if changed & self.WATCHES and self.lens.display:
            before = self._height()
            self._drawn = self._made()
            # A layout of the whole screen, only when it is needed.
            if before != self._height():
                self.refresh(layout=True)
            else:
                self.refresh_others()

    def _height(self) -> int:
        """Lines that are drawn, or the room there is for them, whichever is more; 0 before the first."""
        lines = sum(line.plain.count("\n") + 1 for line in self._drawn or ())
        return max(lines, self.container_size.height) if lines else 0

    def on_resize(self) -> None:
        self._drawn = None
        self.refresh(layout=True)

    def lines(self) -> list[Text]:
        if self._drawn is None:
            self._drawn = self._made()
        return self._drawn

    def _made(self) -> list[Text]:
        looked = self.lens.looked_at()
        if looked is None:
            return [Text("Move with h and l, or click a token.", self.paint.fore("muted"))]
        place, token, turn = looked
        width = max(20, self.container_size.width)
        if self.lens.tab == "signal":
            off = cast("GeomApp", self.app).learned.off(turn, token)
            return signal_lines(token, turn, self.paint, width, off)
        if self.lens.tab == "experts":
            return experts_lines(token, self.paint, width)
        lines = links_lines(self.session, place, token, turn, self.paint, width)
        for pin in self.session.pins:
            pinned = self.session.token_of(pin)
            if pinned is not None and pin != place:
                head = Text("\n").append(f"pinned #{pin.token} ", self.paint.fore("accent", bold=True))
                left = LEFT if cache.has_left(self.session, pin) else Style()
                lines.append(head.append(token_name(pinned), self.paint.fore("foreground") + left))
                lines += links_lines(
                    self.session, pin, pinned, self.session.turns[pin.turn], self.paint, width, most=3, notes=False
                )
        return lines

    def on_mouse_move(self, event: events.MouseMove) -> None:
        place = event.style.meta.get("place")
        self.session.name(None if place is None else Place(*place))

    def on_leave(self) -> None:
        self.session.name(None)

    def on_click(self, event: events.Click) -> None:
        place = event.style.meta.get("place")
        if place is not None and place[1] >= 0:
            self.session.go(Place(*place), remember=True)
