"""What a discovery says of the manifold's points, as lines of text: of the chosen one, of the plane it has drawn."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap
from typing import TYPE_CHECKING

from rich.text import Text

from geomcli.clusters import NOISE
from geomcli.display import NAMELESS, printable
from geomcli.tui.learned import Learned, words
from geomcli.tui.manifold import Manifold
from geomcli.tui.mapping import ELSEWHERE, Mapping
from geomcli.tui.themes import Paint
from geomcli.tui.widgets.learned_words import UNCALIBRATED, letter, off_line, short

if TYPE_CHECKING:
    from geomcli.discovery.classification import Classification


def point_lines(manifold: Manifold, paint: Paint, width: int) -> list[Text]:
    """The chosen point against the discovery: cluster, on or off the manifold, confidence, distance; [] without one."""
    found = manifold.classification
    if found is None:
        return []
    muted, nearest = paint.fore("muted"), manifold.mapping.found[found.nearest]
    if found.on_manifold:
        parts = wrap(words(", ".join((nearest.zone.zone, *found.traits))), max(8, width - 4)) or [""]
        first = letter(nearest, paint).append(parts[0], paint.zone_mark(nearest.zone.zone))
        lines = [first, *(Text(f"    {part}", paint.zone_mark(nearest.zone.zone)) for part in parts[1:])]
    else:
        first = Text().append(f"{NAMELESS} noise, nearest is ", muted)
        lines = [first.append_text(letter(nearest, paint))]
    lines.append(_verdict(found, manifold.learned, paint))
    of = "" if manifold.point is None else " of its mean"
    said = f"distance{of} {found.distance:.2f} of radius {found.radius:.2f}"
    lines.append(Text(said, muted))
    if (off := manifold.off) is not None:
        lines.append(off_line(off, paint))
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines


def point_words(manifold: Manifold, paint: Paint) -> Text:
    """`point_lines` in a few words; empty without a discovery."""
    found = manifold.classification
    if found is None:
        return Text("")
    nearest = manifold.mapping.found[found.nearest]
    text = letter(nearest, paint) if found.on_manifold else Text().append("noise near ", paint.fore("muted"))
    if found.on_manifold:
        text.append(f"{words(nearest.name)}  ", paint.zone_mark(nearest.zone.zone))
    else:
        text.append_text(letter(nearest, paint)).append(" ")
    said = manifold.learned.confidence(found)
    text.append_text(_on(found, paint)).append(f" {UNCALIBRATED if said is None else short(said)}", paint.fore("muted"))
    return text.append(f"  {found.distance:.2f}/{found.radius:.2f}", paint.fore("muted"))


def _on(found: Classification, paint: Paint) -> Text:
    on = found.on_manifold
    return Text().append("on manifold" if on else "off manifold", paint.fore("success" if on else "warning", bold=True))


def _verdict(found: Classification, learned: Learned, paint: Paint) -> Text:
    said = learned.confidence(found)
    return _on(found, paint).append(
        f"  {UNCALIBRATED if said is None else f'confidence {said:.2f}'}", paint.fore("muted")
    )


def plane_line(manifold: Manifold, width: int) -> str:
    """What the learned map is, and how many of the points are on the manifold."""
    classifier = manifold.learned.classifier
    assert classifier is not None
    m, labels = classifier.artifacts.manifest, manifold.mapping.clusters(len(manifold.cloud))
    placed, on = int((labels != ELSEWHERE).sum()), int((labels >= 0).sum())
    kind = "tokens" if manifold.of_session else "traces"
    method = printable(m.map).upper()
    clusters = f"{len(m.clusters)} cluster{'s' if len(m.clusters) > 1 else ''}"
    if manifold.of_session and manifold.learned.of_requests:
        return (
            f" Learned map: {method} of {m.n:,} requests, {clusters}. Tokens are drawn there, and are not classified."
        )
    long = (
        f" Learned map: {method} of {m.n:,} fingerprints, {clusters}, {m.noise / m.n:.0%} noise. "
        f"{on:,} of {placed:,} {kind} on the manifold."
    )
    near = f" Learned map ({method} of {m.n:,}): {clusters}, {m.noise / m.n:.0%} noise; {on:,} of {placed:,} on it"
    return long if len(long) <= width else near


def problem_line(manifold: Manifold, key: str) -> str:
    """Why there is no learned map of these points although there is a discovery; "" where nothing is to be said."""
    learned = manifold.learned
    if not learned.looked or (learned.classifier is None and not learned.problem):
        return ""
    said = learned.why_not(manifold.model) or learned.plane_problem
    return f" Discovery not used ({key} says more): {printable(said)}" if said else ""


def legend_items(manifold: Manifold, paint: Paint) -> Iterator[Text]:
    """The clusters of the map: their shares of it, or, where points are drawn as clusters, of the points."""
    mapping, muted, plain = manifold.mapping, paint.fore("muted"), paint.fore("foreground")
    classifier = manifold.learned.classifier
    assert classifier is not None
    m = classifier.artifacts.manifest
    if manifold.grouping.shown:
        yield from _counts(mapping, len(manifold.cloud), paint)
    else:
        for found in mapping.found:
            yield letter(found, paint).append(f"{words(found.name)} ", muted).append(f"{found.share:.0%}", plain)
    yield Text().append("⠿ ", paint.dimmed("")).append("noise ", muted).append(f"{m.noise / m.n:.0%}", plain)


def _counts(mapping: Mapping, n: int, paint: Paint) -> Iterator[Text]:
    labels, muted = mapping.clusters(n), paint.fore("muted")
    placed = max(1, int((labels != ELSEWHERE).sum()))
    for found in mapping.found:
        if count := int((labels == found.cluster).sum()):
            item = letter(found, paint).append(f"{words(found.name)} ", muted)
            yield item.append(f"{count:,} {count / placed:.0%}", paint.fore("foreground"))
    if count := int((labels == NOISE).sum()):
        item = Text().append(f"{NAMELESS} off manifold ", muted)
        yield item.append(f"{count:,} {count / placed:.0%}", paint.fore("foreground"))
