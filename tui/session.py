"""What is looked at: the turns of one chat, whichever way they came, and where one looks.

Live answers, stored traces, files and the demo are all `Turn`s of the same `Session`. Panes read the session and are
told by `Changed` what is new; they change it only through its methods. Knows no widget.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum, Flag, auto
from typing import Any, NamedTuple

from geomcli.schema import Message, Record
from geomcli.tui.ask import Ask
from geomcli.tui.playback import Player
from geomcli.tui.turn import Token, Turn

MAX_PINS = 3


class Changed(Flag):
    """What a pane has to draw again."""

    NOTHING = 0
    TURNS = auto()  # other turns: everything
    TOKENS = auto()  # the last turn grew or ended
    CURSOR = auto()  # cursor, hover, pins, found tokens
    STATE = auto()  # connection, run, counters, settings, freeze
    VIEW = auto()  # overlay, layer, sinks, de-rotated
    ALL = TURNS | TOKENS | CURSOR | STATE | VIEW


class Overlay(Enum):
    """By what tokens are coloured."""

    ZONE = "zone"
    ENTROPY = "entropy"
    DRIFT = "drift"
    INFLUENCE = "influence"
    OFF = "off"

    @property
    def next(self) -> Overlay:
        members = list(Overlay)
        return members[(members.index(self) + 1) % len(members)]


class Place(NamedTuple):
    """A token of the session: index of its turn, index in that turn."""

    turn: int
    token: int


class Session:
    """Turns, cursor, pins, overlay, freeze.

    `turns`: oldest first. `cursor`: the Place looked at, None before there is a token. `following`: whether the cursor
    stays on the newest token. `hover`: the token under the mouse. `named`: the token whose
    row in the lens is under the mouse. `pins`: at most MAX_PINS places. `compared`: traces
    opened beside this chat for comparison. `layer`: captured layer whose links are shown, None = the entry's own.
    `ask`: what the next question is asked with. `title`: what was opened, "" for a live chat. `reading`: what is read
    on while its beginning is shown, "" when nothing is.
    """

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.compared: list[Turn] = []
        self.cursor: Place | None = None
        self.hover: Place | None = None
        self.named: Place | None = None
        self.pins: list[Place] = []
        self.found: list[Place] = []
        self.overlay = Overlay.ZONE
        self.following = True
        self.frozen = False
        self.show_sinks = False
        self.derotated = False
        self.layer: int | None = None
        self.title = self.reading = ""
        self.ask = Ask()
        self.player: Player | None = None
        self.on_change: Callable[[], None] = lambda: None
        self._back: list[Place] = []
        self._pending = Changed.ALL

    def touch(self, what: Changed) -> None:
        """Note a change. What the user caused is drawn at once, what a stream brought at the next flush."""
        self._pending |= what
        if what & (Changed.CURSOR | Changed.VIEW | Changed.STATE):
            self.on_change()

    def take_changes(self) -> Changed:
        """What changed since the last call; advances a replay that is being played."""
        if self.player is not None and self.player.advance():
            self.player = None
            self._pending |= Changed.STATE
        taken, self._pending = self._pending, Changed.NOTHING
        return taken

    @property
    def turn(self) -> Turn | None:
        """The turn under the cursor, else the last one; what single-trace panes show."""
        if self.cursor is not None and self.cursor.turn < len(self.turns):
            return self.turns[self.cursor.turn]
        return self.turns[-1] if self.turns else None

    @property
    def token(self) -> Token | None:
        """The token under the cursor."""
        return self.token_of(self.cursor)

    def token_of(self, place: Place | None) -> Token | None:
        if place is None or place.turn >= len(self.turns):
            return None
        tokens = self.turns[place.turn].tokens
        return tokens[place.token] if place.token < len(tokens) else None

    def place_of(self, turn: int, position: int) -> Place | None:
        """The token of the session at an absolute position of a turn; a place with a token below 0 is in its prompt.

        What a later turn sees of an earlier one is that turn's own token, where both prompts are the same so far.
        """
        here = self.turns[turn]
        if here.prompt_length is None:
            return None
        for number in range(turn):
            earlier = self.turns[number]
            if position < earlier.end and here.continues(earlier):
                return Place(number, position - (earlier.prompt_length or 0))
        return Place(turn, position - here.prompt_length) if position < here.end else None

    def clear(self) -> None:
        """Begin anew: no turns, no pins."""
        self.turns, self.pins, self.found, self._back = [], [], [], []
        self.cursor = self.hover = self.named = self.player = self.layer = None
        self.following, self.frozen, self.title, self.reading = True, False, "", ""
        self.touch(Changed.ALL)

    def show(self, traces: Sequence[Sequence[Record]], *, title: str, saved: bool = False) -> None:
        """Show these traces at once, in place of what is there."""
        self.clear()
        self.title = title
        self.turns = [Turn(records, source=title) for records in traces]
        for turn in self.turns:
            turn.saved = saved
        self._cursor_to_end()

    def extend(self, records: Sequence[Record], *, saved: bool) -> None:
        """More of what is shown; a header begins another turn. Nothing is drawn before `grown`.

        `saved`: the store has these traces.
        """
        start = 0
        for end in range(1, len(records) + 1):
            if end < len(records) and records[end]["record_type"] != "header":
                continue
            if records[start]["record_type"] == "header":
                turn = Turn(source=self.title)
                turn.saved = saved
                self.turns.append(turn)
                self._pending |= Changed.TURNS
            self.turns[-1].take(records[start:end], hold=self.frozen)
            start = end

    def grown(self) -> None:
        """Draw what `extend` brought."""
        self._pending |= Changed.TOKENS
        if self.following and not self.frozen:
            self._cursor_to_end()

    def compare(self, one: Turn, other: Turn) -> None:
        """Put two traces beside each other."""
        self.compared = [one, other]
        self.touch(Changed.TURNS)

    def play(self, traces: Sequence[Sequence[Record]], *, title: str, rate: float) -> None:
        """Play these traces as if they were being written, `rate` tokens a second."""
        self.clear()
        self.title = title
        self.player = Player(traces, self.begin, self.feed, rate=rate)

    def begin(self, source: str = "") -> Turn:
        """A new turn at the end; it is followed."""
        self.thaw()
        turn = Turn(source=source or self.title)
        self.turns.append(turn)
        self.following = True
        self.touch(Changed.TURNS)
        return turn

    def feed(self, turn: Turn, records: Sequence[Record]) -> None:
        """Take records of a turn that grows."""
        turn.take(records, hold=self.frozen)
        self._pending |= Changed.TOKENS
        if self.following and not self.frozen:
            self._cursor_to_end()

    def conversation(self) -> list[Message]:
        """The messages that go before the next question: those of the last turn and its answer, if it has one."""
        if not self.turns:
            return []
        last = self.turns[-1]
        messages: list[Message] = [{"role": str(m["role"]), "content": str(m["content"])} for m in last.prompt]
        if answer := last.answer:
            return [*messages, {"role": "assistant", "content": answer}]
        while messages and messages[-1]["role"] == "user":
            messages.pop()
        return messages

    @property
    def held(self) -> int:
        """Tokens that arrived while the view was frozen."""
        return self.turns[-1].held if self.turns else 0

    def freeze(self) -> None:
        """Hold what is shown; capture goes on."""
        self.frozen = True
        self.touch(Changed.STATE)

    def thaw(self) -> None:
        """Show what arrived meanwhile."""
        if self.frozen:
            self.frozen = False
            for turn in self.turns:
                turn.release()
            if self.following:
                self._cursor_to_end()
            self.touch(Changed.TOKENS | Changed.STATE)

    def go(self, place: Place, *, remember: bool = False) -> None:
        """Put the cursor on a token; with `remember`, `back` returns to where it was."""
        if self.token_of(place) is None:
            return
        if remember and self.cursor is not None:
            self._back.append(self.cursor)
        self.cursor = place
        self.following = place == self._end()
        self.touch(Changed.CURSOR)

    def move(self, delta: int) -> None:
        """Move the cursor by tokens, into earlier and later turns."""
        place = self.cursor or self._end()
        if place is None:
            return
        turn, token = place.turn, place.token + delta
        while token < 0 and turn > 0:
            turn -= 1
            token += len(self.turns[turn].tokens)
        while token >= len(self.turns[turn].tokens) and turn + 1 < len(self.turns) and self.turns[turn + 1].tokens:
            token -= len(self.turns[turn].tokens)
            turn += 1
        self.go(Place(turn, max(0, min(token, len(self.turns[turn].tokens) - 1))))

    def move_segment(self, direction: int) -> None:
        """Move the cursor to the start of the next (+1) or of this or the previous (-1) phase."""
        starts = [Place(n, first) for n, turn in enumerate(self.turns) for _, first, _ in turn.phases()]
        here = self.cursor or self._end()
        if here is None:
            return
        later = [place for place in starts if place > here]
        earlier = [place for place in starts if place < here]
        if direction > 0:
            self.go(later[0]) if later else self.follow_end()
        elif earlier:
            self.go(earlier[-1])

    def follow_end(self) -> None:
        """Put the cursor on the newest token and keep it there."""
        self.following = True
        self._cursor_to_end()

    def stop_following(self) -> None:
        """Leave the cursor and the view where they are."""
        self.following = False

    def follow_link(self) -> bool:
        """Jump to the output token that the token under the cursor looked at most; False where there is none."""
        token, turn = self.token, self.turn
        if token is None or turn is None or self.cursor is None:
            return False
        for link in token.links(self.layer):
            place = self.place_of(self.cursor.turn, link.position)
            if place is not None and place != self.cursor and place.token >= 0 and not turn.is_sink(link.position):
                self.go(place, remember=True)
                return True
        return False

    def back(self) -> bool:
        """Return to where the last jump began."""
        if not self._back:
            return False
        self.go(self._back.pop())
        return True

    def point(self, place: Place | None) -> None:
        """The token under the mouse, None when there is none."""
        if place != self.hover:
            self.hover = place
            self.touch(Changed.CURSOR)

    def name(self, place: Place | None) -> None:
        """The token that a row under the mouse is about, None when there is none."""
        if place != self.named:
            self.named = place
            self.touch(Changed.CURSOR)

    def toggle_pin(self, place: Place | None = None) -> None:
        """Pin a token (that under the cursor by default), or take its pin away; the oldest of three pins goes first."""
        place = place or self.cursor
        if place is None or self.token_of(place) is None:
            return
        if place in self.pins:
            self.pins.remove(place)
        else:
            self.pins = [*self.pins, place][-MAX_PINS:]
        self.touch(Changed.CURSOR)

    def _end(self) -> Place | None:
        for n in range(len(self.turns) - 1, -1, -1):
            if self.turns[n].tokens:
                return Place(n, len(self.turns[n].tokens) - 1)
        return None

    def _cursor_to_end(self) -> None:
        self.cursor = self._end()
        self._pending |= Changed.CURSOR

    def apply(self, **values: Any) -> None:
        """Change what the next question is asked with: fields of `Ask`, like temperature=0.6."""
        self.ask = self.ask.changed(**values)
        self.touch(Changed.STATE)

    def set_overlay(self, overlay: Overlay) -> None:
        self.overlay = overlay
        self.touch(Changed.VIEW)

    def set_layer(self, layer: int | None) -> None:
        self.layer = layer
        self.touch(Changed.VIEW)

    def toggle_sinks(self) -> None:
        self.show_sinks = not self.show_sinks
        self.touch(Changed.VIEW)

    def toggle_derotated(self) -> None:
        self.derotated = not self.derotated
        self.touch(Changed.VIEW)

    def set_found(self, places: list[Place]) -> None:
        """Mark the tokens that a search found."""
        self.found = places
        self.touch(Changed.CURSOR)
