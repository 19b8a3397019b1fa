"""The lines around the manifold's points: scope, axes, legend, and the point under the cursor."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray
from rich.style import Style
from rich.text import Text
from textual import events
from textual.message import Message

from geomcli.clusters import NOISE, Labels
from geomcli.compass import HALT_THRESHOLD
from geomcli.display import ZONE_GLYPHS, bar, cluster_name, printable, zone_label
from geomcli.fingerprint import BIN_ENTROPY, LOCAL, LONG, MID, N_BINS
from geomcli.interpretation import portrait
from geomcli.store_queries import Scope, TracePoint
from geomcli.tui.cloud import SCOPES
from geomcli.tui.manifold import SCOPE_WORDS, Manifold
from geomcli.tui.session import Changed, Overlay
from geomcli.tui.widgets.histogram import histogram
from geomcli.tui.widgets.lens import token_name
from geomcli.tui.widgets.meter import meter
from geomcli.tui.widgets.scatter import HERE
from geomcli.tui.widgets.text import SessionText
from geomcli.zones import UNKNOWN, ZONE_NAMES, ZONES_V1

if TYPE_CHECKING:
    from geomcli.tui.app import GeomApp
    from geomcli.tui.themes import Paint

_COMPACT = 8  # rows below which a point is shown in three lines


class ManifoldText(SessionText):
    """A text about a manifold. The pane renews it: a session's changes reach it through the manifold's."""

    WATCHES = Changed.NOTHING

    def __init__(self, manifold: Manifold, *, id: str) -> None:  # noqa: A002
        super().__init__(manifold.session, id=id)
        self.manifold = manifold
        self._shown: tuple[Text, Paint] | None = None

    def renew(self) -> None:
        """Draw anew if it says something else, or in another theme."""
        now = (self.render(), self.paint)
        if now != self._shown:
            self._shown = now
            self.refresh()


class ScopeBar(ManifoldText):
    """Two lines: the scopes, with how many points there are; what the axes are. Scopes can be clicked."""

    class Chosen(Message):
        def __init__(self, scope: Scope) -> None:
            super().__init__()
            self.scope = scope

    def lines(self) -> list[Text]:
        paint, manifold = self.paint, self.manifold
        first = Text(" scope", paint.fore("muted"))
        for scope in SCOPES:
            here = scope == manifold.scope
            style = paint.fore("accent" if here else "muted", bold=here, underline=here)
            first.append("  ").append(scope, style + Style.from_meta({"scope": scope}))
        points = len(manifold.cloud)
        if points:
            kind = "token" if manifold.of_session else "trace"
            count = Text().append(
                f"{points:,} {kind}{'s' if points != 1 else ''} ", paint.fore("foreground", bold=True)
            )
            models = {point.model for point in manifold.cloud.traces}
            if len(models) > 1:
                count.append(f"of {len(models)} models ", paint.fore("warning"))
            first.append(" " * max(2, self.size.width - first.cell_len - count.cell_len)).append_text(count)
        return [first, self._axes()]

    def _axes(self) -> Text:
        muted, manifold = self.paint.fore("muted"), self.manifold
        if not len(manifold.cloud):
            return Text(f" {SCOPE_WORDS[manifold.scope]}", muted)
        explained = manifold.cloud.projection.explained
        what = "fingerprints" if manifold.of_session else "mean fingerprints"
        grouped = self._clusters()
        axes = f" PCA of {what}: two axes hold {explained.sum():.0%} of the variance."
        long = f"{axes} {grouped}. No discovery artifacts."
        short = f" PCA, {explained.sum():.0%}; {grouped}; no discovery artifacts"
        return Text(long if len(long) <= self.size.width else short, muted)

    def _clusters(self) -> str:
        grouping = self.manifold.grouping
        if grouping.error:
            return "No scikit-learn, no clusters"
        if grouping.found is None:
            return "Looking for clusters …"
        count, noise = len(grouping.found), grouping.found.noise
        if not count:
            return "HDBSCAN: no clusters"
        return f"HDBSCAN: {count} cluster{'s' if count > 1 else ''}, {noise:.0%} in none"

    def on_click(self, event: events.Click) -> None:
        if scope := event.style.meta.get("scope"):
            self.post_message(self.Chosen(scope))


class VerticalAxis(ManifoldText):
    """One line above or below the points: what grows upwards, or downwards."""

    def __init__(self, manifold: Manifold, *, up: bool) -> None:
        super().__init__(manifold, id=f"axis-{'up' if up else 'down'}")
        self.up = up

    def lines(self) -> list[Text]:
        paint, cloud = self.paint, self.manifold.cloud
        if not len(cloud):
            return [Text("")]
        plus, minus = cloud.projection.directions(1)
        line = Text().append(" ↑ " if self.up else " ↓ ", paint.fore("primary", bold=True))
        if self.up:
            line.append(f"PC2 {cloud.projection.explained[1]:.0%}  ", paint.fore("primary"))
        line.append(_fitting(plus if self.up else minus, self.size.width - line.cell_len), paint.fore("muted"))
        return [line]


class HorizontalAxis(ManifoldText):
    """One line below the points: what grows to the left, and to the right."""

    def lines(self) -> list[Text]:
        paint, cloud = self.paint, self.manifold.cloud
        if not len(cloud):
            return [Text("")]
        muted, arrow = paint.fore("muted"), paint.fore("primary", bold=True)
        plus, minus = cloud.projection.directions(0)
        middle = f"PC1 {cloud.projection.explained[0]:.0%}"
        room = (self.size.width - len(middle) - 10) // 2
        left, right = _fitting(minus, room), _fitting(plus, room)
        line = Text().append(" ← ", arrow).append(left, muted)
        line.append(" " * max(2, (self.size.width - len(middle)) // 2 - line.cell_len))
        line.append(middle, paint.fore("primary"))
        line.append(" " * max(2, self.size.width - line.cell_len - len(right) - 3))
        return [line.append(right, muted).append(" → ", arrow)]


class Legend(ManifoldText):
    """How many points each zone has, what the marks mean; two lines."""

    def lines(self) -> list[Text]:
        rows, width = max(1, self.size.height), self.size.width
        lines = [Text(" ")]
        for item in self._items():
            if lines[-1].cell_len + item.cell_len > width and len(lines) < rows:
                lines.append(Text(" "))
            lines[-1].append_text(item).append("   ")
        for line in lines:
            line.rstrip()
            line.truncate(max(1, width), overflow="ellipsis")
        return lines

    def _items(self) -> Iterator[Text]:
        paint, manifold, muted = self.paint, self.manifold, self.paint.fore("muted")
        total = len(manifold.cloud)
        if not total:
            return
        if manifold.grouping.drawn:
            yield from self._clusters(manifold.grouping.labels(manifold.cloud))
        else:
            for zone, count in manifold.cloud.zone_counts():
                name = "unknown (no threshold met)" if zone == UNKNOWN else zone_label(zone)
                item = Text().append(f"{ZONE_GLYPHS[zone]} ", paint.zone_mark(zone)).append(f"{name} ", muted)
                yield item.append(f"{count:,} {count / total:.0%}", paint.fore("foreground"))
            if manifold.grouping.found:
                last = cluster_name(len(manifold.grouping.found) - 1)
                letters = Text("A" if last == "A" else f"A–{last}", paint.fore("foreground", bold=True, underline=True))
                yield letters.append(" clusters", muted)
        if manifold.here() is not None:
            yield Text().append(f"{HERE} ", paint.fore("accent", bold=True)).append("you are here", muted)
        if manifold.values() is not None:
            yield Text(f"shaded by {self.session.overlay.value}", muted)
        elif self.session.overlay is Overlay.INFLUENCE:
            yield Text("influence is a value of tokens, not of traces", muted)

    def _clusters(self, labels: Labels) -> Iterator[Text]:
        """Each cluster with the zone that most of its points have, and how many there are."""
        paint, manifold, muted = self.paint, self.manifold, self.paint.fore("muted")
        grouping, zones = manifold.grouping, manifold.cloud.zones
        for label in [*range(len(grouping.found or ())), NOISE]:
            inside = labels == label
            count = int(inside.sum())
            if not count:
                continue
            item = Text().append(
                f"{cluster_name(label)} ", paint.zone_mark(grouping.colour(label)) + Style(bold=label >= 0)
            )
            most = ZONE_NAMES[int(np.bincount(zones[inside]).argmax())]
            name = "in no cluster" if label == NOISE else f"mostly {zone_label(most)}"
            item.append(f"{name} ", muted)
            yield item.append(f"{count:,} {count / len(labels):.0%}", paint.fore("foreground"))


class PointDetails(ManifoldText):
    """The point under the cursor: in a column of its own, or in a few lines where there is little room."""

    in_cell: tuple[int, int] = (1, 1)  # the point's number among those of its cell, and how many there are

    def lines(self) -> list[Text]:
        manifold, paint = self.manifold, self.paint
        if manifold.point is None and manifold.token is None:  # or the session no longer has the token
            return [Text("")]
        assert manifold.chosen is not None
        width = max(20, self.content_size.width)
        if self.content_size.height < _COMPACT:
            return self._compact(width)
        lines = [self._head(), *self._names(width), Text("")]
        fingerprint = manifold.cloud.fingerprints[manifold.chosen]
        point = manifold.point
        if point is not None:
            lines += [*_zone_shares(point, paint, width), Text("")]
        lines += [Text("mean fingerprint" if point is not None else "fingerprint", paint.fore("muted"))]
        lines += _meters(fingerprint, paint, width)
        if point is not None and point.max_drift is not None:
            lines.append(_drift_line(point.max_drift, paint))
        lines += [Text(""), Text("mass by distance (tokens back)", paint.fore("muted"))]
        lines += histogram(fingerprint[-N_BINS:].tolist(), paint, width=width)
        lines.append(Text(""))
        for sentence in portrait(fingerprint):
            lines += [Text(part, paint.fore("muted")) for part in wrap(sentence, width, subsequent_indent="  ")]
        keys = self._keys()
        room = self.content_size.height - len(lines) - len(keys)
        if room < 0:
            lines = lines[: self.content_size.height - len(keys) - 1]
            lines.append(Text("…", paint.fore("muted")))
        return [*lines, *[Text("")] * max(0, room), *keys]

    def _head(self) -> Text:
        paint, manifold = self.paint, self.manifold
        kind = "TOKEN" if manifold.of_session else "TRACE"
        head = Text().append(kind, paint.fore("primary", bold=True))
        number, of = self.in_cell
        if of > 1:
            head.append(f"  {number} of {of} in this cell (n)", paint.fore("muted"))
        if manifold.is_here:
            head.append(f"  {HERE} you", paint.fore("accent", bold=True))
        head.truncate(max(1, self.content_size.width), overflow="ellipsis")
        return head

    def _names(self, width: int) -> list[Text]:
        paint, manifold = self.paint, self.manifold
        strong, plain, muted = paint.fore("foreground", bold=True), paint.fore("foreground"), paint.fore("muted")
        if manifold.token is not None:
            token, turn = manifold.token
            lines = [Text(token_name(token), strong), Text(f"step {token.index + 1}, {_phase(token.phase)}", plain)]
            zone = Text(f"{ZONE_GLYPHS.get(token.zone, '·')} {zone_label(token.zone)}", paint.zone_mark(token.zone))
            if token.confidence is not None and token.zone != UNKNOWN:
                zone.append(f"  confidence {token.confidence:.2f}", muted)
            lines.append(zone)
            if token.drift is not None:
                lines.append(_drift_line(token.drift, paint, label="drift"))
            lines.append(Text(f"{turn.id}  {printable(turn.model)}", muted))
        else:
            point = manifold.point
            assert point is not None
            lines = [Text(point.trace_id, strong)]
            lines += [Text(part, plain) for part in wrap(printable(point.title) or "(no question)", width)[:3]]
            lines += [Text(f"{created(point.created)}  {printable(point.model)}", muted), Text(_size(point), muted)]
        if said := self._cluster():
            lines.append(said)
        for line in lines:
            line.truncate(width, overflow="ellipsis")
        return lines

    def _cluster(self) -> Text:
        """Empty where there are no clusters."""
        manifold, grouping, cluster = self.manifold, self.manifold.grouping, self.manifold.cluster
        if cluster is None or not grouping.found:
            return Text("")
        said = "in no cluster" if cluster == NOISE else f"cluster {cluster_name(cluster)}"
        zone = grouping.colour(cluster)
        return Text(said, self.paint.zone_mark(zone) if manifold.grouping.drawn else self.paint.fore("muted"))

    def _compact(self, width: int) -> list[Text]:
        manifold, paint = self.manifold, self.paint
        assert manifold.chosen is not None
        fingerprint = manifold.cloud.fingerprints[manifold.chosen]
        numbers = Text("", paint.fore("muted"))
        for name, place in (("local", LOCAL), ("mid", MID), ("long", LONG), ("entropy", BIN_ENTROPY)):
            numbers.append(f"{name} ").append(f"{fingerprint[place]:.2f}  ", paint.fore("foreground"))
        lines = [self._head()]
        if (point := manifold.point) is not None:
            lines[0].append(f"  {point.trace_id}", paint.fore("foreground", bold=True))
            lines.append(Text(printable(point.title) or "(no question)", paint.fore("foreground")))
            lines.append(Text(f"{printable(point.model)}  {_size(point)}", paint.fore("muted")))
            zone = Text()
            for name, count in sorted(point.zones.items(), key=lambda pair: -pair[1])[:2]:
                zone.append(f"{ZONE_GLYPHS.get(name, '·')} {count / point.steps:.0%} ", paint.zone_mark(name))
            numbers = zone.append(" ").append_text(numbers)
        elif manifold.token is not None:
            token, turn = manifold.token
            lines[0].append(f"  {token_name(token)}", paint.fore("foreground", bold=True))
            zone = Text(f"{ZONE_GLYPHS.get(token.zone, '·')} {zone_label(token.zone)}  ", paint.zone_mark(token.zone))
            numbers = zone.append_text(numbers)
            drift = "" if token.drift is None else f"  drift {token.drift:.3f}"
            lines.append(Text(f"step {token.index + 1}, {_phase(token.phase)}{drift}", paint.fore("muted")))
            lines.append(Text(f"{turn.id}  {printable(turn.model)}", paint.fore("muted")))
        if said := self._cluster():
            lines[1 if manifold.token is not None else 2].append("  ").append_text(said)
        lines.append(numbers)
        for line in lines:
            line.truncate(width, overflow="ellipsis")
        return lines

    def _keys(self) -> list[Text]:
        app, paint = cast("GeomApp", self.app), self.paint
        what = "token in Chat" if self.manifold.of_session else "trace in Chat"
        rows = (("point.open", f"show the {what}"), ("point.compare", "compare its trace"))
        return [
            Text().append(f"{app.key_of(name):>5}  ", paint.fore("accent", bold=True)).append(text, paint.fore("muted"))
            for name, text in rows
        ]


def _fitting(directions: str, room: int) -> str:
    """As many of the directions, strongest first, as there is room for; an ellipsis for the rest."""
    if len(directions) <= room:
        return directions
    parts = directions.split(", ")
    for count in range(len(parts) - 1, 0, -1):
        kept = ", ".join(parts[:count]) + ", …"
        if len(kept) <= room:
            return kept
    return parts[0][: max(0, room - 1)] + "…"


def created(milliseconds: int) -> str:
    """Local date and time of an epoch in ms; "" for 0, which is no time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(milliseconds / 1000)) if milliseconds else ""


