"""Router: the zone while it is written, the evidence for it, and what it advises; advice is applied from here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual.binding import BindingType
from textual.containers import Container, Horizontal, Vertical
from textual.widget import Widget

from geomcli.tui.actions import pane_bindings
from geomcli.tui.panes.tokens import TokenPane
from geomcli.tui.session import Changed
from geomcli.tui.steering import Steering
from geomcli.tui.widgets.find import FindBar
from geomcli.tui.widgets.lens import Lens
from geomcli.tui.widgets.router_view import DecisionHead, DecisionList, RouterEvidence, RouterNow, RouterPlan

_ROOMY = 34  # rows


class RouterPane(TokenPane):
    """What the router says of the token under the cursor, the next run, and the decisions of all turns."""

    MODE = "router"
    BINDINGS: ClassVar[list[BindingType]] = [*pane_bindings(MODE)]
    AUTO_FOCUS: ClassVar[str | None] = "DecisionList"

    def body(self) -> Iterable[Widget]:
        with Horizontal():
            with Vertical(id="router-left"):
                with Container(id="router-top"):
                    yield RouterNow(self.session, id="router-now")
                    yield RouterEvidence(self.session, id="router-evidence")
                yield RouterPlan(self.session, id="router-plan")
                yield DecisionHead(self.session, id="decision-head")
                yield DecisionList(self.session, id="decisions")
            lens = Lens(self.session)
            lens.add_class("-closed")
            yield lens
        yield FindBar(id="find")

    def session_changed(self, changed: Changed) -> None:
        self._make_room()
        super().session_changed(changed)

    def on_resize(self) -> None:
        self._make_room()

    def _make_room(self) -> None:
        """For what a discovery says, where the list of decisions can spare it."""
        learned, turn = self.geom.learned, self.session.turn
        roomy = self.size.height >= _ROOMY or self.has_class("-narrow")
        wanted = roomy and turn is not None and learned.of(turn.model) is not None
        if wanted != self.has_class("-learned"):
            self.set_class(wanted, "-learned")
            self.call_after_refresh(lambda: self.list.select(self.list.selected))

    @property
    def steering(self) -> Steering:
        return self.geom.live.steering

    @property
    def list(self) -> DecisionList:
        return self.query_one(DecisionList)

    def action_row_next(self) -> None:
        self.list.select(self.list.selected + 1)

    def action_row_prev(self) -> None:
        self.list.select(self.list.selected - 1)

    def action_page_next(self) -> None:
        self.list.select(self.list.selected + self.list.page)

    def action_page_prev(self) -> None:
        self.list.select(self.list.selected - self.list.page)

    def action_decision_open(self) -> None:
        if not self.list.open():
            self.notify("There is no decision yet.", timeout=2)

    def action_apply_next(self) -> None:
        found = self.steering.recommendation(self.session.cursor)
        if found is None:
            self.notify("There is no advice yet: it needs a step with numbers.", severity="warning", timeout=3)
            return
        self.steering.apply_once(found.advice)
        self.notify(f"Next run: {self.steering.plan().ask.described()}", timeout=3)

    def action_apply_always(self) -> None:
        on = not self.steering.preferences.always
        self.steering.apply_always(on)
        self.notify("Every run takes the newest advice." if on else "Advice is applied to no further run.", timeout=3)

    def action_apply_clear(self) -> None:
        if self.steering.clear():
            self.notify("Nothing is applied; requests are as you set them.", timeout=3)
        else:
            self.notify("Nothing was applied.", timeout=2)


PANE = RouterPane
