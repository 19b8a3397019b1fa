"""The chat's text, drawn line by line: coloured tokens that can be clicked, hovered, searched and followed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip

from geomcli.tui import cache
from geomcli.tui.session import Changed, Overlay, Place, Session
from geomcli.tui.themes import Paint
from geomcli.tui.widgets.colouring import LEFT, strongest_influence, token_style
from geomcli.tui.widgets.flow import Piece
from geomcli.tui.widgets.transcript import Transcript

if TYPE_CHECKING:
    from geomcli.tui.app import GeomApp

MARGIN = 7  # cells of the labels


class TokenView(ScrollView, can_focus=True):
    """All turns of a session. Wraps what arrives, redraws the lines that changed, keeps the drawn ones."""

    ALLOW_SELECT = True
    # Beside the lens's own key. It would go to the next field, which has a key already.
    BINDINGS: ClassVar[list[BindingType]] = [Binding("tab", "screen.lens_toggle", show=False)]

    def __init__(self, session: Session, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.session = session
        self.folded = True
        self._transcript = Transcript(80)
        self._strips: dict[int, Strip] = {}
        self._linked: dict[Place, float] = {}
        self._paint: Paint | None = None
        self._moving = False  # while the view scrolls by itself
        self._strongest = 1.0  # influence that is drawn as 1
        self._cursor: Place | None = None
        self._cache: list[Any] = []  # by which tokens were drawn as left

    @property
    def paint(self) -> Paint:
        if self._paint is None:
            self._paint = cast("GeomApp", self.app).paint
        return self._paint

    @property
    def lines(self) -> int:
        """How many lines there are."""
        return len(self._transcript.flow.lines)

    def session_changed(self, changed: Changed) -> None:
        """Draw what is new."""
        if changed & Changed.TURNS or (changed & Changed.VIEW and self._transcript.marks != self._marked):
            self.rebuild()
        elif changed & Changed.TOKENS:
            self._extend()
        if changed & (Changed.CURSOR | Changed.TOKENS | Changed.VIEW | Changed.TURNS):
            self._relink()
            if (now := cache.state(self.session)) != self._cache:
                self._cache = now
                self._strips.clear()
                self.refresh()
        if changed & Changed.VIEW:
            self.forget()

    @property
    def _marked(self) -> bool:
        return self.session.overlay is Overlay.ZONE

    def forget(self) -> None:
        """Draw every line anew: colours changed."""
        self._paint = None
        self._strips.clear()
        self.refresh()

    def toggle_folds(self) -> None:
        """Fold or unfold all thinking."""
        self.folded = not self.folded
        self.rebuild()

    def rebuild(self) -> None:
        """Lay everything out again: other turns, another width, other folds."""
        if not self.size.width:
            return
        width = self.scrollable_content_region.width - MARGIN - 1
        self._transcript = Transcript(width, folded=self.folded, marks=self._marked)
        self._strips.clear()
        self._extend()
        self.refresh()

    def _extend(self) -> None:
        flow = self._transcript.flow
        flow.dirty = len(flow.lines)
        if not self._transcript.update(self.session.turns):
            self.rebuild()
            return
        dirty, end = flow.dirty, len(flow.lines)
        if self.session.overlay is Overlay.INFLUENCE:
            self._strongest = strongest_influence(self.session)
            self._strips.clear()
            self.refresh()
        for line in range(dirty, end):
            self._strips.pop(line, None)
        if end != self.virtual_size.height:
            self._resize_content(end)
        self.refresh_lines(dirty, end - dirty)

    def _resize_content(self, lines: int) -> None:
        self._moving = True
        try:
            # Set as such it would lay out and draw the whole screen for every new line.
            size = Size(self.scrollable_content_region.width, lines)
            self.set_reactive(TokenView.virtual_size, size)
            self._scroll_update(size)
            if self.session.following and not self.session.frozen:
                self.scroll_end(animate=False, immediate=True, force=True, x_axis=False)
        finally:
            self._moving = False

    def _relink(self) -> None:
        """The tokens that the hovered token, or that under the cursor, looks at, and the cursor's own line."""
        place = self.session.hover or self.session.cursor
        token = self.session.token_of(place)
        linked: dict[Place, float] = {}
        if token is not None and place is not None:
            for link in token.links(self.session.layer):
                target = self.session.place_of(place.turn, link.position)
                if target is not None and target != place:
                    linked[target] = link.probability
        marks = {*self._linked, *linked, *self._marked_places}
        self._linked = linked
        marked = (place, self.session.cursor, self.session.named, *self.session.pins, *self.session.found)
        self._marked_places = {p for p in marked if p}
        for changed in marks | self._marked_places:
            line = self._transcript.flow.line_of(changed)
            if line is not None:
                # A token may go on in the next line.
                for part in (line, line + 1):
                    if self._strips.pop(part, None) is not None:
                        self.refresh_lines(part, 1)
        if self.session.cursor != self._cursor:
            self._cursor = self.session.cursor
            if not self.session.following:
                self._show(self._cursor)

    _marked_places: set[Place] = set()  # noqa: RUF012  (replaced, never changed)

    def _show(self, place: Place | None) -> None:
        line = None if place is None else self._transcript.flow.line_of(place)
        if line is None:
            return
        self._moving = True
        try:
            self.scroll_to_region(Region(0, max(0, line - 1), 1, 3), animate=False, immediate=True, force=True)
        finally:
            self._moving = False

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        if self._moving or not self.session.turns:
            return
        if new_value < old_value:
            self.session.stop_following()
        elif new_value >= self.max_scroll_y and not self.session.following:
            self.session.follow_end()

    def on_resize(self) -> None:
        self.rebuild()
        if self.session.following:
            self._resize_content(self.lines)

    def render_line(self, y: int) -> Strip:
        number = self.scroll_offset.y + y
        strip = self._strips.get(number)
        if strip is None:
            strip = self._drawn(number)
            self._strips[number] = strip
        return strip

    def _drawn(self, number: int) -> Strip:
        width, base = self.scrollable_content_region.width, self.rich_style
        if number >= self.lines:
            return Strip.blank(width, base)
        line = self._transcript.flow.lines[number]
        segments = [Segment(f" {line.label}".ljust(MARGIN), base + self.paint.fore("muted", bold=True))]
        segments += [Segment(piece.text, base + self._style(piece)) for piece in line.pieces]
        strip = Strip(segments).adjust_cell_length(width, base)
        selection = self.text_selection
        if selection is not None and (span := selection.get_span(number)) is not None:
            strip = self._selected(strip, *span)
        return strip.apply_offsets(0, number)

    def _selected(self, strip: Strip, start: int, end: int) -> Strip:
        text = strip.text
        left = cell_len(text[:start])
        right = strip.cell_length if end == -1 else cell_len(text[:end])
        style = self.screen.get_component_rich_style("screen--selection")
        chosen = Strip([Segment(s.text, (s.style or Style()) + style) for s in strip.crop(left, right)])
        return Strip.join([strip.crop(0, left), chosen, strip.crop(right)])

    def _style(self, piece: Piece) -> Style:
        name, place = piece.style, piece.place
        if name.startswith("mark:"):
            style = self.paint.zone_mark(name.removeprefix("mark:"))
        elif name in ("muted", "fold", "error"):
            style = self.paint.fore({"muted": "muted", "fold": "foreground"}.get(name, "error"))
        elif name == "prompt":
            style = self.paint.fore("muted")
        else:
            style = self._token_style(place, dim=name == "think")
        if place is None:
            return style
        session = self.session
        if not name.startswith("mark:") and cache.has_left(session, place):
            style += LEFT
        if (weight := self._linked.get(place)) is not None:
            style += self.paint.link(weight)
        if place in session.found:
            style += Style(underline2=True)
        if place in session.pins:
            style += self.paint.fore("accent", bold=True, underline=True)
        if place == session.named:
            style += self.paint.fore("accent", bold=True) + Style(reverse=True)
        if place in (session.hover, session.cursor):
            style += Style(reverse=True)
        if place.token >= 0:
            style += Style.from_meta({"turn": place.turn, "token": place.token})
        return style

    def _token_style(self, place: Place | None, *, dim: bool) -> Style:
        if place is None:
            return Style()
        style = token_style(self.session, place, self.paint, self._strongest)
        return style + Style(italic=True) if dim else style

    def place_under(self, event: events.MouseEvent) -> Place | None:
        """The output token under the mouse."""
        meta = event.style.meta
        return Place(meta["turn"], meta["token"]) if "token" in meta else None

    def on_mouse_move(self, event: events.MouseMove) -> None:
        self.session.point(self.place_under(event))

    def on_leave(self) -> None:
        self.session.point(None)

    def on_click(self, event: events.Click) -> None:
        place = self.place_under(event)
        if place is not None:
            self.session.stop_following()
            self.session.go(place)
            self.session.toggle_pin(place)

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        lines = [" " * MARGIN + "".join(piece.text for piece in line.pieces) for line in self._transcript.flow.lines]
        chosen = selection.extract("\n".join(lines))
        return "\n".join(line.removeprefix(" " * MARGIN) for line in chosen.split("\n")), "\n"

    def selection_updated(self, selection: Selection | None) -> None:  # noqa: ARG002
        self._strips.clear()
        self.refresh()
