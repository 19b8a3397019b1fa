"""The two lines at the top: where one is, and what capture costs and misses."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from rich.cells import cell_len
from rich.style import Style
from rich.text import Text
from textual import events

from geomcli.display import ZONE_GLYPHS, human_bytes, printable, zone_label
from geomcli.tui.session import Changed
from geomcli.tui.turn import Turn
from geomcli.tui.widgets.learned_words import off_words
from geomcli.tui.widgets.text import LineText

if TYPE_CHECKING:
    from geomcli.tui.app import GeomApp

_SPACE = "  "


class TitleBar(LineText):
    """Name, panes, and which trace is shown."""

    WATCHES = Changed.TURNS | Changed.STATE | Changed.TOKENS

    def lines(self) -> list[Text]:
        app = cast("GeomApp", self.app)
        text = Text().append(" geom ", self.paint.fore("primary", bold=True) + Style(reverse=True))
        for number, name in app.offered_panes():
            here = name == app.current_mode
            style = self.paint.fore("accent" if here else "muted", bold=here, underline=here)
            text.append(_SPACE)
            text.append(f"{number} {name.capitalize()}", style + Style.from_meta({"mode": name}))
        right = self._trace()
        room = self.size.width - text.cell_len - 1
        if right.cell_len < room:
            text.append(" " * (room - right.cell_len))
            text.append_text(right)
        return [text]

    def _trace(self) -> Text:
        turn = self.session.turn
        if turn is None:
            return Text("")
        text = Text().append(printable(self.session.title or turn.id), self.paint.fore("foreground"))
        state = "saved" if turn.saved else "not saved"
        return text.append(f" {state}", self.paint.fore("success" if turn.saved else "muted"))

    def on_click(self, event: events.Click) -> None:
        if mode := event.style.meta.get("mode"):
            self.app.switch_mode(mode)


class Hud(LineText):
    """Server, tokens, speed, what the KV cache holds, mode, heads, bytes, what was not seen; at the right the zone and
    the drift now, and how far off the manifold that is.

    What there is no room for is left out from the end, never what says that something is missing.
    """

    WATCHES = Changed.TURNS | Changed.TOKENS | Changed.STATE | Changed.CURSOR

    def lines(self) -> list[Text]:
        paint, turn = self.paint, self.session.turn
        state = cast("GeomApp", self.app).live.status
        head = Text(" ").append(f"{state.glyph} ", paint.fore(state.colour, bold=True))
        head.append(printable(state.text), paint.fore("foreground"))
        right = self._now()
        room = self.size.width - head.cell_len - right.cell_len - 1
        for item, kept in self._items(turn):
            width = cell_len(item) + len(_SPACE)
            if width <= room or kept:
                head.append(_SPACE + item, paint.fore("warning" if kept else "muted", bold=kept))
                room -= width
        if room >= 0:
            head.append(" " * room).append_text(right)
        return [head]

    def _items(self, turn: Turn | None) -> list[tuple[str, bool]]:
        """(text, whether it says what is missing), the most important first."""
        items: list[tuple[str, bool]] = []
        if self.session.frozen:
            items.append((f"FROZEN +{self.session.held}", True))
        if self.session.reading:
            items.append(("reading …", True))
        if turn is None:
            return items
        step = turn.trace.steps[-1] if turn.trace.steps else {}
        heads = step.get("heads") or {}
        seen, total = heads.get("seen"), heads.get("total")
        if "capture_stopped" in turn.flags:
            items.append(("capture stopped at its limit", True))
        if turn.halt is not None:
            items.append((f"firewall: HALT at {turn.halt[0] + 1}", True))
        if lost := turn.flags["error"]:
            items.append((f"failed {lost}", True))
        if seen is not None and total is not None and seen < total:
            items.append((f"heads {seen}/{total}", True))
        items.append((f"{len(turn.tokens)} tok", False))
        if turn.speed:
            items.append((f"{turn.speed:.0f} tok/s", False))
        if (cache := turn.kept.last) is not None:
            share = f"{cache.share:.2f}".removeprefix("0")
            items.append((f"kv {cache.kept} kept, {cache.freed} freed, {share}", False))
        if step.get("mode"):
            items.append((str(step["mode"]), False))
        if seen is not None and seen == total:
            items.append((f"heads {seen}/{total}", False))
        items.append((human_bytes(turn.bytes), False))
        dropped = len(turn.trace.tokens) - len(turn.trace.steps)
        if turn.trace.tokens:
            items.append((f"dropped {max(0, dropped)}", dropped > 0))
        return items

    def _now(self) -> Text:
        token, paint = self.session.token, self.paint
        if token is None or not token.captured:
            return Text("")
        text = Text().append(
            f"{ZONE_GLYPHS.get(token.zone, '·')} {zone_label(token.zone)}", paint.zone_mark(token.zone)
        )
        if token.drift is not None:
            text.append(f"  drift {token.drift:.2f} ", paint.fore("muted"))
            text.append({"OK": "✓", "WARN": "!", "HALT": "‼"}.get(token.status, "?"), paint.status(token.status))
        turn = self.session.turn
        if turn is not None and (off := cast("GeomApp", self.app).learned.off(turn, token)) is not None:
            text.append("  ").append_text(off_words(off, paint))
        return text.append(" ")
