"""Inspect's widgets: what is chosen, the map of the layers, and the attended positions with the heads' statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from rich.style import Style
from rich.text import Text
from textual import events
from textual.containers import VerticalScroll

from geomcli.display import printable
from geomcli.layers import LayerView, head_stats, layer_views, logit_stats, request_view
from geomcli.links import layers_of
from geomcli.tui import cache
from geomcli.tui.session import Changed, Place, Session
from geomcli.tui.turn import Token, Turn
from geomcli.tui.widgets import layer_lines as parts
from geomcli.tui.widgets.lens import token_name
from geomcli.tui.widgets.text import KeptText
from geomcli.tui.widgets.token_list import Segment, TokenList

if TYPE_CHECKING:
    from geomcli.tui.app import GeomApp

_TOKEN = Changed.TURNS | Changed.TOKENS | Changed.CURSOR | Changed.VIEW
_HEADS_WIDTH = 40
_BESIDE = 104  # cells from which the heads stand beside the positions


class TokenText(KeptText):
    """Lines about the token under the cursor and the chosen layer."""

    WATCHES = _TOKEN

    @property
    def geom(self) -> GeomApp:
        return cast("GeomApp", self.app)

    @property
    def looked(self) -> tuple[Place, Token, Turn] | None:
        """The token under the cursor, with its turn."""
        place, token = self.session.cursor, self.session.token
        return None if place is None or token is None else (place, token, self.session.turns[place.turn])

    def layer_of(self, token: Token) -> int | None:
        """The layer that is shown: the chosen one, the entry's own where that was not captured of this token."""
        own = token.step.get("layer_id")
        chosen = self.session.layer
        return chosen if chosen in layers_of(token.step) else own

    def heading(self, text: str) -> Text:
        return Text().append(text, self.paint.fore("primary", bold=True))


