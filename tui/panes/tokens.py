"""Actions of panes that show tokens: move, pin, follow links, find, copy, and the lens beside them."""

from __future__ import annotations

from geomcli.errors import TraceError, UsageError
from geomcli.links import layers_of
from geomcli.request import FIREWALL_ACTIONS
from geomcli.tui import clipboard, search
from geomcli.tui.panes.base import Pane
from geomcli.tui.session import Changed, Place
from geomcli.tui.widgets.find import FindBar
from geomcli.tui.widgets.lens import Lens


class TokenPane(Pane):
    """A pane with a token cursor. It composes a `Lens` and a `FindBar`; their actions are here."""

    @property
    def lens(self) -> Lens:
        return self.query_one(Lens)

    def action_lens_toggle(self) -> None:
        self.lens.toggle()

    def action_lens_tab(self) -> None:
        self.lens.next_tab()

    def action_split_grow(self) -> None:
        self.lens.resize(+4)

    def action_split_shrink(self) -> None:
        self.lens.resize(-4)

    def action_token_next(self) -> None:
        self.session.move(+1)

    def action_token_prev(self) -> None:
        self.session.move(-1)

    def action_token_pin(self) -> None:
        self.session.toggle_pin()

    def action_token_last(self) -> None:
        self.session.follow_end()

    def action_token_first(self) -> None:
        self.session.go(Place(0, 0))

    def action_scrub_next(self) -> None:
        self.session.move(+10)

    def action_scrub_prev(self) -> None:
        self.session.move(-10)

    def action_segment_next(self) -> None:
        self.session.move_segment(+1)

    def action_segment_prev(self) -> None:
        self.session.move_segment(-1)

    def action_links_follow(self) -> None:
        if not self.session.follow_link():
            self.notify("This token has no link to another token that is shown here.", timeout=2)

    def action_links_back(self) -> None:
        if not self.session.back():
            self.notify("There is no jump to go back from.", timeout=2)

    def action_sink_toggle(self) -> None:
        self.session.toggle_sinks()

    def action_semantic_toggle(self) -> None:
        self.session.toggle_derotated()

    def action_layer_next(self) -> None:
        self._turn_layer(+1)

    def action_layer_prev(self) -> None:
        self._turn_layer(-1)

    def _turn_layer(self, delta: int) -> None:
        token = self.session.token
        layers = layers_of(token.step) if token is not None else []
        if not layers:
            self.notify("No layer was captured of this token.", timeout=2)
            return
        own = token.step.get("layer_id") if token is not None else None
        shown = own if self.session.layer is None else self.session.layer
        place = layers.index(shown) if shown in layers else len(layers) - 1
        self.session.set_layer(layers[(place + delta) % len(layers)])

    def action_firewall_next(self) -> None:
        offered = (None, *FIREWALL_ACTIONS)
        wanted = offered[(offered.index(self.session.ask.firewall) + 1) % len(offered)]
        self.session.ask = self.session.ask.changed(firewall=wanted)
        self.session.touch(Changed.STATE)
        said = (
            f"{wanted}, when attention drifts, which finds no errors; not calibrated"
            if wanted
            else "none but the server's own"
        )
        self.notify(f"Firewall of the next answers: {said}.", timeout=3)

    def action_find_open(self) -> None:
        self.query_one(FindBar).open()

    def action_find_next(self) -> None:
        self._go_to_match(+1)

    def action_find_prev(self) -> None:
        self._go_to_match(-1)

    def on_find_bar_searched(self, event: FindBar.Searched) -> None:
        """Mark what was found and go to the first match from the cursor on."""
        try:
            places = search.find(self.session.turns, event.query)
        except UsageError as error:
            self.query_one(FindBar).say(str(error))
            return
        self.session.set_found(places)
        self.query_one(FindBar).say(f"{len(places)} found" if places else "nothing found")
        if places:
            here = self.session.cursor or places[0]
            self.session.go(next((place for place in places if place >= here), places[0]))

    def _go_to_match(self, direction: int) -> None:
        places, here = self.session.found, self.session.cursor
        if not places or here is None:
            self.notify("Nothing is searched for. Press / first.", timeout=2)
            return
        later = [place for place in places if place > here]
        earlier = [place for place in places if place < here]
        if direction > 0:
            self.session.go(later[0] if later else places[0])
        else:
            self.session.go(earlier[-1] if earlier else places[-1])

    async def action_copy_json(self) -> None:
        token, turn = self.session.token, self.session.turn
        if token is None or turn is None:
            self.notify("There is no token to copy yet.", severity="warning")
            return
        from geomcli import reproduction

        await clipboard.copy(self.geom, reproduction.token_json(turn.trace, token.index), what="The token's record")

    async def action_copy_command(self) -> None:
        turn = self.session.turn
        if turn is None:
            self.notify("There is no question to repeat yet.", severity="warning")
            return
        from geomcli import reproduction

        try:
            command = reproduction.command(turn.trace, base_url=self.geom.live.settings.base_url)
        except TraceError as error:
            self.notify(str(error), severity="warning")
            return
        await clipboard.copy(self.geom, command, what="The command")
