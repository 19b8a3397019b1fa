"""The three tabs of the lens as lines of text: links, signal, experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.style import Style
from rich.text import Text

from geomcli.compass import HALT_THRESHOLD, WARN_THRESHOLD
from geomcli.display import ZONE_GLYPHS, bar, sparkline, zone_label
from geomcli.links import Link, layers_of
from geomcli.tui import cache
from geomcli.tui.session import Place, Session
from geomcli.tui.themes import Paint
from geomcli.tui.turn import Token, Turn
from geomcli.tui.widgets.flow import quoted
from geomcli.tui.widgets.histogram import histogram
from geomcli.tui.widgets.learned_words import off_line
from geomcli.tui.widgets.meter import meter
from geomcli.tui.widgets.router_lines import firewall_rows
from geomcli.zones import UNKNOWN

if TYPE_CHECKING:
    from geomcli.discovery.classification import OffManifold

_METRICS = {"local": "local", "mid": "mid", "long": "long", "bin_entropy": "entropy", "ripple": "ripple"}


def _number(value: float) -> str:
    """A probability in four cells: .31, 1.00."""
    return "1.00" if value >= 0.995 else f"{value:.2f}"[1:].rjust(4)


def links_lines(
    session: Session,
    place: Place,
    token: Token,
    turn: Turn,
    paint: Paint,
    width: int,
    *,
    most: int = 16,
    notes: bool = True,
) -> list[Text]:
    """Attended positions of a token: position, text, bar, true probability, share of the links shown."""
    links = token.links(session.layer)
    if not links:
        return _no_links(token, paint)
    shown = [link for link in links if session.show_sinks or not turn.is_sink(link.position)][:most]
    lines = []
    split = session.derotated and any(link.content is not None for link in shown)
    if notes:
        lines.append(_heading(split, width, paint))
    top = max((link.probability for link in shown), default=1.0)
    for link in shown:
        target = session.place_of(place.turn, link.position)
        style = Style.from_meta({"place": tuple(target)}) if target is not None else Style()
        lines.append(_row(link, turn.text_at(link.position), split, top, width, paint, style))
    if notes:
        lines += _notes(session, token, turn, links, paint)
    return lines


def _heading(split: bool, width: int, paint: Paint) -> Text:
    right = "content  rotation    p" if split else "p share"
    return Text("  pos token".ljust(width - len(right)) + right, paint.fore("muted"))


def _row(link: Link, text: str | None, split: bool, top: float, width: int, paint: Paint, style: Style) -> Text:
    name = "?" if text is None else quoted(text)
    row = Text(f"{link.position:>5} ", paint.fore("muted") + style)
    if split:
        cells = Text(name, paint.fore("foreground") + style)
        cells.truncate(max(6, width - 6 - 22), overflow="ellipsis", pad=True)
        row.append_text(cells)
        row.append("" if link.content is None else f"{link.content:>8.2f}", paint.fore("secondary") + style)
        row.append("" if link.position_score is None else f"{link.position_score:>+9.2f}", paint.fore("accent") + style)
        return row.append(f" {_number(link.probability)}", paint.fore("foreground", bold=True) + style)
    room = max(6, min(14, (width - 17) // 2))
    cells = Text(name, paint.fore("foreground") + style)
    cells.truncate(room, overflow="ellipsis", pad=True)
    row.append_text(cells)
    row.append(" " + bar(link.probability, top=top, width=max(3, width - 17 - room)), paint.fore("primary") + style)
    row.append(f" {_number(link.probability)}", paint.fore("foreground", bold=True) + style)
    return row.append(f" {_number(link.share)}", paint.fore("muted") + style)


def _notes(session: Session, token: Token, turn: Turn, links: list[Link], paint: Paint) -> list[Text]:
    muted = paint.fore("muted")
    covered = sum(link.probability for link in links)
    lines = [Text(""), Text(f"top {len(links)} cover {_number(covered)} of the attention", muted)]
    sinks = [link.probability for link in links if turn.is_sink(link.position)]
    if sinks and not session.show_sinks:
        lines.append(Text(f"{len(sinks)} sink{'s' * (len(sinks) > 1)} hidden, {_number(sum(sinks))} (x shows)", muted))
    layers = layers_of(token.step)
    own = token.step.get("layer_id") if session.layer is None else session.layer
    if len(layers) > 1:
        line = Text("layers ", muted)
        for layer in layers:
            here = layer == own
            line.append(f"{layer} ", paint.fore("accent" if here else "muted", bold=here, underline=here))
        lines.append(line.append("(+ -)", muted))
    if session.derotated and not any(link.content is not None for link in links):
        lines.append(Text("not captured de-rotated; the next answer is", muted))
    return lines


def _no_links(token: Token, paint: Paint) -> list[Text]:
    muted = paint.fore("muted")
    mode = token.step.get("mode")
    if mode == "fingerprint":
        return [Text("Fingerprints hold no links.", muted), Text("Capture raw to see positions.", muted)]
    if not token.step:
        return [Text("Nothing was captured of this token.", muted)]
    flags = ", ".join(token.step.get("flags") or ()) or "none"
    return [Text(f"No links. Flags: {flags}.", muted)]


def signal_lines(token: Token, turn: Turn, paint: Paint, width: int, off: OffManifold | None = None) -> list[Text]:
    """Fingerprint, histogram, zone with the evidence of each rule, the compass, how far `off` the manifold it is."""
    f, decision, muted = token.fingerprint, token.decision(), paint.fore("muted")
    if f is None or decision is None:
        flags = ", ".join(token.step.get("flags") or ()) or "nothing was captured"
        return [Text(f"No numbers: {flags}.", muted)]
    head = Text().append(
        f"{ZONE_GLYPHS.get(token.zone, '·')} {zone_label(token.zone)}", paint.zone_mark(token.zone) + Style(bold=True)
    )
    if token.zone != UNKNOWN:
        head.append(f"  confidence {token.confidence or 0:.2f}", muted)
    lines = [head, Text("")]
    for item in decision.evidence:
        style = paint.zone_mark(item.zone)
        lines.append(
            meter(_METRICS.get(item.metric, item.metric), item.value, item.threshold, paint, width=width, style=style)
        )
    lines += [Text(""), Text("mass by distance (tokens back)", muted)]
    lines += histogram([float(v) for v in f[4:]], paint, width=width)
    lines += [Text(""), *_compass(token, turn, paint, width), *firewall_rows(token, turn, paint, width)]
    if off is not None:
        lines.append(off_line(off, paint))
    if (sink := token.step.get("sink_mass")) is not None:
        lines.append(Text(f"sinks hold {_number(sink)} of the attention", muted))
    if (bits := token.step.get("entropy_bits")) is not None:
        lines.append(Text(f"{bits:.2f} bits over positions", muted))
    return lines + [Text(said, muted) for said in cache.facts(token, turn)]


def _compass(token: Token, turn: Turn, paint: Paint, width: int) -> list[Text]:
    muted = paint.fore("muted")
    if token.drift is None:
        return [Text("compass: not enough tokens yet", muted)]
    before = turn.tokens[max(0, token.index - width + 1) : token.index + 1]
    line = Text("compass ", muted).append(token.status, paint.status(token.status)).append(f"  drift {token.drift:.3f}")
    previous = turn.tokens[token.index - 1].drift if token.index else None
    if previous is not None:
        line.append(f"  {token.drift - previous:+.3f}", muted)
    spark = sparkline([t.drift for t in before], top=HALT_THRESHOLD, width=width)
    return [
        line,
        Text(spark, paint.status(token.status)),
        Text(f"warn {WARN_THRESHOLD}, halt {HALT_THRESHOLD}: uncalibrated", muted),
    ]


def experts_lines(token: Token, paint: Paint, width: int) -> list[Text]:
    """Experts of each layer that has some, the heaviest first."""
    muted = paint.fore("muted")
    moe: Any = token.step.get("moe")
    if not isinstance(moe, dict) or not moe:
        return [Text("No experts: the model has none,", muted), Text("or routing was not captured.", muted)]
    lines = []
    for layer, routed in moe.items():
        experts, weights = (routed or {}).get("experts") or [], (routed or {}).get("weights") or []
        lines.append(Text(f"layer {layer}", paint.fore("accent", bold=True)))
        for expert, weight in zip(experts, weights, strict=False):
            row = Text(f"{expert:>5} ", muted).append(bar(weight, width=max(4, width - 12)), paint.fore("primary"))
            lines.append(row.append(f" {_number(weight)}"))
    return lines
