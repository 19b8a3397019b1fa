"""The tokens of all turns, one a row, by segment; the cursor of the session is the chosen row."""

from __future__ import annotations

from bisect import bisect_left
from enum import Enum
from typing import Any

from rich.style import Style
from rich.text import Text

from geomcli.display import ZONE_GLYPHS, zone_label
from geomcli.tui import cache
from geomcli.tui.session import Changed, Overlay, Place, Session
from geomcli.tui.turn import Token
from geomcli.tui.widgets.colouring import LEFT, overlay_value, strongest_influence, token_style
from geomcli.tui.widgets.layer_lines import short
from geomcli.tui.widgets.lens import token_name
from geomcli.tui.widgets.rows import Rows

_ROOMY = 72  # cells from which a row has room for all of a token's numbers


class Segment(Enum):
    """Which tokens are listed."""

    ALL = "all"
    THINK = "think"
    OUTPUT = "output"

    @property
    def next(self) -> Segment:
        members = list(Segment)
        return members[(members.index(self) + 1) % len(members)]


class TokenList(Rows):
    """Rows are places, ascending; a place with token -1 is the heading of its turn. Grows with the turns."""

    EMPTY = " No token yet. Ask something in Chat."

    def __init__(self, session: Session, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.session = session
        self.segment = Segment.ALL
        self.places: list[Place] = []
        self._taken: list[int] = []  # tokens of each turn that are listed or left out
        self._turns: list[object] = []
        self._strongest = 1.0
        self._marks: set[tuple[str, Place]] = set()
        self._cache: list[Any] = []  # by which rows were drawn as left

    @property
    def count(self) -> int:
        return len(self.places)

    def session_changed(self, changed: Changed) -> None:
        """List what is new; follow the cursor."""
        session, before = self.session, self.count
        if changed & Changed.TURNS and self._turns != session.turns[: len(self._turns)]:
            self.rebuild()
        elif changed & (Changed.TURNS | Changed.TOKENS):
            self._extend()
        if session.overlay is Overlay.INFLUENCE and changed & (Changed.TOKENS | Changed.VIEW | Changed.TURNS):
            self._strongest = strongest_influence(session)
        if changed & (Changed.TURNS | Changed.VIEW) or (
            session.overlay is Overlay.INFLUENCE and changed & Changed.TOKENS
        ):
            self.forget()
        elif changed & Changed.TOKENS:
            # The newest token may have got its numbers, its turn's heading another count.
            self.forget({before - 1, self.index_of(Place(len(session.turns) - 1, -1)) or 0})
        if changed & Changed.CURSOR:
            kinds = (("cursor", (session.cursor,)), ("pin", session.pins), ("found", session.found))
            marks = {(kind, place) for kind, places in kinds for place in places if place is not None}
            # A row that loses one mark of two is drawn anew, too.
            self.forget(row for _, place in marks ^ self._marks if (row := self.index_of(place)) is not None)
            self._marks = marks
        if changed & (Changed.TURNS | Changed.TOKENS | Changed.CURSOR | Changed.VIEW):
            if (now := cache.state(session)) != self._cache:
                self._cache = now
                self.forget()
            self.fit()
        if changed & (Changed.TURNS | Changed.CURSOR) or (changed & Changed.TOKENS and session.following):
            self.show_cursor()

    def show(self, segment: Segment) -> None:
        """List another segment; the cursor goes to the nearest token of it."""
        self.segment = segment
        self.rebuild()
        self.forget()
        self.fit()
        cursor = self.session.cursor
        if cursor is not None and self.index_of(cursor) is None and (near := self.nearest(cursor)) is not None:
            self.session.go(near)
        self.show_cursor()

    def rebuild(self) -> None:
        """List everything anew."""
        self.places, self._taken, self._turns = [], [], []
        self._extend()

    def _extend(self) -> None:
        for number, turn in enumerate(self.session.turns):
            if number == len(self._taken):
                self._taken.append(0)
                self._turns.append(turn)
                self.places.append(Place(number, -1))
            elif number < len(self._taken) - 1 and self._taken[number] == len(turn.tokens):
                continue
            self.places += [
                Place(number, token.index)
                for token in turn.tokens[self._taken[number] :]
                if self.segment is Segment.ALL or token.phase == self.segment.value
            ]
            self._taken[number] = len(turn.tokens)

    def index_of(self, place: Place) -> int | None:
        """The row of a place; None where it is not listed."""
        row = bisect_left(self.places, place)
        return row if row < len(self.places) and self.places[row] == place else None

    def nearest(self, place: Place) -> Place | None:
        """The listed token at a place or before it, else the next one behind it."""
        row = bisect_left(self.places, place)
        before = [p for p in self.places[max(0, row - 1) : row + 1] if p.token >= 0 and p <= place]
        after = next((p for p in self.places[row:] if p.token >= 0), None)
        return before[-1] if before else after or next((p for p in reversed(self.places) if p.token >= 0), None)

    def move(self, delta: int) -> None:
        """Move the cursor by listed tokens."""
        cursor = self.session.cursor
        if cursor is None:
            return
        row = bisect_left(self.places, cursor)
        listed = row < self.count and self.places[row] == cursor
        left, step = abs(delta), 1 if delta > 0 else -1
        # Where the cursor's token is not listed, the row that it would have counts as one step on.
        at = row if listed else row - (step > 0)
        found: Place | None = None
        while left and 0 <= (at := at + step) < self.count:
            if self.places[at].token >= 0:
                found, left = self.places[at], left - 1
        if found is not None:
            self.session.go(found)

    def show_cursor(self) -> None:
        cursor = self.session.cursor
        if cursor is not None and (row := self.index_of(cursor)) is not None and self.size.height:
            self.show_row(row)

    def row(self, number: int, width: int) -> Text:
        place = self.places[number]
        if place.token < 0:
            return self._heading(place.turn, width)
        paint, session = self.paint, self.session
        token = session.turns[place.turn].tokens[place.token]
        here, pinned = place == session.cursor, place in session.pins
        line = Text().append("▶" if here else "●" if pinned else " ", paint.fore("accent", bold=True))
        line.append(f"{token.index:>5} ", paint.fore("foreground" if here else "muted"))
        name = Text(token_name(token))
        roomy = width >= _ROOMY
        name.truncate(max(4, min(30, width - 58) if roomy else width - 16), overflow="ellipsis", pad=True)
        style = token_style(session, place, paint, self._strongest)
        if token.phase == "think":
            style += Style(italic=True)
        if place in session.found:
            style += Style(underline2=True)
        line.append(name.plain, style + Style(bold=here or None))
        if cache.has_left(session, place):
            line.stylize(LEFT, len(line) - len(name), len(line) - len(name) + len(name.plain.rstrip()))
        if roomy:
            return self._marked(self._measured(line, token), width, here)
        value = overlay_value(session, place)
        glyph = ZONE_GLYPHS.get(token.zone, "·") if token.captured else " "
        line.append(f" {glyph} ", paint.zone_mark(token.zone))
        line.append(f"{short(value)} ", paint.fore("muted" if value is None else "foreground"))
        return self._marked(line, width, here)

    def _measured(self, line: Text, token: Token) -> Text:
        """Zone by name, confidence, entropy and drift, where there is room for them."""
        paint = self.paint
        if not token.captured:
            flags = ", ".join(token.step.get("flags") or ())
            return line.append(f"  {flags or 'not captured'}", paint.fore("muted"))
        line.append(f"  {ZONE_GLYPHS.get(token.zone, '·')} {zone_label(token.zone):<17}", paint.zone_mark(token.zone))
        for name, value in (("", token.confidence), ("entropy", token.entropy), ("drift", token.drift)):
            line.append(f" {name}" if name else "", paint.fore("muted"))
            line.append(f" {short(value)}", paint.fore("foreground"))
        return line

    def _marked(self, line: Text, width: int, here: bool) -> Text:
        if here:
            line.truncate(width, overflow="ellipsis", pad=True)
            plain = self.paint.plain or self.paint.ansi
            line.stylize(Style(reverse=True) if plain else Style(bgcolor=self.paint.colour("panel")))
        return line

    def _heading(self, number: int, width: int) -> Text:
        turn = self.session.turns[number]
        kind = "" if self.segment is Segment.ALL else f"  {self.segment.value} only"
        line = Text().append(f"answer {number + 1}", self.paint.fore("primary", bold=True))
        line.append(f"  {len(turn.tokens)} tokens{kind}", self.paint.fore("muted"))
        line.truncate(width, overflow="ellipsis")
        return line

    def clicked(self, number: int, *, again: bool) -> None:  # noqa: ARG002
        place = self.places[number]
        if place.token >= 0:
            self.session.stop_following()
            self.session.go(place)

    def scrolled_by_user(self, *, up: bool) -> None:
        if up:
            self.session.stop_following()
        elif self.scroll_y >= self.max_scroll_y and not self.session.following and self.segment is Segment.ALL:
            self.session.follow_end()
