"""What the Inspect pane says of one token as lines: the map of its layers, attended positions, head statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

from rich.style import Style
from rich.text import Text

from geomcli.display import ZONE_GLYPHS, bar, printable, zone_label
from geomcli.fingerprint import BIN_ENTROPY, LOCAL, LOCAL_BINS, LONG, LONG_BINS, MID, MID_BINS, N_BINS, bin_edges
from geomcli.layers import HeadStats, LayerView, LogitStats
from geomcli.links import Link
from geomcli.spans import SpanReading
from geomcli.tui.session import Place, Session
from geomcli.tui.themes import Paint
from geomcli.tui.turn import Turn
from geomcli.tui.widgets.flow import quoted
from geomcli.zones import UNKNOWN

_BANDS = (
    ("local", LOCAL_BINS, "zone-syntax-floor"),
    ("mid", MID_BINS, "zone-semantic-bridge"),
    ("long", LONG_BINS, "zone-long-range"),
)
_LABEL = 6  # cells of a layer's name
_ZONE = 21  # cells of a layer's zone and confidence
_WIDEST_CELL = 5
_MOST_SOURCES = 8
_SEEN = 0.005  # what is less is .00


def short(value: float | None) -> str:
    """A share in four cells: .31, 1.00, –."""
    return "–".rjust(4) if value is None else f"{value:.2f}".removeprefix("0").rjust(4)


def cell_width(width: int) -> int:
    """Cells of one distance bin in a map of `width` cells; 3 at least, where the zones need the rest."""
    return max(3, min(_WIDEST_CELL, (width - _LABEL - _ZONE) // N_BINS))


def _distance(first: int) -> str:
    return str(first) if first < 1024 else f"{first // 1024}k"


def map_heading(paint: Paint, width: int) -> list[Text]:
    """Two rows: the bands over their bins, and the first distance of each bin."""
    cell = cell_width(width)
    bands = Text().append("layer".ljust(_LABEL), paint.fore("muted"))
    for name, bins, colour in _BANDS:
        room = (bins.stop - bins.start) * cell
        bands.append(f"{name} ".ljust(room - 1, "─") + " ", paint.fore(colour))
    bands.append("zone", paint.fore("muted"))
    # Narrow cells have room for every second number only.
    every = 1 if cell > 3 else 2
    ticks = Text().append("back".ljust(_LABEL), paint.fore("muted"))
    for number, (first, _) in enumerate(bin_edges()):
        if number % every == 0:
            ticks.append(_distance(first).ljust(cell * every), paint.fore("muted"))
    return [bands, ticks]


def map_row(view: LayerView, name: str, top: float, paint: Paint, width: int, *, chosen: bool) -> Text:
    """A layer: percent of its mass in each bin, darker to brighter up to `top`, then zone and confidence."""
    cell, histogram = cell_width(width), view.histogram
    row = Text().append(
        ("▶" if chosen else " ") + name.ljust(_LABEL - 1), paint.fore("accent" if chosen else "foreground", bold=chosen)
    )
    if histogram is None:
        return row.append("no histogram of this layer", paint.fore("muted"))
    for empty, masses in groupby(map(float, histogram), lambda mass: mass <= 0):
        if empty:
            row.append(("·".rjust(cell - 1) + " ") * len(list(masses)), paint.fore("muted"))
            continue
        for mass in masses:
            percent = round(mass * 100)
            text = "<1" if percent == 0 else str(percent)
            row.append(text.rjust(cell - 1) + " ", paint.ramp(mass / top) + paint.fore("foreground"))
    decision = view.decision
    assert decision is not None  # there is a histogram
    row.append(f"{ZONE_GLYPHS.get(decision.zone, '·')} {zone_label(decision.zone):<17}", paint.zone_mark(decision.zone))
    confidence = short(decision.confidence) if decision.zone != UNKNOWN else "   –"
    return row.append(confidence.strip(), paint.fore("foreground" if chosen else "muted"))


def layer_facts(view: LayerView, paint: Paint) -> Text:
    """Bands, entropies and sinks of the chosen layer on one line."""
    line = Text()
    f = view.fingerprint
    if f is not None:
        for name, place, colour in (
            ("local", LOCAL, "zone-syntax-floor"),
            ("mid", MID, "zone-semantic-bridge"),
            ("long", LONG, "zone-long-range"),
        ):
            line.append(f"{name} ", paint.fore(colour)).append(
                f"{short(float(f[place])).strip()}  ", paint.fore("foreground")
            )
        line.append("entropy ", paint.fore("muted")).append(f"{short(float(f[BIN_ENTROPY])).strip()}  ")
    if view.sink_mass is not None:
        line.append("sinks ", paint.fore("muted")).append(f"{short(view.sink_mass).strip()}  ")
    if view.entropy_bits is not None:
        line.append(f"{view.entropy_bits:.2f} ").append("bits", paint.fore("muted"))
    return line


def logit_facts(stats: LogitStats, paint: Paint) -> Text:
    """How sure the model was of the token, of all tokens, and between the first two."""
    muted = paint.fore("muted")
    line = Text().append("probability ", muted).append(f"{short(math.exp(min(0.0, stats.logprob))).strip()}  ")
    line.append("over all tokens ", muted).append(f"{stats.entropy_bits:.2f} ").append("bits  ", muted)
    return line.append("margin ", muted).append(f"{stats.margin:.2f}")


def position_heading(links: Sequence[Link], paint: Paint, width: int) -> Text:
    """Names of the columns of `position_row`."""
    right = "       p  share" + ("  content  rotation" if _split(links) else "")
    return Text().append(("   pos   back  token").ljust(max(20, width - len(right))) + right, paint.fore("muted"))


def _split(links: Sequence[Link]) -> bool:
    return any(link.content is not None for link in links)


def position_row(
    link: Link, session: Session, place: Place, turn: Turn, links: Sequence[Link], paint: Paint, width: int
) -> Text:
    """An attended position: how far back, its token, true probability, share of the links, the logit's two parts.

    `links`: all that are listed; the strongest of them fills its bar.
    """
    split = _split(links)
    target = session.place_of(place.turn, link.position)
    style = Style.from_meta({"place": tuple(target)}) if target is not None else Style()
    here = (turn.prompt_length or 0) + place.token - 1  # the query's own position
    row = Text().append(f"{link.position:>6}", paint.fore("muted") + style)
    back = "" if turn.prompt_length is None else str(here - link.position)
    row.append(f"{back:>7}  ", paint.fore("muted") + style)
    text = turn.text_at(link.position)
    name = Text("text not known" if text is None else quoted(text))
    right = 15 + (19 if split else 0)
    room = width - 15 - right
    name_room = max(6, min(28, room * 2 // 3))
    name.truncate(name_room, overflow="ellipsis", pad=True)
    row.append(name.plain, paint.fore("muted" if text is None else "foreground") + style)
    top = max((other.probability for other in links), default=1.0) or 1.0
    room -= name_room + 1
    length = bar(link.probability, top=top, width=room) if room > 1 else " " * max(0, room)
    row.append(" " + length, paint.fore("primary"))
    row.append(f"{short(link.probability):>8}", paint.fore("foreground", bold=True) + style)
    row.append(f"{short(link.share):>7}", paint.fore("muted") + style)
    if split:
        content = "–" if link.content is None else f"{link.content:.2f}"
        rotation = "–" if link.position_score is None else f"{link.position_score:+.2f}"
        row.append(f"{content:>9}", paint.fore("secondary") + style)
        row.append(f"{rotation:>10}", paint.fore("accent") + style)
    return row


def source_rows(reading: SpanReading, paint: Paint, width: int, *, sinks: bool) -> list[Text]:
    """A span's sources, the most read first: true mass as far as links show it, share of it outside sinks.

    `sinks`: with the sinks, which have no share.
    """
    muted = paint.fore("muted")
    listed = [mass for mass in reading.masses if mass.mass >= _SEEN and (sinks or mass.share is not None)]
    listed.sort(key=lambda mass: -mass.mass)
    left_out = len(listed) - _MOST_SOURCES
    top = max((mass.mass for mass in listed), default=1.0)
    name_room = min(28, max(12, width // 3))
    room = width - name_room - 20
    rows = [Text().append("  source".ljust(max(20, width - 15)) + "   mass  share", muted)]
    for mass in listed[:_MOST_SOURCES]:
        name = Text("  " + printable(mass.source))
        name.truncate(name_room, overflow="ellipsis", pad=True)
        length = bar(mass.mass, top=top, width=room) if room > 1 else ""
        row = Text().append(name.plain, paint.fore("foreground")).append(" " + length, paint.fore("secondary"))
        row.append(" " * max(1, width - 15 - row.cell_len))
        row.append(f"{short(mass.mass):>7}", paint.fore("foreground", bold=True))
        rows.append(row.append(f"{short(mass.share):>7}", muted))
    if left_out > 0:
        rows.append(Text().append(f"  … {left_out} more: geom spans", muted))
    counted = "1 token" if reading.read == 1 else f"{reading.read} tokens"
    note = f"links of {counted} show {short(reading.covered).strip()}"
    note += f"; a source may have up to {short(reading.unseen).strip()} more"
    if reading.lookback is not None:
        note += f"; lookback {short(reading.lookback).strip()}"
    return [*rows, Text().append(note, muted)]


def head_rows(stats: HeadStats, paint: Paint) -> list[Text]:
    """A table: head, entropy in bits, and three shares; the largest of each column stands out."""
    columns = (("bits", stats.entropy), ("sinks", stats.sink), ("prev", stats.prev), ("lookback", stats.lookback))
    rows = [Text().append("head" + "".join(f"{name:>9}" for name, _ in columns), paint.fore("muted"))]
    for head in range(len(stats.entropy)):
        row = Text().append(f"{head:>4}", paint.fore("muted"))
        for _, values in columns:
            value = values[head] if head < len(values) else None
            largest = value is not None and value == max(values)
            style = paint.fore("accent" if largest else "foreground", bold=largest)
            row.append("–".rjust(9) if value is None else f"{value:9.2f}", style)
        rows.append(row)
    return rows
