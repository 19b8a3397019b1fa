"""The list from which a trace is chosen: this session's and the store's, searched while one types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, cast

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from geomcli.display import ZONE_GLYPHS, printable
from geomcli.errors import GeomError
from geomcli.store_queries import TraceListing, trace_list
from geomcli.tui.turn import Turn
from geomcli.tui.widgets.comparison_texts import title_of
from geomcli.tui.widgets.point_details import created
from geomcli.tui.widgets.rows import CursorRows
from geomcli.zones import UNKNOWN

if TYPE_CHECKING:
    from geomcli.tui.app import GeomApp

MOST = 500

Choice = Turn | str  # of this session, or the id of a stored trace


class Choices(CursorRows):
    """The traces that fit what was typed, those of the session first."""

    def __init__(self, marks: dict[str, str]) -> None:
        super().__init__(id="choices")
        self.turns: Sequence[Turn] = ()
        self.listed: Sequence[TraceListing] = ()
        self._marks = marks

    def renew(self, turns: Sequence[Turn], listed: Sequence[TraceListing]) -> None:
        """Show these."""
        self.turns, self.listed = turns, listed
        self.show(len(turns) + len(listed))

    @property
    def chosen(self) -> Choice | None:
        """What the cursor is on."""
        if self.cursor < len(self.turns):
            return self.turns[self.cursor]
        place = self.cursor - len(self.turns)
        return self.listed[place].trace_id if place < len(self.listed) else None

    def row(self, number: int, width: int) -> Text:
        if number < len(self.turns):
            turn = self.turns[number]
            shares = turn.zone_shares()
            zone = shares[0][0] if shares else UNKNOWN
            cells = (turn.id, "this session", zone, len(turn.tokens), bool(shares), turn.finished, title_of(turn))
            return self._row(*cells, model=turn.model, width=width)
        one = self.listed[number - len(self.turns)]
        tokens = one.steps if one.tokens is None else one.tokens
        cells = (
            one.trace_id, created(one.created), one.dominant_zone, tokens, one.steps > 0, one.complete,
            one.title or "(no question)",
        )  # fmt: skip
        return self._row(*cells, model=one.model, width=width)

    def _row(
        self, trace_id: str, when: str, zone: str, tokens: int, captured: bool, complete: bool, title: str, *,
        model: str, width: int,
    ) -> Text:  # fmt: skip
        paint, muted = self.paint, self.paint.fore("muted")
        text = Text().append(f" {self._marks.get(trace_id, ' ')} ", paint.fore("accent", bold=True))
        text.append(f"{when:<17}", muted)
        text.append(f"{ZONE_GLYPHS.get(zone, '·')} ", paint.zone_mark(zone) if captured else muted)
        text.append(f"{tokens:>5} tok  ", muted)
        if not captured:
            text.append("no fingerprint  ", paint.fore("warning"))
        elif not complete:
            text.append("cut off  ", paint.fore("warning"))
        right = Text("", muted)
        if width >= 90:
            right.append(f"  {printable(model)}")
            right.truncate(20, overflow="ellipsis", pad=True)
        right.append(f"  {trace_id}")
        middle = Text(printable(title), paint.fore("foreground" if captured else "muted"))
        middle.truncate(max(8, width - text.cell_len - right.cell_len - 1), overflow="ellipsis", pad=True)
        return text.append_text(middle).append_text(right)


class Picker(ModalScreen["Choice | None"]):
    """Dismissed with the trace that was chosen, None when none was."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape", "dismiss", "close"),
        ("down,ctrl+n", "move(1)", "next"),
        ("up", "move(-1)", "before"),
        ("pagedown", "page(1)", "page on"),
        ("pageup", "page(-1)", "page back"),
    ]

    def __init__(self, title: str, turns: Sequence[Turn], marks: dict[str, str]) -> None:
        super().__init__()
        self._title, self._turns, self._marks = title, turns, marks
        self._listed: str | None = None  # the words whose traces are listed
        self._entered = False  # enter was pressed before the traces of the words were listed

    def compose(self) -> ComposeResult:
        with Vertical(id="picker"):
            yield Static(self._title, id="picker-title", markup=False)
            with Horizontal(id="picker-search"):
                yield Static("/", id="picker-mark")
                yield Input(
                    placeholder="words of the question, the model, a zone, an id", id="picker-input", compact=True
                )
            yield Choices(self._marks)
            yield Static("", id="picker-said", markup=False)

    @property
    def choices(self) -> Choices:
        return self.query_one(Choices)

    def on_mount(self) -> None:
        self.set_focus(self.query_one(Input))
        self._search("")

    def on_input_changed(self, event: Input.Changed) -> None:
        self._entered = False
        self._search(event.value)

    def _search(self, words: str) -> None:
        self.run_worker(self._list(words), group="picker")

    async def _list(self, words: str) -> None:
        storage, said = cast("GeomApp", self.app).storage, ""
        listed: list[TraceListing] = []
        try:
            if storage.path.exists():
                listed = await storage.call(lambda store: trace_list(store, words, limit=MOST))
        except GeomError as error:
            said = str(error)
        if words != self.query_one(Input).value:
            return
        shown = {turn.id for turn in self._turns}
        turns = [turn for turn in self._turns if _fits(turn, words)]
        self.choices.renew(turns, [one for one in listed if one.trace_id not in shown])
        self._listed = words
        count = self.choices.count
        if not said and not count:
            said = "No trace has these words." if words.strip() else (
                "There is no trace yet: ask something in Chat, or geom run 'Why is the sky blue?'"
            )  # fmt: skip
        elif not said:
            most = f", the newest {MOST}; words find older ones" if len(listed) == MOST else ""
            said = f"{count} trace{'s' if count != 1 else ''}{most}    ↑ ↓ move   enter chooses   esc closes"
        self.query_one("#picker-said", Static).update(said)
        if self._entered:
            self._choose()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        # Not what is listed for the words before: who types fast means these.
        self._entered = self._listed != event.value
        if not self._entered:
            self._choose()

    def on_cursor_rows_opened(self) -> None:
        self._choose()

    def _choose(self) -> None:
        chosen = self.choices.chosen
        if chosen is not None:
            self.dismiss(chosen)

    def action_move(self, delta: int) -> None:
        self.choices.move(delta)

    def action_page(self, direction: int) -> None:
        self.choices.move(direction * self.choices.page)


def _fits(turn: Turn, words: str) -> bool:
    shares = turn.zone_shares()
    text = f"{turn.id} {turn.model} {title_of(turn)} {shares[0][0] if shares else ''}".lower()
    return all(word in text for word in words.lower().split())
