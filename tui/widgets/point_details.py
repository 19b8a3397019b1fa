"""The point under the manifold's cursor: what it is, its numbers, and what a discovery says of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from geomcli.clusters import NOISE
from geomcli.compass import HALT_THRESHOLD
from geomcli.display import ZONE_GLYPHS, bar, cluster_name, printable, zone_label
from geomcli.fingerprint import BIN_ENTROPY, LOCAL, LONG, MID, N_BINS
from geomcli.interpretation import portrait
from geomcli.store_queries import TracePoint
from geomcli.tui.widgets import learned_lines
from geomcli.tui.widgets.histogram import histogram
from geomcli.tui.widgets.learned_words import off_words
from geomcli.tui.widgets.lens import token_name
from geomcli.tui.widgets.manifold_texts import ManifoldText
from geomcli.tui.widgets.meter import meter
from geomcli.tui.widgets.scatter import HERE
from geomcli.zones import UNKNOWN, ZONES_V1

if TYPE_CHECKING:
    from geomcli.tui.app import GeomApp
    from geomcli.tui.themes import Paint

_COMPACT = 8  # rows below which a point is shown in three lines


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
        lines = [self._head(), *self._names(width), *learned_lines.point_lines(manifold, paint, width), Text("")]
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
        """Empty where there are no clusters, and where those of the map are shown."""
        manifold, grouping, cluster = self.manifold, self.manifold.grouping, self.manifold.cluster
        if cluster is None or not grouping.found or manifold.on_map:
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
            if (off := manifold.off) is not None:
                lines[1].append("  ").append_text(off_words(off, paint))
            lines.append(Text(f"{turn.id}  {printable(turn.model)}", paint.fore("muted")))
        if said := self._cluster():
            lines[1 if manifold.token is not None else 2].append("  ").append_text(said)
        if learned := learned_lines.point_words(manifold, paint):
            lines[2] = learned.append("  ").append_text(lines[2])
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
