"""Inspect: every token, and of the one under the cursor each layer, distance and attended position."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.widget import Widget

from geomcli.tui.actions import pane_bindings
from geomcli.tui.panes.tokens import TokenPane
from geomcli.tui.session import Changed
from geomcli.tui.widgets.find import FindBar
from geomcli.tui.widgets.inspect_view import Detail, InspectBar, LayerMap
from geomcli.tui.widgets.lens import Lens
from geomcli.tui.widgets.token_list import TokenList

_ROOM_FOR_ALL = 156  # cells that list, map and lens need beside each other


class InspectPane(TokenPane):
    """The list of tokens beside the map of layers and the attended positions; where it is narrow, one or the other."""

    MODE = "inspect"
    BINDINGS: ClassVar[list[BindingType]] = [*pane_bindings(MODE)]
    AUTO_FOCUS: ClassVar[str | None] = "TokenList"

    def body(self) -> Iterable[Widget]:
        yield InspectBar(self.session, id="inspect-bar")
        with Horizontal(id="inspect-columns"):
            yield TokenList(self.session, id="token-list")
            with Vertical(id="inspect-right"):
                yield LayerMap(self.session, id="layer-map")
                yield Detail(self.session, id="detail")
            lens = Lens(self.session)
            lens.add_class("-closed")
            yield lens
        yield FindBar(id="find")

    @property
    def list(self) -> TokenList:
        return self.query_one(TokenList)

    def session_changed(self, changed: Changed) -> None:
        if changed & (Changed.TURNS | Changed.STATE):
            self.set_class(not self.session.turns, "-empty")
        super().session_changed(changed)

    def on_resize(self) -> None:
        self._make_room()

    def action_lens_toggle(self) -> None:
        super().action_lens_toggle()
        self._make_room()

    def _make_room(self) -> None:
        """The map needs what the list has, where the lens stands beside it on a screen that is not very wide."""
        wide = self.has_class("-wide") and not self.lens.has_class("-closed")
        self.set_class(wide and self.size.width < _ROOM_FOR_ALL, "-lens")

    def action_filter_next(self) -> None:
        self.list.show(self.list.segment.next)
        self.session.touch(Changed.VIEW)

    def action_list_toggle(self) -> None:
        self.toggle_class("-list")

    def action_row_next(self) -> None:
        self.list.move(+1)

    def action_row_prev(self) -> None:
        self.list.move(-1)

    def action_page_next(self) -> None:
        self.list.move(self.list.page)

    def action_page_prev(self) -> None:
        self.list.move(-self.list.page)

    def action_token_next(self) -> None:
        self.list.move(+1)

    def action_token_prev(self) -> None:
        self.list.move(-1)

    def action_scrub_next(self) -> None:
        self.list.move(+10)

    def action_scrub_prev(self) -> None:
        self.list.move(-10)


PANE = InspectPane
