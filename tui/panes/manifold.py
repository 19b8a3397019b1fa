"""Manifold: fingerprints of this session's tokens, or of stored traces, on one plane."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import ClassVar, cast

from rich.text import Text
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.widget import Widget

from geomcli.errors import GeomError
from geomcli.store import Store
from geomcli.store_queries import Scope, trace_points
from geomcli.tui import clipboard
from geomcli.tui.actions import pane_bindings
from geomcli.tui.cloud import Cloud, empty, of_traces
from geomcli.tui.manifold import SCOPE_WORDS, Manifold
from geomcli.tui.panes.base import Pane
from geomcli.tui.session import Changed, Place
from geomcli.tui.turn import Turn
from geomcli.tui.widgets.manifold_texts import (
    HorizontalAxis,
    Legend,
    ManifoldText,
    ScopeBar,
    VerticalAxis,
)
from geomcli.tui.widgets.point_details import PointDetails
from geomcli.tui.widgets.scatter import Scatter


class Nothing(ManifoldText):
    """In place of points: why there are none, and what to do."""

    def lines(self) -> list[Text]:
        app, paint, manifold = cast(ManifoldPane, self.screen).geom, self.paint, self.manifold
        strong, plain, key = paint.fore("primary", bold=True), paint.fore("foreground"), paint.fore("accent", bold=True)
        offers = [("scope.next", "another scope: session, recent, saved, all")]
        if manifold.loading:
            return [Text("Reading the store …", strong)]
        if manifold.error:
            said = ["The store cannot be read.", manifold.error]
        elif manifold.of_session:
            said = ["No token of this session has a fingerprint yet.", "Ask something in Chat, or play the demo there."]
        else:
            said = [
                f"No fingerprints in {SCOPE_WORDS[manifold.scope]}.",
                "Answers are kept as they are written: ask something in Chat, or run geom run 'Why is the sky blue?'",
            ]
        offers.append(("mode.chat", "Chat"))
        lines = [Text(said[0], strong), Text(""), *[Text(line, plain) for line in said[1:]], Text("")]
        return lines + [
            Text().append(f"{app.key_of(name):>6}  ", key).append(what, paint.fore("muted")) for name, what in offers
        ]

    def render(self) -> Text:
        text = super().render()
        text.no_wrap = False
        return text


class ManifoldPane(Pane):
    """A scatter of points with a cursor, and the point under it."""

    MODE = "manifold"
    BINDINGS: ClassVar[list[BindingType]] = [*pane_bindings(MODE)]
    AUTO_FOCUS: ClassVar[str | None] = "Scatter"

    _begun = False
    _on_map = False  # when it was last drawn
    _saved = -1  # turns that were in the store when it was last read

    def body(self) -> Iterable[Widget]:
        self.manifold = Manifold(self.session, self.geom.learned)
        yield ScopeBar(self.manifold, id="scopes")
        with Horizontal(id="manifold-columns"):
            with Vertical(id="manifold-left"):
                yield Nothing(self.manifold, id="nothing")
                yield VerticalAxis(self.manifold, up=True)
                yield Scatter(id="scatter")
                yield VerticalAxis(self.manifold, up=False)
                yield HorizontalAxis(self.manifold, id="axis-across")
                yield Legend(self.manifold, id="legend")
            yield PointDetails(self.manifold, id="point")

    @property
    def scatter(self) -> Scatter:
        return self.query_one(Scatter)

    def on_screen_resume(self) -> None:
        if self.is_mounted and not self._begun:
            self._begun = True
            captured = any(token.captured for turn in self.session.turns for token in turn.tokens)
            self.choose_scope("session" if captured else "recent")
        super().on_screen_resume()

    def session_changed(self, changed: Changed) -> None:
        manifold = self.manifold
        self._hear_of_moves()
        if manifold.of_session:
            if changed & Changed.TURNS:
                manifold.chosen = None
                manifold.forget()
            if changed & (Changed.TURNS | Changed.TOKENS):
                manifold.take_tokens()
        elif changed & (Changed.STATE | Changed.TURNS) and self._count_saved() != self._saved:
            self._read_store()
        if changed & (Changed.TURNS | Changed.TOKENS | Changed.VIEW) or (changed & Changed.CURSOR and self._follows()):
            self.draw()
        super().session_changed(changed)

    def _hear_of_moves(self) -> None:
        """A move that was made before something is drawn anew may not have been heard of yet."""
        cursor = self.scatter.cursor
        if cursor is not None and cursor < len(self.manifold.cloud):
            self.manifold.chosen = cursor

    def _follows(self) -> bool:
        """The marked place is the session's cursor."""
        return self.manifold.of_session and bool(len(self.manifold.cloud))

    def _count_saved(self) -> int:
        return sum(turn.saved for turn in self.session.turns)

    def choose_scope(self, scope: Scope) -> None:
        """Show other points."""
        self.manifold.choose_scope(scope)
        self.scatter.show_all()
        if not self.manifold.of_session:
            self._read_store()
        self.draw()

    def _read_store(self) -> None:
        self._saved = self._count_saved()
        self.run_worker(self._read(self.manifold.scope), group="manifold")

    async def _read(self, scope: Scope) -> None:
        def points(store: Store) -> Cloud:
            return of_traces(trace_points(store, scope))

        storage, manifold = self.geom.storage, self.manifold
        cloud, error = empty(), ""
        try:
            if storage.path.exists():
                cloud = await storage.call(points)
        except GeomError as problem:
            error = str(problem)
        if scope != manifold.scope:
            return
        if error:
            manifold.fail(error)
        else:
            manifold.take(cloud)
        self.draw()

    def draw(self) -> None:
        """Show the points as they are now."""
        if not self.is_mounted or self.is_going:
            return
        manifold, some = self.manifold, bool(len(self.manifold.cloud))
        self._place()
        self.query_one("#nothing").display = not some
        for name in ("#scatter", "#axis-up", "#axis-down", "#axis-across", "#legend", "#point"):
            self.query_one(name).display = some and (name not in ("#axis-up", "#axis-down") or not manifold.on_map)
        other_plane, self._on_map = manifold.on_map != self._on_map, manifold.on_map
        self.set_class(self._on_map, "-learned")
        of, kinds = manifold.kinds()
        self.scatter.show(
            manifold.xy(), of, kinds,
            cursor=manifold.chosen, values=manifold.values(), here=manifold.here(), labels=manifold.cluster_labels(),
            backdrop=manifold.backdrop(),
        )  # fmt: skip
        if other_plane:
            self.scatter.show_all()
        self._describe()
        if self.is_current and manifold.clusters_due():
            self.run_worker(self._look_for_clusters(), group="clusters")

    def _place(self) -> None:
        """Give the points that came since their places on the learned map: a few at once, many beside the app."""
        manifold, n = self.manifold, len(self.manifold.cloud)
        if not manifold.mapping.due(n):
            return
        fingerprints, models = manifold.cloud.fingerprints, manifold.models(len(manifold.mapping.xy))
        if manifold.mapping.is_quick(n):
            manifold.mapping.place(fingerprints, models)
        else:
            self.run_worker(self._place_beside(manifold.mapping.place_beside(fingerprints, models)), group="places")

    async def _place_beside(self, placing: Awaitable[None]) -> None:
        await placing
        if self.is_current:
            self._hear_of_moves()
            self.draw()

    async def _look_for_clusters(self) -> None:
        await self.manifold.grouping.look(self.manifold.cloud)
        if self.is_current:  # else it is drawn when it is shown again, from the session as it is then
            self._hear_of_moves()
            self.draw()

    def _describe(self) -> None:
        details, members = self.query_one(PointDetails), self.scatter.here_too
        chosen = self.manifold.chosen
        details.in_cell = (members.index(chosen) + 1, len(members)) if chosen in members else (1, 1)
        for text in self.query(ManifoldText):
            text.renew()

    def on_scatter_moved(self) -> None:
        if self.scatter.cursor is not None:
            self.manifold.chosen = self.scatter.cursor
        self._describe()

    def on_scatter_opened(self) -> None:
        self.action_point_open()

    def on_scope_bar_chosen(self, event: ScopeBar.Chosen) -> None:
        self.choose_scope(event.scope)

    def action_scope_next(self) -> None:
        self.choose_scope(self.manifold.next_scope(+1))

    def action_scope_prev(self) -> None:
        self.choose_scope(self.manifold.next_scope(-1))

    def action_point_left(self) -> None:
        self.scatter.move(-1, 0)

    def action_point_right(self) -> None:
        self.scatter.move(+1, 0)

    def action_point_up(self) -> None:
        self.scatter.move(0, -1)

    def action_point_down(self) -> None:
        self.scatter.move(0, +1)

    def action_point_next(self) -> None:
        self._step(+1)

    def action_point_prev(self) -> None:
        self._step(-1)

    def _step(self, delta: int) -> None:
        if len(self.scatter.here_too) > 1:
            self.scatter.step(delta)
        else:
            self.notify("There is no other point in this cell; zoom out, or move.", timeout=2)

    def action_point_here(self) -> None:
        manifold = self.manifold
        turn = self.session.turn
        key = self.session.cursor if manifold.of_session else turn.id if turn is not None else None
        index = manifold.cloud.index(key)
        if index is None:
            self.notify("This session is none of these points: it is not in the store, or not in this scope.")
        self.scatter.select(index)

    def action_zoom_in(self) -> None:
        self.scatter.zoom_by(1.5)

    def action_zoom_out(self) -> None:
        self.scatter.zoom_by(1 / 1.5)

    def action_zoom_all(self) -> None:
        self.scatter.show_all()

    def action_dots_toggle(self) -> None:
        self.scatter.dots = not self.scatter.draws_dots
        self.scatter.redraw()

    def action_clusters_toggle(self) -> None:
        grouping = self.manifold.grouping
        grouping.shown = not grouping.shown
        if grouping.shown and grouping.error:
            self.notify(grouping.error, severity="warning")
        elif grouping.shown and grouping.found is not None and not len(grouping.found):
            self.notify(f"No {grouping.found.smallest} points or more lie close enough together to be a cluster.")
        self.draw()

    def action_plane_toggle(self) -> None:
        manifold = self.manifold
        manifold.mapping.shown = not manifold.mapping.shown
        if manifold.mapping.shown and not manifold.on_map:
            manifold.mapping.shown = False
            self.notify(self._no_map(), severity="warning")
            return
        self.draw()

    def _no_map(self) -> str:
        """Why there is no learned map of these points."""
        learned = self.geom.learned
        if not learned.looked:
            return "The discovery is still being read."
        return learned.why_not(self.manifold.model) or learned.plane_problem or "No point is of the discovery's model."

    def action_point_open(self) -> None:
        key = self.manifold.key
        if isinstance(key, Place):
            self.session.go(key)
            self.geom.switch_mode("chat")
        elif key is not None:
            self.geom.open_trace(key)

    def action_point_compare(self) -> None:
        """Compare the point's trace with the one marked before, else with the one that is open."""
        self.run_worker(self._compare_point(), group="point", exclusive=True)

    async def _compare_point(self) -> None:
        turn = await self._turn()
        if turn is None:
            return
        marked = self.session.compared[:1]
        first = marked[0] if len(self.session.compared) == 1 else self.session.turn
        if first is None or first.id == turn.id or not first.captured:
            self.session.compared = [turn]
            if self.manifold.of_session:
                said = f"A is {turn.id}. Press the key on a token of another turn, or on a stored trace."
            else:
                said = f"A is {turn.id}. Press the key on another trace to compare the two."
            self.notify(said)
            return
        self.session.compared = [first, turn]
        self.geom.switch_mode("compare")

    async def _turn(self) -> Turn | None:
        """The trace of the chosen point."""
        key = self.manifold.key
        if isinstance(key, Place):
            return self.session.turns[key.turn]
        if key is None:
            return None
        try:
            records = await self.geom.storage.records(key)
        except GeomError as error:
            self.notify(str(error), severity="error")
            return None
        turn = await asyncio.to_thread(Turn, records, source=key)
        turn.saved = True
        return turn

    async def action_copy_json(self) -> None:
        text = self.manifold.as_json()
        if text is None:
            self.notify("There is no point to copy.", severity="warning")
            return
        await clipboard.copy(self.geom, text, what="The point")

    async def action_copy_command(self) -> None:
        settings = self.geom.live.settings
        try:
            text = self.manifold.command(settings.base_url, settings.db)
        except GeomError as error:
            self.notify(str(error), severity="warning")
            return
        if text is None:
            self.notify("There is no point to repeat.", severity="warning")
            return
        await clipboard.copy(self.geom, text, what="The command")


PANE = ManifoldPane
