"""What a person reads after a run: zones, entropy, drift, cost."""

from __future__ import annotations

from pathlib import Path

from geomcli.cli import output
from geomcli.compass import HALT_THRESHOLD, WARN_THRESHOLD
from geomcli.display import human_bytes, sparkline
from geomcli.schema import Record
from geomcli.trace import Trace


def print_summary(trace: Trace, *, store: Path | None = None) -> None:
    """Six lines on stderr."""
    console = output.narrator()
    m = trace.metrics
    speed = m.get("tokensPerSecond")
    head = [f"{m.get('tokens', 0)} tokens"]
    if speed:
        head.append(f"{speed:.1f} tok/s")
    head.append(str(m.get("finishReason") or m.get("error") or "no end"))
    console.print(f"\n[bold]{output.marked(' · '.join(head))}[/]")
    if not m.get("entries"):
        console.print("  attention  none arrived")
    else:
        console.print(f"  zones      {zone_line(m)}")
        console.print(f"  entropy    {_entropy(m)}")
        console.print(f"  drift      {_drift(trace)}")
        console.print(f"  capture    {output.marked(_capture(trace))}")
        console.print(
            f"  bytes      {human_bytes(m['attentionBytes'])} out of the engine, {human_bytes(m['jsonBytes'])} as JSON"
        )
    if store is not None:
        console.print(f"  trace      {output.marked(trace.header['trace_id'])} in {output.marked(store)}")


def zone_line(metrics: Record) -> str:
    counts: dict[str, int] = metrics.get("zoneCounts") or {}
    total = sum(counts.values())
    parts = []
    for zone, count in sorted(counts.items(), key=lambda item: -item[1]):
        glyph, style = output.ZONE_STYLES.get(zone, ("·", "default"))
        parts.append(f"[{style}]{glyph} {output.marked(zone)}[/] {count / total:.0%}")
    return "  ".join(parts) or "none (only sinks and the first tokens)"


def _entropy(m: Record) -> str:
    parts = []
    if m.get("avgEntropy") is not None:
        parts.append(f"{m['avgEntropy']:.2f} over distance bins (0 focused, 1 diffuse)")
    if m.get("avgEntropyBits") is not None:
        parts.append(f"{m['avgEntropyBits']:.2f} bits over positions")
    return ", ".join(parts) or "-"


def _drift(trace: Trace) -> str:
    drifts = [step.get("drift") for step in trace.steps]
    if all(d is None for d in drifts):
        return "not enough tokens yet"
    return (
        f"{sparkline(drifts, top=HALT_THRESHOLD)}  max {trace.metrics['maxDrift']:.3f} "
        f"{output.marked(trace.metrics['compass'])} "
        f"[dim](warn {WARN_THRESHOLD}, halt {HALT_THRESHOLD}: uncalibrated defaults)[/]"
    )


def _capture(trace: Trace) -> str:
    step = next((s for s in trace.steps if s.get("heads")), None)
    if step is None:
        return "-"
    links = step.get("attention") or {}
    layers = list((links.get("layers") or links.get("layer_sketches") or {step.get("layer_id"): None}).keys())
    parts = [
        str(step.get("mode") or "-"),
        f"layers {', '.join(map(str, layers))}",
        f"heads {step['heads']['seen']}/{step['heads']['total']}",
    ]
    parts += [f"{flag} {count}x" for flag, count in (trace.metrics.get("flags") or {}).items()]
    return ", ".join(parts)