def _phase(phase: str) -> str:
    return "thinking" if phase == "think" else "answer"


def _size(point: TracePoint) -> str:
    tokens = point.steps if point.tokens is None else point.tokens
    text = f"{tokens} tokens"
    if point.steps != tokens:
        text += f", {point.steps} with a fingerprint"
    return text if point.complete else f"{text}, cut off"


def _drift_line(value: float, paint: Paint, *, label: str = "largest drift") -> Text:
    status = "HALT" if value >= HALT_THRESHOLD else "OK"
    return Text(f"{label} ", paint.fore("muted")).append(f"{value:.3f}", paint.status(status))


def _zone_shares(point: TracePoint, paint: Paint, width: int) -> list[Text]:
    lines = [Text("zones of its tokens", paint.fore("muted"))]
    for zone, count in sorted(point.zones.items(), key=lambda pair: (-pair[1], pair[0]))[:5]:
        share = count / max(1, point.steps)
        line = Text(f"{ZONE_GLYPHS.get(zone, '·')} {zone_label(zone):<17}", paint.zone_mark(zone))
        line.append(f"{share:4.0%} ", paint.fore("foreground"))
        lines.append(line.append(bar(share, width=max(4, width - 24)), paint.zone_mark(zone)))
    return lines


def _meters(fingerprint: NDArray[np.float64], paint: Paint, width: int) -> list[Text]:
    thresholds = {rule.metric: rule for rule in ZONES_V1.rules}
    rows: Sequence[tuple[str, str, int]] = (
        ("local", "local", LOCAL), ("mid", "mid", MID), ("long", "long", LONG), ("entropy", "bin_entropy", BIN_ENTROPY),
    )  # fmt: skip
    return [
        meter(
            label,
            float(fingerprint[place]),
            thresholds[metric].threshold,
            paint,
            width=width,
            style=paint.zone_mark(thresholds[metric].zone),
        )
        for label, metric, place in rows
    ]
