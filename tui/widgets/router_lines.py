"""The router's parts as lines of text: the zone now, what it recommends, the evidence, the compass, a decision."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.style import Style
from rich.text import Text

from geomcli.compass import DRIFT_WINDOW, HALT_THRESHOLD, WARN_THRESHOLD
from geomcli.display import ZONE_GLYPHS, bar, sparkline, zone_label
from geomcli.recommendation import MAJORITY, WINDOW, Change, Decision, Recommendation, Settled, capture_mode
from geomcli.tui.steering import Applied
from geomcli.tui.themes import Paint
from geomcli.tui.turn import Token, Turn
from geomcli.tui.widgets.meter import meter
from geomcli.zones import UNKNOWN, ZONES_V1

METRICS = {"local": "local", "mid": "mid", "long": "long", "bin_entropy": "entropy", "ripple": "ripple"}
CONVENTION = "Conventions of the ruleset; that they make answers better has not been measured."


def short(value: float) -> str:
    """A number in [-1, 1] without its zero: .62, −.04, 1.00."""
    text = f"{abs(value):.2f}".removeprefix("0")
    return ("−" if value < 0 and text != ".00" else "") + text


def said(text: str, style: Style) -> Text:
    """Text to which other styles can be appended: the style of a whole Text would go on in them."""
    return Text().append(text, style)


def wrapped(text: str, width: int, style: Style, *, bullet: str = "") -> list[Text]:
    """A sentence in lines of at most `width` cells; those after the first are indented under the bullet."""
    lines = textwrap.wrap(
        text, max(8, width), initial_indent=bullet, subsequent_indent=" " * len(bullet), break_long_words=True
    )
    return [said(line, style) for line in lines]


def zone_mark(zone: str, paint: Paint, *, bold: bool = False) -> Text:
    """Glyph and name of a zone in its colour."""
    return said(f"{ZONE_GLYPHS.get(zone, '·')} {zone_label(zone)}", paint.zone_mark(zone) + Style(bold=bold or None))


def votes(settled: Settled, paint: Paint) -> Text:
    """How many of the last steps voted for the zone: filled and hollow dots, and what it takes to change it."""
    dots = "●" * settled.votes + "○" * (settled.of - settled.votes)
    text = said(dots.ljust(WINDOW), paint.zone_mark(settled.zone))
    words = f"  {settled.votes} of the last {settled.of} steps; {MAJORITY} settle a zone"
    return text.append(words, paint.fore("muted"))


def strips(turn: Turn, settled: Sequence[Settled], paint: Paint, width: int) -> list[Text]:
    """Two rows of glyphs, a step a cell: each step's own zone, and the settled one below it."""
    kept = settled[-max(1, width - 9) :]
    own, after = said("steps    ", paint.fore("muted")), said("settled  ", paint.fore("muted"))
    for row, zones in (
        (own, (turn.tokens[entry.token_index].zone for entry in kept)),
        (after, (entry.zone for entry in kept)),
    ):
        for zone, run in groupby(zones):
            row.append(ZONE_GLYPHS.get(zone, "·") * len(list(run)), paint.zone_mark(zone))
    return [own, after]


def _asked(fields: Mapping[str, Any]) -> dict[str, str]:
    """What a run was asked with, as words."""
    values = {
        name: "unset" if fields.get(name) is None else f"{fields[name]:g}"
        for name in ("temperature", "top_p")
        if isinstance(fields.get(name), int | float | None)
    }
    return {**values, "capture": capture_mode(fields) or "the server's"}


def advice_rows(found: Recommendation, fields: Mapping[str, Any], paint: Paint) -> list[Text]:
    """A table of what this run was asked with and what is advised; what differs is marked."""
    asked, advice, muted = _asked(fields), found.advice, paint.fore("muted")
    advised = {
        "temperature": "as asked" if advice.temperature is None else f"{advice.temperature:g}",
        "top_p": "as asked" if advice.top_p is None else f"{advice.top_p:g}",
        "capture": advice.capture,
    }
    rows = [said(f"{'':13}{'asked with':<14}advised", muted)]
    for name, value in advised.items():
        given = asked.get(name, "unset")
        other = value not in ("as asked", given)
        row = said(f"{name:<13}", muted).append(f"{given:<14}", paint.fore("foreground"))
        rows.append(row.append(value, paint.fore("accent" if other else "foreground", bold=other)))
    return rows