class InspectBar(TokenText):
    """Layers, filter, and where the cursor is; layers and filters can be clicked."""

    WATCHES = _TOKEN | Changed.STATE

    def lines(self) -> list[Text]:
        paint, looked = self.paint, self.looked
        line = Text().append("layers ", paint.fore("muted"))
        layers = [] if looked is None else layers_of(looked[1].step)
        chosen = None if looked is None else self.layer_of(looked[1])
        room = max(12, self.size.width - 58)
        for layer in _around(layers, chosen, room // 4):
            if layer is None:
                line.append("… ", paint.fore("muted"))
                continue
            here = layer == chosen
            style = paint.fore("accent" if here else "foreground", bold=here) + Style.from_meta({"layer": layer})
            line.append(f"[{layer}]" if here else f" {layer} ", style)
        line.append("–" if not layers else "", paint.fore("muted"))
        line.append("   show ", paint.fore("muted"))
        shown = self.screen.query_one(TokenList).segment
        for segment in Segment:
            mark = "▣" if segment is shown else "▢"
            style = paint.fore("accent" if segment is shown else "muted", bold=segment is shown)
            line.append(f"{mark} {segment.value}  ", style + Style.from_meta({"segment": segment.value}))
        if looked is not None:
            place, token, turn = looked
            of = "" if len(self.session.turns) == 1 else f"answer {place.turn + 1}, "
            right = f"{of}#{token.index} of {len(turn.tokens)}"
            pad = self.size.width - line.cell_len - len(right)
            if pad >= 0:
                line.append(" " * pad + right, paint.fore("foreground"))
        return [line]

    def on_click(self, event: events.Click) -> None:
        meta = event.style.meta
        if "layer" in meta:
            self.session.set_layer(meta["layer"])
        elif "segment" in meta:
            self.screen.query_one(TokenList).show(Segment(meta["segment"]))
            self.refresh()


def _around(layers: list[int], chosen: int | None, room: int) -> list[int | None]:
    """As many layers around the chosen one as there is room for; None where some are left out."""
    if len(layers) <= room:
        return list(layers)
    at = layers.index(chosen) if chosen in layers else len(layers) - 1
    first = max(0, min(len(layers) - room, at - room // 2))
    shown: list[int | None] = list(layers[first : first + room])
    return [None] * (first > 0) + shown + [None] * (first + room < len(layers))


class LayerMap(TokenText):
    """Layer x log distance of the token under the cursor; the chosen layer's values below. A click chooses a layer."""

    GROWS = True

    def lines(self) -> list[Text]:
        looked, paint, width = self.looked, self.paint, max(20, self.container_size.width - 3)
        if looked is None:
            return self._nothing()
        _, token, turn = looked
        views = layer_views(token.step)
        head = self.heading("LAYERS").append("  % of mass by distance, tokens back, without sinks", paint.fore("muted"))
        if not views:
            return [head, Text(""), *self._without_numbers(token), *self._cache(token, turn)]
        chosen = self.layer_of(token)
        whole = request_view(token.step) if len(views) > 1 else None
        top = max((float(v.histogram.max()) for v in views if v.histogram is not None), default=1.0) or 1.0
        rows = [head, *parts.map_heading(paint, width)]
        shown, left_out = self._in_view(views, chosen)
        for view in shown:
            name = "all" if view.layer is None else str(view.layer)
            row = parts.map_row(view, name, top, paint, width, chosen=view.layer == chosen and view.layer is not None)
            rows.append(_with_meta(row, "layer", view.layer))
        if left_out:
            rows.append(Text().append(f"  … {left_out} more layers, + and - go on", paint.fore("muted")))
        if whole is not None:
            rows.append(parts.map_row(whole, "mean", top, paint, width, chosen=False))
        rows += [Text(""), self._facts(views, chosen)]
        if (sure := logit_stats(token.step)) is not None:
            rows.append(self.heading("logits  ").append_text(parts.logit_facts(sure, paint)))
        return [*rows, *self._cache(token, turn)]

    def _cache(self, token: Token, turn: Turn) -> list[Text]:
        said = "; ".join(cache.facts(token, turn))
        return [self.heading("cache  ").append(said, self.paint.fore("foreground"))] if said else []

    def _in_view(self, views: list[LayerView], chosen: int | None) -> tuple[list[LayerView], int]:
        """The rows that fit into half of the pane, around the chosen layer."""
        room = max(4, self.screen.size.height // 2 - 8)
        at = next((n for n, view in enumerate(views) if view.layer == chosen), 0)
        first = max(0, min(len(views) - room, at - room // 2))
        return views[first : first + room], max(0, len(views) - room)

    def _facts(self, views: list[LayerView], chosen: int | None) -> Text:
        view = next((v for v in views if v.layer == chosen), views[0])
        name = "request" if view.layer is None else f"layer {view.layer}"
        line = self.heading(f"{name}  ").append_text(parts.layer_facts(view, self.paint))
        if len(views) == 1:
            why = " only the request's fingerprint is known" if view.layer is None else " the only layer captured"
            line.append(why, self.paint.fore("muted"))
        return line

    def _without_numbers(self, token: Token) -> list[Text]:
        muted = self.paint.fore("muted")
        flags = set(token.step.get("flags") or ())
        if "capture_stopped" in flags:
            said = ["Capture stopped here: the request's limit is reached.", "geom serve --attention-tokens-max N"]
        elif "empty" in flags:
            said = ["All of this token's attention is on sinks or masked positions: there is no distance to show."]
        elif "error" in flags:
            said = ["Capture of this token failed; the text went on without it."]
        else:
            said = ["Nothing was captured of this token.", "Tokens with numbers have a zone in the list."]
        return [Text().append(line, muted) for line in said]

    def _nothing(self) -> list[Text]:
        app, paint = self.geom, self.paint
        lines = [
            self.heading("INSPECT"),
            Text().append("Every token, layer by layer: how far back it looks, and where to."),
            Text(""),
        ]
        for keys, what in (
            (f"{app.key_of('mode.chat')} {app.key_of('prompt.focus')}", "ask something in Chat"),
            (f"{app.key_of('mode.chat')} {app.key_of('demo.play')}", "play the recording there"),
            (app.key_of("command.palette"), "open a stored trace"),
        ):
            line = Text().append(f"{keys:>8}  ", paint.fore("accent", bold=True))
            lines.append(line.append(what, paint.fore("muted")))
        return lines

    def on_click(self, event: events.Click) -> None:
        if (layer := event.style.meta.get("layer")) is not None:
            self.session.set_layer(layer)


class _Below(TokenText):
    """A part below the map, about the token under the cursor; nothing without one."""

    GROWS = True

    def lines(self) -> list[Text]:
        looked = self.looked
        return [] if looked is None else self.about(*looked, self.layer_of(looked[1]))

    def about(self, place: Place, token: Token, turn: Turn, layer: int | None) -> list[Text]:
        """The lines, `layer` being the one that is shown."""
        raise NotImplementedError


class Positions(_Below):
    """What the token looked at in the chosen layer, strongest first; the layer's heads beside or below it."""

    WATCHES = _TOKEN | Changed.STATE

    def about(self, place: Place, token: Token, turn: Turn, layer: int | None) -> list[Text]:
        paint = self.paint
        width = max(30, self.container_size.width - 3)
        stats = head_stats(token.step, layer)
        beside = stats is not None and width >= _BESIDE
        left = self._positions(place, token, turn, layer, width - (_HEADS_WIDTH + 3 if beside else 0))
        if stats is None:
            return left
        right = [self.heading("HEADS"), *parts.head_rows(stats, paint)]
        if not beside:
            return [*left, Text(""), *right]
        rows = []
        for number in range(max(len(left), len(right))):
            row = left[number] if number < len(left) else Text("")
            row.truncate(width - _HEADS_WIDTH - 3, overflow="ellipsis", pad=True)
            rows.append(Text().append_text(row).append("   "))
            if number < len(right):
                rows[-1].append_text(right[number])
        return rows

    def _positions(self, place: Place, token: Token, turn: Turn, layer: int | None, width: int) -> list[Text]:
        session, paint, muted = self.session, self.paint, self.paint.fore("muted")
        links = token.links(layer)
        head = self.heading("ATTENDED POSITIONS")
        head.append(f"  #{token.index} ", muted).append(token_name(token), paint.fore("foreground", bold=True))
        if not links:
            return [head, Text(""), *(Text().append(line, muted) for line in self._why_none(token, layer))]
        shown = [link for link in links if session.show_sinks or not turn.is_sink(link.position)]
        rows = [head, parts.position_heading(shown, paint, width)]
        rows += [parts.position_row(link, session, place, turn, shown, paint, width) for link in shown]
        covered = sum(link.probability for link in links)
        notes = f"top {len(links)} cover {parts.short(covered).strip()} of the attention"
        sinks = [link.probability for link in links if turn.is_sink(link.position)]
        if sinks and not session.show_sinks:
            many = "sink is" if len(sinks) == 1 else "sinks are"
            notes += f"; {len(sinks)} {many} hidden, {parts.short(sum(sinks)).strip()}"
            notes += f" ({self.geom.key_of('sink.toggle')} shows)"
        rows.append(Text().append(notes, muted))
        if session.derotated and not any(link.content is not None for link in links):
            rows.append(
                Text().append("content and rotation were not captured; the next answer is asked for them", muted)
            )
        return rows

    def _why_none(self, token: Token, layer: int | None) -> list[str]:
        if not token.step:
            return ["Nothing was captured of this token."]
        mode = token.step.get("mode")
        if mode != "fingerprint":
            return [f"This {mode or 'entry'} has no links of layer {layer}."]
        app, live = self.geom, self.geom.live
        if live.steering.plan().advice is not None:
            key = f"{app.key_of('mode.router')} {app.key_of('apply.clear')}"
            return ["A fingerprint holds no positions.", f"The router's advice asks for fingerprints: {key} clears it."]
        if "raw" not in live.modes:
            how = "geom serve, without --attention-fingerprint-only, lets out more"
            return ["A fingerprint holds no positions, and this server lets out nothing else.", how]
        return ["A fingerprint holds no positions.", "What is asked from here on, in Chat, is captured with them."]

    def on_click(self, event: events.Click) -> None:
        place = event.style.meta.get("place")
        if place is not None and place[1] >= 0:
            self.session.go(Place(*place), remember=True)


class Sentence(_Below):
    """Which sources the sentence under the cursor read in the chosen layer, the most read first."""

    def about(self, place: Place, token: Token, turn: Turn, layer: int | None) -> list[Text]:  # noqa: ARG002
        paint = self.paint
        start, end = turn.reader.sentence(place.token)
        end = min(end, len(turn.tokens))
        head = self.heading("WHAT THIS SENTENCE READ")
        run = f"#{start}" if end == start + 1 else f"#{start}–{end - 1}"
        head.append(f"  {run} ", paint.fore("muted"))
        head.append(printable("".join(t.text for t in turn.tokens[start:end]).strip()), paint.fore("foreground"))
        reading = turn.reader.read((start, end), layer)
        if not reading.read:
            # Where nothing at all has links, the positions above say why.
            return [Text(""), head, Text().append("None of its tokens has links of this layer.", paint.fore("muted"))]
        width = max(30, self.container_size.width - 3)
        rows = parts.source_rows(reading, paint, width, sinks=self.session.show_sinks)
        return [Text(""), head, *rows]


class Detail(VerticalScroll, can_focus=False):
    """The positions, and what the whole sentence read; both may be more than there is room for."""

    def __init__(self, session: Session, *, id: str) -> None:  # noqa: A002
        super().__init__(Positions(session, id="positions"), Sentence(session, id="sentence"), id=id)


def _with_meta(text: Text, name: str, value: object) -> Text:
    if value is not None:
        text.stylize(Style.from_meta({name: value}))
    return text
