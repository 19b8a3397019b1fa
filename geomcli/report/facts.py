"""What a report says of a trace: texts and facts as plain values, numbers of tokens as columns. Knows no HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from geomcli import __version__
from geomcli.compass import DRIFT_WINDOW, HALT, HALT_THRESHOLD, OK, WARN, WARN_THRESHOLD
from geomcli.display import ZONE_GLYPHS, printable, zone_label
from geomcli.fingerprint import FINGERPRINT_SIZE, bin_edges
from geomcli.kept import last_cache
from geomcli.layers import LayerView, layer_views, request_view
from geomcli.links import layer_ids, layers_of, links_of, sink_count
from geomcli.report.columns import Columns
from geomcli.schema import Record, has_numbers
from geomcli.sources import Source, prompt_length, prompt_texts, sources_of
from geomcli.spans import lookback, read_spans, sentence_spans
from geomcli.trace import Trace
from geomcli.zones import UNKNOWN, ZONES_V1

_MOST_LINKS = 255
_MOST_EXPERTS = 65535  # what a column of them holds
_STATUS = {OK: 0, WARN: 1, HALT: 2}
_ABSENT = 255


def facts_of(trace: Trace, sources: Sequence[Source]) -> tuple[dict[str, Any], Columns]:
    """(facts that JSON can hold, columns). Texts are made harmless for display (`display.printable`).

    Columns of tokens, one value each: zone, confidence, drift, ripple, sink, bits, compass; `fp`, 20 values each. Of
    every layer L: `L/count` links a token, and of all links together `L/position`, `L/p`, `L/content`, `L/rotation`;
    `L/fp`, `L/sink`, `L/bits`, `L/lookback`; of every layer with experts `moe/L/count`, `moe/L/expert`, `moe/L/weight`.
    """
    by_index: dict[int, Record] = {}
    for step in trace.steps:
        by_index.setdefault(step["tokenIndex"], step)
    steps = [by_index.get(token["index"]) or {} for token in trace.tokens]
    zones = [*ZONE_GLYPHS, *sorted({str(s["zone"]) for s in steps if s.get("zone")} - set(ZONE_GLYPHS))]
    layers = sorted({layer for step in steps for layer in layers_of(step)})
    own = Counter(step["layer_id"] for step in steps if step.get("layer_id") is not None).most_common(1)
    columns = Columns()
    _token_columns(columns, steps, zones)
    views = [{view.layer: view for view in layer_views(step)} for step in steps]
    for layer in layers:
        _layer_columns(columns, steps, [of_step.get(layer) for of_step in views], layer)
    experts = _expert_columns(columns, steps)
    header = trace.header
    facts: dict[str, Any] = {
        "geom": __version__,
        "id": str(header.get("trace_id", "")),
        "model": str(header.get("model", "")),
        "created": header.get("created"),
        "ruleset": header.get("ruleset"),
        "capture": header.get("capture") or {},
        "metrics": {k: v for k, v in trace.metrics.items() if k != "record_type"},
        "messages": [{"role": m["role"], "text": m["content"]} for m in trace.prompt],
        "prompt": prompt_texts(trace),
        "promptLength": prompt_length(trace) or 0,
        "tokens": [token.get("text") or "" for token in trace.tokens],
        "thinking": _runs([str(token.get("segmentId") or "").endswith("-think") for token in trace.tokens]),
        "flags": {str(i): [str(f) for f in s["flags"]] for i, s in enumerate(steps) if s.get("flags")},
        "cache": _cache(trace),
        "modes": sorted({str(step["mode"]) for step in steps if step.get("mode")}),
        "heads": next((step["heads"] for step in steps if step.get("heads")), None),
        "zones": [{"id": z, "label": zone_label(z), "glyph": ZONE_GLYPHS.get(z, "·")} for z in zones],
        "rules": [{"zone": r.zone, "metric": r.metric, "threshold": r.threshold} for r in ZONES_V1.rules],
        "rulesOf": ZONES_V1.name,
        "compass": {"window": DRIFT_WINDOW, "warn": WARN_THRESHOLD, "halt": HALT_THRESHOLD},
        "bins": bin_edges(),
        "sinks": sink_count(trace),
        "underSinks": _under_sinks(trace),
        "layers": layers,
        "layer": own[0][0] if own else None,
        "experts": experts,
        "derotated": any(columns.manifest.get(f"{layer}/content") for layer in layers),
        "sources": [{"name": s.name, "kind": s.kind, "ranges": s.ranges} for s in sources],
        "sentences": _sentences(trace, sources, layers),
        "columns": columns.manifest,
    }
    return {name: _harmless(value) for name, value in facts.items()}, columns


def _cache(trace: Trace) -> dict[str, int] | None:
    """Tokens that the KV cache held at the end, and those that had left it; None where none leave."""
    last = last_cache(trace.steps)
    return None if last is None else {"kept": last.kept, "freed": last.freed}


def _under_sinks(trace: Trace) -> list[str | None]:
    """Name of the message that each of the sinks of the prompt is in, None where it is the template."""
    owners: list[str | None] = [None] * min(sink_count(trace), len(prompt_texts(trace)))
    for source in sources_of(trace, division="messages", sinks=0):
        if source.kind == "message":
            for start, end in source.ranges:
                owners[start:end] = [source.name] * len(owners[start:end])
    return owners


def _harmless(value: Any) -> Any:
    """The value with every text in it made harmless for display (`display.printable`)."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(str(name)): _harmless(item) for name, item in value.items()}
    return [_harmless(item) for item in value] if isinstance(value, list | tuple) else value