def evidence_rows(found: Recommendation, paint: Paint, width: int) -> list[Text]:
    """A meter for each rule: value, bar with a tick at the threshold, threshold, margin."""
    if not found.evidence:
        return wrapped("The thresholds of this trace's ruleset are not known here.", width, paint.fore("muted"))
    rows = [said("value".rjust(15) + "threshold  margin".rjust(max(18, width - 15)), paint.fore("muted"))]
    for item in found.evidence:
        decides = item.zone == found.settled.zone
        row = said(f"{ZONE_GLYPHS.get(item.zone, '·')} ", paint.zone_mark(item.zone) + Style(bold=decides or None))
        row.append_text(
            meter(
                METRICS.get(item.metric, item.metric),
                item.value,
                item.threshold,
                paint,
                width=width - 9,
                style=paint.zone_mark(item.zone),
            )
        )
        margin = "–" if item.margin is None else f"{'+' if item.margin >= 0 else ''}{short(item.margin)}"
        over = item.margin is not None and item.margin >= 0
        rows.append(row.append(margin.rjust(7), paint.fore("success" if over else "muted", bold=over)))
    return rows


def rule_rows(paint: Paint) -> list[Text]:
    """The ruleset as a table: zone, from which value on, and what it advises."""
    rows = [said(f"{'zone':<20}{'when':<15}temp  top_p", paint.fore("muted"))]
    for rule in ZONES_V1.rules:
        mark = zone_mark(rule.zone, paint)
        mark.append(" " * (20 - mark.cell_len))
        when = f"{METRICS.get(rule.metric, rule.metric)} ≥ {short(rule.threshold)}"
        mark.append(f"{when:<15}", paint.fore("foreground"))
        rows.append(mark.append(f"{rule.temperature:<6g}{rule.top_p:g}", paint.fore("foreground")))
    return rows


def drift_meter(drift: float, paint: Paint, width: int, status: str) -> Text:
    """The drift in [0, 1] as a bar, with ticks where WARN and HALT begin."""
    line = bar(drift, width=width)
    text = Text()
    for cell, glyph in enumerate(line):
        threshold = next((t for t in (WARN_THRESHOLD, HALT_THRESHOLD) if int(t * width) == cell), None)
        if threshold is None:
            text.append(glyph, paint.status(status))
        else:
            over = drift >= threshold
            text.append("┃" if over else "┆", paint.fore("error" if threshold == HALT_THRESHOLD else "warning"))
    return text


def _ticks(width: int, paint: Paint) -> Text:
    warn, halt = int(WARN_THRESHOLD * width), int(HALT_THRESHOLD * width)
    names = (f"warn {short(WARN_THRESHOLD)}", f"halt {short(HALT_THRESHOLD)}")
    # Each name ends under its tick.
    left = names[0].rjust(warn + 1)
    text = said(left, paint.fore("warning"))
    return text.append(names[1].rjust(max(len(names[1]) + 1, halt + 1 - len(left))), paint.fore("error"))


def compass_rows(token: Token, turn: Turn, paint: Paint, width: int, *, compact: bool = False) -> list[Text]:
    """Status, drift and its change, ripple; the meter with both thresholds; the last steps."""
    muted = paint.fore("muted")
    head = said("COMPASS  ", paint.fore("primary", bold=True))
    ripple = token.step.get("ripple")
    rippling = "ripple –" if ripple is None else f"ripple {short(ripple)}"
    if token.drift is None:
        head.append(f"no drift before step {DRIFT_WINDOW}", muted)
        return [head.append(f"  {rippling}", muted)]
    mark = {"OK": "✓", "WARN": "!", "HALT": "‼"}.get(token.status, "?")
    head.append(f"{mark} {token.status}", paint.status(token.status))
    head.append(f"  drift {short(token.drift)}", paint.fore("foreground", bold=True))
    before = turn.tokens[token.index - 1].drift if token.index else None
    if before is not None:
        change = token.drift - before
        head.append(f"  {'+' if change >= 0 else ''}{short(change)}", muted)
    head.append(f"  {rippling}", muted)
    rows = [head, drift_meter(token.drift, paint, width, token.status)]
    if compact:
        return rows
    rows.append(_ticks(width, paint))
    room = max(8, width - 8)
    past = [t.drift for t in turn.tokens[max(0, token.index + 1 - room) : token.index + 1] if t.drift is not None]
    line = said(f"last {len(past)}".ljust(8), muted)
    rows.append(line.append(sparkline(past, top=HALT_THRESHOLD, width=room), paint.status(token.status)))
    return rows + wrapped("Uncalibrated: a meter for a change of regime, not for wrong answers.", width, muted)


