"""Compare: two traces side by side, how alike they are, and what differs in words."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import ClassVar, cast

from rich.text import Text
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widget import Widget

from geomcli.display import printable
from geomcli.errors import GeomError
from geomcli.projection import fit
from geomcli.store_queries import trace_points
from geomcli.tui import clipboard
from geomcli.tui.actions import pane_bindings
from geomcli.tui.comparing import NAMES, A, B, Comparing, next_run
from geomcli.tui.panes.base import Pane
from geomcli.tui.session import Changed, Place
from geomcli.tui.turn import Turn
from geomcli.tui.widgets.aligned import Aligned, AlignedHead
from geomcli.tui.widgets.comparison_texts import ComparisonHead, Report, title_of
from geomcli.tui.widgets.picker import Choice, Picker
from geomcli.tui.widgets.text import SessionText

_FEWEST = 3  # different traces that axes are worth fitting on
_PARTS = ("-both", "-tokens", "-report")


class Invitation(SessionText):
    """In place of a comparison: what to choose, or why these two cannot be compared."""

    WATCHES = Changed.VIEW | Changed.TURNS | Changed.STATE

    def __init__(self, comparing: Comparing, *, id: str) -> None:  # noqa: A002
        super().__init__(comparing.session, id=id)
        self.comparing = comparing

    def lines(self) -> list[Text]:
        paint, comparing = self.paint, self.comparing
        plain, sides = paint.fore("foreground"), comparing.sides()
        offers = [("side.a", "choose A: a trace of this session or of the store")]
        if comparing.error is not None:
            said = ["These two cannot be compared.", comparing.error.message]
            said += [f"Try: {comparing.error.mend}"] if comparing.error.mend else []
            offers = [("side.a", "choose another A"), ("side.b", "choose another B")]
        elif self.session.reading:
            return [Text(f"Reading {printable(self.session.reading)} …", paint.fore("primary", bold=True))]
        elif len(sides) == 2:
            return [Text("Comparing …", paint.fore("primary", bold=True))]
        elif sides:
            said = ["What shall this trace be compared with?", f"A is {sides[A].id}: {title_of(sides[A])}"]
            offers = [("side.b", "choose B: a trace of this session or of the store"), ("side.a", "choose another A")]
        else:
            said = ["Two traces side by side: where their texts part, how alike their attention is."]
        head = paint.fore("error" if comparing.error is not None else "primary", bold=True)
        lines = [Text(said[0], head), Text(""), *[Text(line, plain) for line in said[1:]]]
        lines += [Text("")] * bool(said[1:])
        app = cast(ComparePane, self.screen).geom
        if "manifold" in app.MODES:
            offers.append(("mode.manifold", "choose on the map: c on a point"))
        for name, what in offers:
            key = Text().append(f"{app.key_of(name):>6}  ", paint.fore("accent", bold=True))
            lines.append(key.append(what, paint.fore("muted")))
        return [*lines, Text(""), Text("geom tui a.jsonl b.jsonl opens two files here.", paint.fore("muted"))]

    def render(self) -> Text:
        text = super().render()
        text.no_wrap = False
        return text


class ComparePane(Pane):
    """Sides and similarity above; aligned tokens beside a report of what differs."""

    MODE = "compare"
    BINDINGS: ClassVar[list[BindingType]] = [*pane_bindings(MODE)]
    AUTO_FOCUS: ClassVar[str | None] = "Aligned"

    def body(self) -> Iterable[Widget]:
        self.comparing = Comparing(self.session)
        rows = Aligned(self.comparing, id="aligned")
        yield ComparisonHead(self.comparing, id="sides")
        yield Invitation(self.comparing, id="invitation")
        with Horizontal(id="comparison", classes="-both"):
            with Vertical(id="compare-left"):
                yield AlignedHead(self.comparing, rows, id="aligned-head")
                yield rows
            with VerticalScroll(id="report-scroll"):
                yield Report(self.comparing, id="report")

    @property
    def rows(self) -> Aligned:
        return self.query_one(Aligned)

    def session_changed(self, changed: Changed) -> None:
        if not self.is_mounted:
            # Its widgets are not all there yet; it is told again when it is shown.
            return
        if self.comparing.is_due:
            self.compare()
        super().session_changed(changed)
        if changed & Changed.VIEW:
            self.query_one(Report).refresh()

    def compare(self) -> None:
        """Compare what is chosen now."""
        if self.comparing.turns != self.comparing.sides():
            self.rows.cursor = 0
        self.comparing.begin()
        self.draw()
        self.run_worker(self._compare(), group="compare")

    async def _compare(self) -> None:
        await self.comparing.run()
        self.draw()

    def draw(self) -> None:
        """Show the comparison, or what to choose."""
        if not self.is_mounted or self.is_going:
            return
        some = self.comparing.result is not None
        self.query_one("#comparison").display = some
        self.query_one("#invitation").display = not some
        self.rows.renew()
        self.query_one(Report).renew()
        for name in ("#sides", "#invitation", "#aligned-head"):
            self.query_one(name).refresh()

    def on_cursor_rows_moved(self) -> None:
        self.query_one(AlignedHead).refresh()

    def on_aligned_head_chosen(self, event: AlignedHead.Chosen) -> None:
        self.rows.go(event.row)

    async def on_cursor_rows_opened(self) -> None:
        self.action_row_open()

    def _pick(self, side: int) -> None:
        sides = self.comparing.sides()
        side = min(side, len(sides))
        turns = [turn for turn in self.session.turns if turn.tokens]
        turns += [turn for turn in self.session.compared if turn not in turns]
        marks = {turn.id: name for name, turn in zip(NAMES, sides, strict=False)}
        title = f"{NAMES[side]}: which trace?"
        self.app.push_screen(Picker(title, turns, marks), lambda choice: self._picked(side, choice))

    def _picked(self, side: int, choice: Choice | None) -> None:
        if choice is not None:
            self.run_worker(self._choose(side, choice), group="compare")

    async def _choose(self, side: int, choice: Choice) -> None:
        if isinstance(choice, str):
            try:
                records = await self.geom.storage.records(choice)
                turn = await asyncio.to_thread(Turn, records, source=choice)
            except GeomError as error:
                self.notify(str(error), severity="error")
                return
            turn.saved = True
        else:
            turn = choice
        self.comparing.choose(side, turn)
        self.compare()

    def action_side_a(self) -> None:
        self._pick(A)

    def action_side_b(self) -> None:
        self._pick(B)

    def action_side_swap(self) -> None:
        if self.comparing.swap():
            self.compare()
        else:
            self.notify("There are no two traces to exchange.", timeout=2)

    def action_axes_toggle(self) -> None:
        """Between the four named axes and the principal components of the stored traces."""
        self.run_worker(self._other_axes(), group="axes", exclusive=True)

    async def _other_axes(self) -> None:
        if self.comparing.projection is not None:
            self.comparing.projection = None
        else:
            try:
                stored = self.geom.storage.path.exists()
                points = await self.geom.storage.call(lambda store: trace_points(store, "all")) if stored else None
            except GeomError as error:
                self.notify(str(error), severity="error")
                return
            projection = None if points is None else fit(points.fingerprints)
            if projection is None or projection.n < _FEWEST or not projection.deviations.any():
                self.notify(f"Axes are fitted on stored traces; there are not {_FEWEST} different ones yet.")
                return
            self.comparing.projection = projection
        self.compare()

    def action_row_next(self) -> None:
        self.rows.move(+1)

    def action_row_prev(self) -> None:
        self.rows.move(-1)

    def action_page_next(self) -> None:
        self.rows.move(self.rows.page)

    def action_page_prev(self) -> None:
        self.rows.move(-self.rows.page)

    def action_row_first(self) -> None:
        self.rows.go(0)

    def action_row_last(self) -> None:
        self.rows.go(self.rows.count - 1)

    def action_row_open(self) -> None:
        """Show A's token of this row in Chat."""
        row = self.rows.aligned
        if row is None or row.a is None:
            self.notify("A has no token in this row.", timeout=2)
            return
        turn = self.comparing.turns[A]
        if turn not in self.session.turns:
            self.geom.live.stop()
            self.session.show([list(turn.trace.records())], title=turn.id, saved=turn.saved)
            self.session.turns[0].path = turn.path
            number = 0
        else:
            number = self.session.turns.index(turn)
        self.session.go(Place(number, row.a))
        self.geom.switch_mode("chat")

    def action_difference_first(self) -> None:
        result = self.comparing.result
        if result is None or result.divergence is None:
            self.notify("The texts do not part.", timeout=2)
        else:
            self.rows.go(result.divergence.row)

    def action_difference_next(self) -> None:
        self._jump(zones=False, direction=+1)

    def action_difference_prev(self) -> None:
        self._jump(zones=False, direction=-1)

    def action_zone_next(self) -> None:
        self._jump(zones=True, direction=+1)

    def action_zone_prev(self) -> None:
        self._jump(zones=True, direction=-1)

    def _jump(self, *, zones: bool, direction: int) -> None:
        comparing = self.comparing
        flags = comparing.zones_differ if zones else comparing.texts_differ
        row = next_run(flags, self.rows.cursor, direction) if comparing.result is not None else None
        if row is None:
            what = "other zone" if zones else "other text"
            self.notify(f"There is no {what} {'below' if direction > 0 else 'above'}.", timeout=2)
        else:
            self.rows.go(row)

    def action_part_next(self) -> None:
        """Tokens and report, tokens only, report only; where there is little room one of the two."""
        columns = self.query_one("#comparison")
        shown = next(part for part in _PARTS if columns.has_class(part))
        following = _PARTS[(_PARTS.index(shown) + 1) % len(_PARTS)]
        if self.has_class("-narrow"):
            following = "-both" if shown == "-report" else "-report"
        columns.set_classes(following)

    def action_report_down(self) -> None:
        self.query_one("#report-scroll", VerticalScroll).scroll_relative(y=+5, animate=False)

    def action_report_up(self) -> None:
        self.query_one("#report-scroll", VerticalScroll).scroll_relative(y=-5, animate=False)

    async def action_copy_json(self) -> None:
        text = self.comparing.as_json()
        if text is None:
            self.notify("There is no comparison to copy yet.", severity="warning")
            return
        await clipboard.copy(self.geom, text, what="The comparison")

    async def action_copy_command(self) -> None:
        try:
            text = self.comparing.command(self.geom.live.settings.db)
        except GeomError as error:
            self.notify(str(error), severity="warning")
            return
        await clipboard.copy(self.geom, text, what="The command")


PANE = ComparePane
