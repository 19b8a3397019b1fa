"""What a person reads after a run: zones, entropy, drift, cost."""

from __future__ import annotations

from pathlib import Path

from geomcli.cli import output
from geomcli.cli.manifold import line_of, reading_of
from geomcli.compass import HALT_THRESHOLD, WARN_THRESHOLD
from geomcli.decisions import first_halt, judged
from geomcli.display import human_bytes, sparkline
from geomcli.kept import last_cache
from geomcli.links import layers_named
from geomcli.measured import number
from geomcli.schema import Record
from geomcli.trace import Trace


def print_summary(trace: Trace, *, store: Path | None = None, manifold: Path | None = None) -> None:
    """Six lines on stderr; one more where tokens left the cache, where a firewall watched, and where there is a
    discovery beside the store `manifold`."""
    console = output.narrator()
    m = trace.metrics
    speed, tokens = number(m.get("tokensPerSecond")), m.get("tokens")
    head = [f"{len(trace.tokens) if tokens is None else tokens} tokens"]
    if speed:
        head.append(f"{speed:.1f} tok/s")
    imported = "imported" if "imported" in trace.header else "no end"
    head.append(str(m.get("finishReason") or m.get("error") or imported))
    console.print(f"\n[bold]{output.marked(' · '.join(head))}[/]")
    if not m.get("entries"):
        console.print("  attention  none arrived")
    else:
        console.print(f"  zones      {zone_line(m)}")
        console.print(f"  entropy    {_entropy(m)}")
        console.print(f"  drift      {_drift(trace)}")
        if said := cache_line(trace):
            console.print(f"  cache      {said}")
        if said := firewall_line(trace):
            console.print(f"  firewall   {output.marked(said)}")
        if manifold is not None and (reading := reading_of(trace, manifold)) is not None:
            console.print(f"  manifold   {line_of(reading)}")
        console.print(f"  capture    {output.marked(_capture(trace))}")
        if moved := _bytes(m):
            console.print(f"  bytes      {moved}")
    if store is not None:
        console.print(f"  trace      {output.marked(trace.header['trace_id'])} in {output.marked(store)}")


def zone_line(metrics: Record) -> str:
    counts: dict[str, int] = {zone: n for zone, n in (metrics.get("zoneCounts") or {}).items() if n > 0}
    total = sum(counts.values())
    parts = []
    for zone, count in sorted(counts.items(), key=lambda item: -item[1]):
        glyph, style = output.ZONE_STYLES.get(zone, ("·", "default"))
        parts.append(f"[{style}]{glyph} {output.marked(zone)}[/] {count / total:.0%}")
    return "  ".join(parts) or "none (only sinks and the first tokens)"


def _bytes(m: Record) -> str:
    counts = ((m.get("attentionBytes"), "out of the engine"), (m.get("jsonBytes"), "as JSON"))
    return ", ".join(f"{human_bytes(count)} {what}" for count, what in counts if isinstance(count, int) and count)


def _entropy(m: Record) -> str:
    parts = []
    if (mean := _float(m.get("avgEntropy"))) is not None:
        parts.append(f"{mean:.2f} over distance bins (0 focused, 1 diffuse)")
    if (mean := _float(m.get("avgEntropyBits"))) is not None:
        parts.append(f"{mean:.2f} bits over positions")
    return ", ".join(parts) or "-"


def _float(value: object) -> float | None:
    """A metric that readers of files do not check."""
    return number(value) if isinstance(value, int | float) else None


def _drift(trace: Trace) -> str:
    drifts = [number(step.get("drift")) for step in trace.steps]
    most = max((d for d in drifts if d is not None), default=None)
    if most is None:
        return "not enough tokens yet"
    said = number(trace.metrics.get("maxDrift"))
    return (
        f"{sparkline(drifts, top=HALT_THRESHOLD)}  max {most if said is None else said:.3f} "
        f"{output.marked(trace.metrics.get('compass') or '-')} "
        f"[dim](warn {WARN_THRESHOLD}, halt {HALT_THRESHOLD}: uncalibrated defaults)[/]"
    )


def cache_line(trace: Trace) -> str:
    """How much of the text was in the KV cache at the end; "" where nothing leaves."""
    cache = last_cache(trace.steps)
    if cache is None:
        return ""
    of = cache.kept + cache.freed
    return f"{cache.kept} of {of} tokens kept ({cache.share:.0%}), {cache.freed} slots freed"


def firewall_line(trace: Trace) -> str:
    """What a firewall decided about the answer; "" where none watched it."""
    last = next((found for step in reversed(trace.steps) if (found := judged(step)) is not None), None)
    if last is None:
        return ""
    if (halt := first_halt(trace.steps)) is None:
        return f"no HALT, {last.status or 'not judged'} at the last token ({last.action}; {last.caveat})"
    place, found = halt
    score = "" if found.score is None else f" at {found.detector} {found.score:.3f}"
    return f"HALT at token {place + 1}{score}, {found.consequence} ({found.action}; {found.caveat})"


def _capture(trace: Trace) -> str:
    step = next((s for s in trace.steps if s.get("heads")), None)
    if step is None:
        return "-"
    own = step.get("layer_id")
    layers = list(layers_named(step)) or ["-" if own is None else own]
    parts = [
        str(step.get("mode") or "-"),
        f"layers {', '.join(map(str, layers))}",
        f"heads {step['heads']['seen']}/{step['heads']['total']}",
    ]
    parts += [f"{flag} {count}x" for flag, count in (trace.metrics.get("flags") or {}).items()]
    return ", ".join(parts)
