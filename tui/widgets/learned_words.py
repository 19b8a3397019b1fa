"""What a discovery says of a window and of a turn, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.style import Style
from rich.text import Text

from geomcli.display import NAMELESS, ZONE_GLYPHS, bar, cluster_name
from geomcli.tui.learned import Learned, Tally, words
from geomcli.tui.themes import Paint
from geomcli.zones import ZONES_V1

if TYPE_CHECKING:
    from geomcli.discovery.classification import OffManifold
    from geomcli.discovery.pipeline import Found

_MOST = 3  # clusters of a turn
UNCALIBRATED = "uncalibrated"
ALERT = next(rule.action for rule in ZONES_V1.rules if rule.zone == "diffuse")


def short(value: float) -> str:
    """A positive number with two digits, without a zero in front: .31, 1.20."""
    return f"{value:.2f}".removeprefix("0")


def letter(found: Found, paint: Paint) -> Text:
    """A cluster's letter and glyph in the colour of its zone."""
    text = Text().append(f"{cluster_name(found.cluster)} ", paint.zone_mark(found.zone.zone) + Style(bold=True))
    return text.append(f"{ZONE_GLYPHS.get(found.zone.zone, NAMELESS)} ", paint.zone_mark(found.zone.zone))


def off_words(off: OffManifold, paint: Paint) -> Text:
    """Like "off .12/.25 ✓": the angle and the radius that holds it or does not."""
    text = Text().append(f"off {short(off.angle)}/{short(off.radius)} ", paint.fore("muted"))
    return text.append("✓" if off.inside else "!", paint.status("OK" if off.inside else "WARN"))


def off_line(off: OffManifold, paint: Paint) -> Text:
    """Like "off manifold .12 of .25 rad from A ✓": the window's angle, and the one that the cluster keeps."""
    text = Text().append("off manifold ", paint.fore("muted")).append(short(off.angle), paint.fore("foreground"))
    text.append(f" of {short(off.radius)} rad from {cluster_name(off.cluster)} ", paint.fore("muted"))
    return text.append("✓" if off.inside else "!", paint.status("OK" if off.inside else "WARN"))


def router_rows(
    tally: Tally, learned: Learned, off: OffManifold | None, paint: Paint, width: int, *, compact: bool = False
) -> list[Text]:
    """The clusters that a turn's tokens are in, how many are in none and what that asks for, the window's distance."""
    classifier = learned.classifier
    if classifier is None or not tally.n:
        return []
    muted, plain, found = paint.fore("muted"), paint.fore("foreground"), classifier.artifacts.manifest.clusters
    sure = f"confidence {short(tally.confidence)}" if learned.calibrated else UNCALIBRATED
    head = Text().append("MANIFOLD  ", paint.fore("primary", bold=True))
    head.append(f"{1 - tally.off / tally.n:.0%} on it", plain + Style(bold=True)).append(f"  {sure}", muted)
    if compact:
        for label, share in tally.shares()[:2]:
            head.append("  ").append_text(letter(found[label], paint)).append(f"{share:.0%}", plain)
        if tally.off:
            head.append(f"  {ALERT}", paint.fore("warning"))
        return [head]
    rows = [head]
    for label, share in tally.shares()[:_MOST]:
        row = letter(found[label], paint).append(f"{share:4.0%} ", plain)
        row.append(bar(share, width=8), paint.zone_mark(found[label].zone.zone))
        rows.append(row.append(f" {words(', '.join((found[label].zone.zone, *_traits(found[label]))))}", muted))
    if tally.off:
        rows.append(off_advice(tally, paint))
    if off is not None:
        rows.append(off_line(off, paint))
    for row in rows:
        row.truncate(width, overflow="ellipsis")
    return rows


def _traits(found: Found) -> list[str]:
    return [trait.name for trait in found.traits]


def off_advice(tally: Tally, paint: Paint) -> Text:
    """What tokens in no cluster ask for, in the words of the ruleset's rule for diffuse attention."""
    share = Text().append(f"{NAMELESS}   {tally.off / tally.n:4.0%} ", paint.fore("foreground"))
    return share.append(f"{ALERT}: look at raw links", paint.fore("warning"))