def _runs(values: Sequence[bool]) -> list[tuple[int, int]]:
    """Half-open runs of true values."""
    runs: list[tuple[int, int]] = []
    for index, value in enumerate(values):
        if value and runs and runs[-1][1] == index:
            runs[-1] = (runs[-1][0], index + 1)
        elif value:
            runs.append((index, index + 1))
    return runs


def _token_columns(columns: Columns, steps: Sequence[Record], zones: Sequence[str]) -> None:
    numbers = [step if has_numbers(step) else {} for step in steps]  # type: ignore[arg-type]
    number_of = {zone: number for number, zone in enumerate(zones)}
    columns.add("zone", "u8", [number_of[str(s.get("zone") or UNKNOWN)] if s else _ABSENT for s in numbers])
    columns.add("confidence", "unit", [s.get("zone_confidence") for s in numbers])
    columns.add("drift", "unit", [s.get("drift") for s in numbers])
    columns.add("ripple", "unit", [s.get("ripple") for s in numbers])
    columns.add("sink", "unit", [s.get("sink_mass") for s in numbers])
    columns.add("bits", "f32", [s.get("entropy_bits") for s in numbers])
    columns.add("compass", "u8", [_STATUS.get(str(s.get("compass")), _ABSENT) for s in numbers])
    columns.add("fp", "unit", _fingerprints([request_view(step) for step in steps]))


def _fingerprints(views: Sequence[LayerView | None]) -> list[float | None]:
    """20 values a view, None where it has no fingerprint."""
    flat: list[float | None] = []
    for view in views:
        known = view is not None and view.fingerprint is not None
        flat += view.fingerprint.tolist() if known else [None] * FINGERPRINT_SIZE  # type: ignore[union-attr]
    return flat


def _layer_columns(columns: Columns, steps: Sequence[Record], views: Sequence[LayerView | None], layer: int) -> None:
    linked = [links_of(step, layer)[:_MOST_LINKS] for step in steps]
    links = [link for of_token in linked for link in of_token]
    columns.add(f"{layer}/count", "u8", [len(of_token) for of_token in linked])
    columns.add(f"{layer}/position", "u32", [link.position for link in links])
    columns.add(f"{layer}/p", "unit", [link.probability for link in links])
    if any(link.content is not None for link in links):
        columns.add(f"{layer}/content", "f32", [link.content for link in links])
        columns.add(f"{layer}/rotation", "f32", [link.position_score for link in links])
    columns.add(f"{layer}/fp", "unit", _fingerprints(views))
    columns.add(f"{layer}/sink", "unit", [None if view is None else view.sink_mass for view in views])
    columns.add(f"{layer}/bits", "f32", [None if view is None else view.entropy_bits for view in views])
    ratios = [lookback(step, layer) if index else None for index, step in enumerate(steps)]
    if any(ratio is not None for ratio in ratios):
        columns.add(f"{layer}/lookback", "unit", ratios)


class _Routed(msgspec.Struct):
    experts: list[Annotated[int, msgspec.Meta(ge=0, le=_MOST_EXPERTS)]] = []
    weights: list[float] = []


def _expert_columns(columns: Columns, steps: Sequence[Record]) -> list[int]:
    """Layers with experts."""
    routed: list[dict[str, Any]] = [m if isinstance(m := step.get("moe"), dict) else {} for step in steps]
    layers = sorted({layer for of_token in routed for layer in layer_ids(of_token)})
    for layer in layers:
        pairs = [_experts(of_token.get(str(layer)))[:_MOST_LINKS] for of_token in routed]
        columns.add(f"moe/{layer}/count", "u8", [len(of_token) for of_token in pairs])
        columns.add(f"moe/{layer}/expert", "u16", [expert for of_token in pairs for expert, _ in of_token])
        columns.add(f"moe/{layer}/weight", "f32", [weight for of_token in pairs for _, weight in of_token])
    return layers


def _experts(row: Any) -> list[tuple[int, float]]:
    """(expert, weight) of a token in a layer; empty where they cannot be read."""
    try:
        found = msgspec.convert(row, _Routed | None) or _Routed()
    except msgspec.ValidationError:
        return []
    return list(zip(found.experts, found.weights, strict=False))


def _sentences(trace: Trace, sources: Sequence[Source], layers: Sequence[int]) -> dict[str, Any]:
    """`runs` [[first, behind the last]] of token numbers, `layers` {id: [[read, covered, lookback, [mass …]] …]}."""
    runs = sentence_spans(trace)
    read: dict[str, Any] = {}
    for layer in layers:
        readings = read_spans(trace, runs, sources, layer=layer)
        if any(reading.read for reading in readings):
            read[str(layer)] = [
                [r.read, round(r.covered, 5), None if r.lookback is None else round(r.lookback, 5),
                 [round(m.mass, 5) for m in r.masses]]
                for r in readings
            ]  # fmt: skip
    return {"runs": runs, "layers": read}