def firewall_rows(token: Token, turn: Turn, paint: Paint, width: int) -> list[Text]:
    """What a firewall said of the token, and where it halted; [] where none watched."""
    found = token.judged
    if found is None:
        return []
    mark = {"OK": "✓", "WARN": "!", "HALT": "‼"}.get(found.status, "?")
    head = said("FIREWALL ", paint.fore("primary", bold=True))
    head.append(f"{mark} {found.status or 'not judged'}", paint.status(found.status or "WARN"))
    if found.score is not None:
        head.append(f"  {found.detector} {short(found.score)}", paint.fore("foreground", bold=True))
    head.append(f"  {found.action}, {found.caveat}", paint.fore("muted"))
    if turn.halt is None:
        return [head]
    place, halt = turn.halt
    return [head, *wrapped(f"HALT at token {place + 1}: {halt.consequence}.", width, paint.fore("error"))]


def change_words(changes: Sequence[Change]) -> str:
    """Changes of a request on one line, like "temp 0 → 0.6  top_p – → 0.95"."""

    def word(value: float | str | None) -> str:
        return "–" if value is None else value if isinstance(value, str) else f"{value:g}"

    # The modes of capture say by themselves what they are.
    names = {"temperature": "temp ", "capture": ""}
    return "  ".join(f"{names.get(c.field, c.field + ' ')}{word(c.before)} → {word(c.after)}" for c in changes)


def decision_row(decision: Decision, paint: Paint, *, clock: bool, action: bool) -> Text:
    """When, zone, confidence, action, and what the advice would have changed; time and action where wanted."""
    muted = paint.fore("muted")
    row = said(f"{'#' + str(decision.token_index):>6} ", paint.fore("foreground"))
    if clock:
        at = decision.time_ms
        row.append(f"{'–' if at is None else time.strftime('%H:%M:%S', time.localtime(at / 1000)):<9}", muted)
    mark = zone_mark(decision.zone, paint)
    row.append_text(mark).append(" " * (19 - mark.cell_len))
    row.append(f"{short(decision.confidence):<5}", paint.fore("foreground"))
    if action:
        row.append(f"{decision.action:<20}", muted)
    if decision.zone == UNKNOWN and not decision.changes:
        return row.append("nothing: no zone, no advice", muted)
    if not decision.changes:
        return row.append("nothing: it was asked so", muted)
    return row.append(change_words(decision.changes), paint.fore("foreground"))


def turn_row(number: int, turn: Turn, applied: Applied | None, scope: str, paint: Paint) -> Text:
    """The row above a turn's decisions: what the router had changed in its request. `scope`: for how long, in words."""
    row = said(f"answer {number + 1}  ", paint.fore("primary", bold=True))
    if applied is None:
        row.append("nothing applied: asked with ", paint.fore("muted"))
        words = _asked(turn.trace.header.get("capture") or {})
        return row.append("  ".join(f"{n} {v}" for n, v in words.items()), paint.fore("muted"))
    row.append(f"applied {scope}: ", paint.fore("accent", bold=True))
    return row.append(change_words(applied.changes) or "it was asked so already", paint.fore("accent"))


def decision_heading(paint: Paint, *, clock: bool, action: bool) -> Text:
    """Names of the columns of `decision_row`."""
    line = f" {'token':>6} {'time'.ljust(9) if clock else ''}{'zone':<19}{'conf':<5}"
    return said(f"{line}{'action'.ljust(20) if action else ''}would have changed", paint.fore("muted"))
