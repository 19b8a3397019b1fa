"""A comparison in lines: its sides and similarity above, everything else in a report below each other."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap

from rich.style import Style
from rich.text import Text

from geomcli.comparison import Comparison, Similarity
from geomcli.differences import Metric
from geomcli.display import ZONE_GLYPHS, bar, printable, zone_label
from geomcli.fingerprint import N_BINS
from geomcli.interpretation import AxisReading
from geomcli.tui.comparing import NAMES, Comparing
from geomcli.tui.session import Changed
from geomcli.tui.themes import Paint
from geomcli.tui.turn import Turn
from geomcli.tui.widgets.histogram import histogram
from geomcli.tui.widgets.text import SessionText

SIDE_COLOURS = ("primary", "accent")
# Shorter than the report's column.
_LABELS = {
    "entropy_bits": "entropy (bits)", "zone_confidence": "zone confidence", "tokens_per_second": "tokens/s",
}  # fmt: skip
_SPOKEN_DELTA = 0.01  # of a histogram's bin: below it nothing is said


class ComparisonHead(SessionText):
    """Three lines: A, B, and how alike they are."""

    WATCHES = Changed.VIEW | Changed.TURNS | Changed.TOKENS

    def __init__(self, comparing: Comparing, *, id: str) -> None:  # noqa: A002
        super().__init__(comparing.session, id=id)
        self.comparing = comparing

    def lines(self) -> list[Text]:
        sides = self.comparing.sides()
        lines = [self._side(n, sides[n] if n < len(sides) else None) for n in range(2)]
        result = self.comparing.result
        lines.append(Text("") if result is None else self._similarity(result))
        return lines

    def _side(self, number: int, turn: Turn | None) -> Text:
        paint, muted = self.paint, self.paint.fore("muted")
        line = Text().append(f" {NAMES[number]}  ", paint.fore(SIDE_COLOURS[number], bold=True))
        if turn is None:
            return line.append("not chosen yet", muted)
        line.append(turn.id, paint.fore("foreground", bold=True))
        line.append(f"  {printable(turn.model)}  {len(turn.tokens)} tok", muted)
        if not turn.finished:
            line.append("  still being written", paint.fore("warning"))
        elif turn.error:
            line.append("  cut off", paint.fore("warning"))
        line.append(f"  {title_of(turn)}", paint.fore("foreground"))
        line.truncate(max(1, self.size.width - 1), overflow="ellipsis")
        return line

    def _similarity(self, result: Comparison) -> Text:
        paint, muted, s = self.paint, self.paint.fore("muted"), result.similarity
        line = Text().append(" similarity ", muted).append(f"{s.overall:.3f} ", paint.fore("success", bold=True))
        if self.size.width >= 100:
            line.append(bar(s.overall, width=16), paint.fore("success"))
        for name, value in (*_parts(s), ("same text", result.same_tokens)):
            line.append(f"  {name} ", muted).append("-" if value is None else f"{value:.2f}", paint.fore("foreground"))
        line.truncate(max(1, self.size.width), overflow="ellipsis")
        return line


def title_of(turn: Turn) -> str:
    """The question of a trace, in one line."""
    asked = [str(message["content"]) for message in turn.prompt if message.get("role") == "user"]
    return printable(" ".join(asked[-1].split())) if asked else "(no question)"


def _parts(similarity: Similarity) -> tuple[tuple[str, float | None], ...]:
    return ("direction", similarity.direction), ("zones", similarity.zones), ("entropy", similarity.entropy)


class Report(SessionText):
    """What differs: sentences, zones, metrics, distances, the shift of the fingerprint, notes."""

    WATCHES = Changed.NOTHING

    def __init__(self, comparing: Comparing, *, id: str) -> None:  # noqa: A002
        super().__init__(comparing.session, id=id)
        self.comparing = comparing

    def renew(self) -> None:
        """Show the comparison that there is now."""
        self.refresh(layout=True)

    def lines(self) -> list[Text]:
        result = self.comparing.result
        return [] if result is None else list(report(result, self.paint, max(30, self.container_size.width - 1)))


def report(c: Comparison, paint: Paint, width: int) -> Iterator[Text]:
    """The whole report in lines of `width` cells."""
    tested = c.significance.tested
    how = f"{c.significance.clear} of {tested} tested exceed noise" if tested else "too few steps to test"
    yield from _section("DIFFERENCES", f"B against A; {how}", paint, width, first=True)
    for sentence in c.differences or ("None that is worth a word.",):
        yield from _sentence(sentence, paint, width)
    yield from _section("SIMILARITY", f"{c.similarity.overall:.3f}, the mean of its parts", paint, width)
    yield from _similarity(c, paint, width)
    yield from _section("ZONES", "share of the tokens", paint, width)
    yield from _zones(c, paint, width)
    yield from _section("METRICS", "", paint, width)
    for metric in c.metrics:
        if metric.a is not None or metric.b is not None:
            yield _metric(metric, paint, width)
    yield from _section("DISTANCE", f"mass by tokens back, {c.histogram.angle:.3f} rad apart", paint, width)
    yield from _distances(c, paint, width)
    fitted = c.interpretation.kind == "fitted"
    how = f"PCA axes of {c.interpretation.n} stored traces (t: named)" if fitted else "heuristic axes (t: PCA)"
    yield from _section("SHIFT", how, paint, width)
    for reading in c.interpretation.axes:
        yield from _axis(reading, paint, width)
    if c.notes:
        yield from _section("NOTES", "", paint, width)
        for note in c.notes:
            yield from _sentence(note, paint, width)


def _section(name: str, note: str, paint: Paint, width: int, *, first: bool = False) -> Iterator[Text]:
    if not first:
        yield Text("")
    line = Text().append(name, paint.fore("primary", bold=True)).append(f"  {note}", paint.fore("muted"))
    line.truncate(width, overflow="ellipsis")
    yield line


def _sentence(sentence: str, paint: Paint, width: int) -> Iterator[Text]:
    for n, part in enumerate(wrap(printable(sentence), width - 2)):
        yield Text().append("  " if n else "• ", paint.fore("muted")).append(part, paint.fore("foreground"))


def _similarity(c: Comparison, paint: Paint, width: int) -> Iterator[Text]:
    meanings = (
        "cosine of mean fingerprints",
        f"same zone, of {c.zone_pairs} aligned" if c.similarity.zones is not None else "no aligned tokens have one",
        "1 - difference of bin entropies",
    )
    rows = [(*part, meaning) for part, meaning in zip(_parts(c.similarity), meanings, strict=True)]
    for name, value, meaning in (*rows, ("same text", c.same_tokens, "is no part of it")):
        line = Text().append(f"{name:<10}", paint.fore("muted"))
        line.append("    - " if value is None else f"{value:.3f} ", paint.fore("foreground"))
        line.append(bar(value or 0.0, width=max(4, width - 16 - 32)), paint.fore("success"))
        line.append(f" {meaning}", paint.fore("muted"))
        line.truncate(width, overflow="ellipsis")
        yield line


def _zones(c: Comparison, paint: Paint, width: int) -> Iterator[Text]:
    room = max(3, (width - 18 - 10 - 12) // 2)
    for share in c.zones:
        line = Text().append(f"{ZONE_GLYPHS.get(share.zone, '·')} ", paint.zone_mark(share.zone))
        line.append(f"{zone_label(share.zone):<16}", paint.fore("muted"))
        for value, colour in zip((share.a, share.b), SIDE_COLOURS, strict=True):
            line.append(f"{value:4.0%} ", paint.fore("foreground")).append(bar(value, width=room), paint.fore(colour))
        delta = round(share.delta * 100)
        yield line.append(f" {delta:+d} points".rjust(12) if delta else "", _delta_style(share.delta, paint))


def _metric(m: Metric, paint: Paint, width: int) -> Text:
    top = max(abs(m.a or 0.0), abs(m.b or 0.0)) or 1.0
    room = max(3, (width - 17 - 2 * 8 - 15) // 2)
    line = Text().append(f"{_LABELS.get(m.name, m.label):<17}", paint.fore("muted"))
    for value, colour in zip((m.a, m.b), SIDE_COLOURS, strict=True):
        line.append(f"{_number(value, m.unit):>6} ", paint.fore("foreground"))
        line.append(bar(value or 0.0, top=top, width=room), paint.fore(colour)).append(" ")
    delta = "" if m.delta is None else f"{'+' if m.delta >= 0 else '-'}{_number(abs(m.delta), m.unit)}"
    relative = "" if m.relative is None else f"{m.relative:+.0%}"
    relative = relative if len(relative) <= 6 else ""
    style = _delta_style(m.delta or 0.0, paint)
    return line.append(f"{delta:>8}", style).append(f"{relative:>7}", paint.fore("muted"))


def _delta_style(delta: float, paint: Paint) -> Style:
    """In the colour of the side that has more."""
    return paint.fore("muted" if not delta else SIDE_COLOURS[1] if delta > 0 else SIDE_COLOURS[0])


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    if unit == "tokens":
        return f"{value:.0f}"
    return f"{value:.2f}"[:6] if unit in ("bits", "tokens/s") else f"{value:.3f}"


def _distances(c: Comparison, paint: Paint, width: int) -> Iterator[Text]:
    yield (
        Text()
        .append("▆ A, by band   ", paint.fore("muted"))
        .append("━", paint.fore("foreground", bold=True))
        .append(" B   ▲ B has more   ▼ B has less", paint.fore("muted"))
    )
    *rows, axis = histogram(list(c.histogram.a), paint, width=width, height=4, other=list(c.histogram.b))
    yield from rows
    column = max(1, width // N_BINS)
    deltas = Text()
    for delta in c.histogram.delta:
        glyph = "▲" if delta >= _SPOKEN_DELTA else "▼" if delta <= -_SPOKEN_DELTA else "·"
        style = _delta_style(0.0 if glyph == "·" else delta, paint)
        deltas.append(glyph.ljust(column), style)
    yield deltas
    yield axis


def _axis(reading: AxisReading, paint: Paint, width: int) -> Iterator[Text]:
    line = Text().append(f"{reading.value:+.3f} ", paint.fore("foreground", bold=True))
    line.append(reading.name, paint.fore("foreground"))
    if reading.explained is not None:
        line.append(f"  {reading.explained:.0%} of the variance", paint.fore("muted"))
    line.truncate(width, overflow="ellipsis")
    yield line
    for part in wrap(f"{reading.sentence}.", width - 2):
        yield Text(f"  {part}", paint.fore("muted"))
