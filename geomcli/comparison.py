"""Two traces side by side: aligned tokens, how similar their attention is, and what differs, in numbers and in words.

docs/geometry.md, "Comparison", holds the formulas. Differences are described, not tested: whether one is larger than
the noise of the steps is not decided here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from geomcli.alignment import align
from geomcli.compass import bhattacharyya_angle
from geomcli.differences import Divergence, Metric, ZoneShare, sentences
from geomcli.errors import TraceError
from geomcli.fingerprint import BIN_ENTROPY, FINGERPRINT_SIZE, LOCAL, LONG, MID, N_BINS
from geomcli.interpretation import Interpretation, fitted, heuristic
from geomcli.projection import Projection
from geomcli.schema import SCHEMA_VERSION, TRACE_VERSION, Record, has_numbers
from geomcli.trace import Trace
from geomcli.zones import UNKNOWN

Floats = NDArray[np.float64]
_TITLE = 120


class Side(msgspec.Struct, frozen=True):
    """One of the two traces. `steps`: tokens that have a fingerprint; `title`: the user's last message, shortened."""

    trace_id: str
    model: str
    title: str
    tokens: int
    steps: int
    dominant_zone: str
    layers: tuple[int, ...]


class AlignedToken(msgspec.Struct, frozen=True):
    """One row of the alignment: token indices of both sides, and the zone of each where it has one."""

    kind: Literal["same", "changed", "only_a", "only_b"]
    a: int | None
    b: int | None
    zone_a: str | None
    zone_b: str | None

    @property
    def zones_differ(self) -> bool:
        return self.zone_a is not None and self.zone_b is not None and self.zone_a != self.zone_b


class Similarity(msgspec.Struct, frozen=True):
    """Each in [0, 1]; `overall` is the mean of the others. `zones` is None where no aligned tokens both have one."""

    overall: float
    direction: float
    zones: float | None
    entropy: float


class Histograms(msgspec.Struct, frozen=True):
    """Mean histogram [16] of each side; `angle`: Bhattacharyya angle between them, in radians, 0 to pi/2."""

    a: tuple[float, ...]
    b: tuple[float, ...]
    delta: tuple[float, ...]
    angle: float


class Comparison(msgspec.Struct, frozen=True):
    a: Side
    b: Side
    similarity: Similarity
    same_tokens: float  # 2 * same / (tokens of A + tokens of B)
    divergence: Divergence | None
    zone_pairs: int  # aligned tokens that have a zone on both sides
    zones: tuple[ZoneShare, ...]
    metrics: tuple[Metric, ...]
    histogram: Histograms
    interpretation: Interpretation
    differences: tuple[str, ...]  # sentences, largest first
    notes: tuple[str, ...]  # what has to be known to read the numbers
    alignment: tuple[AlignedToken, ...]


def compare(a: Trace, b: Trace, *, projection: Projection | None = None) -> Comparison:
    """Compare two traces; TraceError names the reason why they cannot be.

    `projection`: axes fitted on stored fingerprints; without them the four named axes are used and called heuristic.
    compare(b, a) has the sides and the signs exchanged and the same similarity.
    """
    left, right = _View(a, "A"), _View(b, "B")
    _check_rulesets(left, right)
    by_id = left.model == right.model
    rows = _aligned(left, right, by_id)
    zoned = [row for row in rows if row.zone_a is not None and row.zone_b is not None]
    agreement = sum(not row.zones_differ for row in zoned) / len(zoned) if zoned else None
    direction = _cosine(left.mean, right.mean)
    entropy = 1.0 - abs(float(left.mean[BIN_ENTROPY] - right.mean[BIN_ENTROPY]))
    parts = [part for part in (direction, agreement, entropy) if part is not None]
    same = sum(row.kind == "same" for row in rows)
    total = len(left.tokens) + len(right.tokens)
    divergence = _divergence(left, right, rows)
    metrics = tuple(_metrics(left, right))
    zones = _zone_shares(left, right)
    axes = (
        fitted(left.mean, right.mean, projection)
        if projection is not None
        else heuristic(left.mean, right.mean, left.ripple, right.ripple)
    )
    return Comparison(
        a=left.side(),
        b=right.side(),
        similarity=Similarity(sum(parts) / len(parts), direction, agreement, entropy),
        same_tokens=2 * same / total if total else 1.0,
        divergence=divergence,
        zone_pairs=len(zoned),
        zones=zones,
        metrics=metrics,
        histogram=_histograms(left, right),
        interpretation=axes,
        differences=sentences(metrics, zones, divergence),
        notes=_notes(left, right),
        alignment=rows,
    )


class _View:
    """What is compared of a trace."""

    def __init__(self, trace: Trace, name: str) -> None:
        self.name = name
        self.trace = trace
        self.model = str(trace.header.get("model", ""))
        self.tokens = trace.tokens
        version = str(trace.header.get("version", TRACE_VERSION))
        if version.partition(".")[0] != TRACE_VERSION.partition(".")[0]:
            raise TraceError(f"{name} has trace format {version}; this geom reads {TRACE_VERSION}.")
        self.steps: dict[int, Record] = {}
        for step in trace.steps:
            if _usable(step):
                self.steps.setdefault(step["tokenIndex"], step)
        if not self.steps:
            raise TraceError(f"{name} has no fingerprint: there is nothing to compare.", "geom run … (captures them)")
        schemas = {step.get("schema", SCHEMA_VERSION) for step in self.steps.values()} - {SCHEMA_VERSION}
        if schemas:
            found = ", ".join(sorted(map(str, schemas)))
            raise TraceError(f"{name} has entries of schema {found}; this geom compares schema {SCHEMA_VERSION}.")
        rows = np.array([step["fingerprint"] for step in self.steps.values()], dtype=np.float64)
        self.mean: Floats = np.clip(rows, 0.0, 1.0).mean(axis=0)
        self.zone_counts = Counter(step.get("zone") or UNKNOWN for step in self.steps.values())
        self.ripple = self.average("ripple")

    @property
    def ruleset(self) -> str:
        named = self.trace.header.get("ruleset") or next(iter(self.steps.values())).get("ruleset")
        return str(named or "")

    @cached_property
    def layers(self) -> tuple[int, ...]:
        shown: set[int] = set()
        for step in self.steps.values():
            links = step.get("attention") or {}
            several = links.get("layers") or links.get("layer_sketches")
            shown |= {int(layer) for layer in several if layer.isdecimal()} if several else {step.get("layer_id", -1)}
        return tuple(sorted(shown - {-1}))

    def values(self, field: str) -> list[float]:
        found = (step.get(field) for step in self.steps.values())
        return [float(value) for value in found if value is not None and np.isfinite(value)]

    def average(self, field: str) -> float | None:
        values = self.values(field)
        return sum(values) / len(values) if values else None

    def side(self) -> Side:
        spoken = [m["content"] for m in self.trace.messages if m.get("role") == "user"]
        title = " ".join(str(spoken[-1]).split())[:_TITLE] if spoken else ""
        trace_id = str(self.trace.header.get("trace_id", ""))
        dominant = min(self.zone_counts, key=lambda zone: (-self.zone_counts[zone], zone))
        return Side(trace_id, self.model, title, len(self.tokens), len(self.steps), dominant, self.layers)

    def zone_of(self, row: int | None) -> str | None:
        if row is None:
            return None
        step = self.steps.get(self.tokens[row]["index"])
        return None if step is None else step.get("zone") or UNKNOWN


def _usable(step: Record) -> bool:
    if not has_numbers(step):  # type: ignore[arg-type]
        return False
    fingerprint = np.asarray(step["fingerprint"], dtype=np.float64)
    return fingerprint.shape == (FINGERPRINT_SIZE,) and bool(np.isfinite(fingerprint).all())


def _check_rulesets(a: _View, b: _View) -> None:
    if a.ruleset and b.ruleset and a.ruleset != b.ruleset:
        raise TraceError(
            f"A was classified by {a.ruleset}, B by {b.ruleset}: their zones do not mean the same.",
            "geom run … on servers with the same thresholds",
        )


def _aligned(a: _View, b: _View, by_id: bool) -> tuple[AlignedToken, ...]:
    keys_a, keys_b = _keys(a.tokens, by_id), _keys(b.tokens, by_id)
    rows = []
    for i, j in align(keys_a, keys_b):
        kind: Literal["same", "changed", "only_a", "only_b"] = "changed"
        if i is None or j is None:
            kind = "only_b" if i is None else "only_a"
        elif keys_a[i] == keys_b[j]:
            kind = "same"
        at_a = None if i is None else int(a.tokens[i]["index"])
        at_b = None if j is None else int(b.tokens[j]["index"])
        rows.append(AlignedToken(kind, at_a, at_b, a.zone_of(i), b.zone_of(j)))
    return tuple(rows)


def _keys(tokens: Sequence[Record], by_id: bool) -> list[str | int | None]:
    """What makes two tokens the same: the text, else the id where both have one vocabulary."""
    return [t["text"] if t.get("text") is not None else t.get("tokenId") if by_id else None for t in tokens]


def _divergence(a: _View, b: _View, rows: tuple[AlignedToken, ...]) -> Divergence | None:
    texts_a = {t["index"]: t.get("text") for t in a.tokens}
    texts_b = {t["index"]: t.get("text") for t in b.tokens}
    for place, row in enumerate(rows):
        if row.kind != "same":
            return Divergence(place, row.a, row.b, texts_a.get(row.a), texts_b.get(row.b))
    return None


def _cosine(a: Floats, b: Floats) -> float:
    if np.array_equal(a, b):
        return 1.0
    size = float(a @ a) * float(b @ b)
    if size <= 0:
        return 0.0
    return min(1.0, max(0.0, float(a @ b) / float(np.sqrt(size))))


def _metrics(a: _View, b: _View) -> list[Metric]:
    def metric(name: str, label: str, unit: str, x: float | None, y: float | None) -> Metric:
        delta = None if x is None or y is None else y - x
        relative = None if delta is None or not x else delta / x
        return Metric(name, label, unit, x, y, delta, relative)

    def of_fingerprint(name: str, label: str, unit: str, place: int) -> Metric:
        return metric(name, label, unit, float(a.mean[place]), float(b.mean[place]))

    def of_field(name: str, label: str, unit: str, field: str) -> Metric:
        return metric(name, label, unit, a.average(field), b.average(field))

    speeds = [view.trace.metrics.get("tokensPerSecond") for view in (a, b)]
    drifts = [max(view.values("drift"), default=None) for view in (a, b)]
    return [
        metric("tokens", "tokens", "tokens", float(len(a.tokens)), float(len(b.tokens))),
        of_fingerprint("local", "local mass", "share", LOCAL),
        of_fingerprint("mid", "mid-range mass", "share", MID),
        of_fingerprint("long", "long-range mass", "share", LONG),
        of_fingerprint("bin_entropy", "bin entropy", "share", BIN_ENTROPY),
        of_field("entropy_bits", "entropy over positions", "bits", "entropy_bits"),
        of_field("sink_mass", "mass on sinks", "share", "sink_mass"),
        of_field("ripple", "ripple", "share", "ripple"),
        of_field("drift", "mean drift", "share", "drift"),
        metric("max_drift", "largest drift", "share", *drifts),
        of_field("zone_confidence", "zone confidence", "share", "zone_confidence"),
        metric("tokens_per_second", "tokens per second", "tokens/s", *speeds),
    ]


def _zone_shares(a: _View, b: _View) -> tuple[ZoneShare, ...]:
    shares = []
    for zone in {*a.zone_counts, *b.zone_counts}:
        x, y = (view.zone_counts[zone] / len(view.steps) for view in (a, b))
        shares.append(ZoneShare(zone, x, y, y - x))
    return tuple(sorted(shares, key=lambda share: (-(share.a + share.b), share.zone)))


def _histograms(a: _View, b: _View) -> Histograms:
    x, y = a.mean[-N_BINS:], b.mean[-N_BINS:]
    angle = 0.0 if np.array_equal(x, y) else bhattacharyya_angle(x, y)
    return Histograms(tuple(x.tolist()), tuple(y.tolist()), tuple((y - x).tolist()), angle)


def _notes(a: _View, b: _View) -> tuple[str, ...]:
    notes = []
    if a.model != b.model:
        notes.append(f"Two models, {a.model or 'unknown'} and {b.model or 'unknown'}: layers and tokens differ too.")
    prompts = [[(m.get("role"), m.get("content")) for m in view.trace.prompt] for view in (a, b)]
    if prompts[0] != prompts[1]:
        notes.append("Two prompts: the distances that attention can have differ with them.")
    if a.layers != b.layers:
        layers = [", ".join(map(str, view.layers)) or "unknown" for view in (a, b)]
        notes.append(f"A shows layers {layers[0]}, B layers {layers[1]}: layers read differently.")
    for view in (a, b):
        if not view.ruleset:
            notes.append(f"{view.name} does not say by which rules its zones were found.")
        if not view.trace.metrics or view.trace.metrics.get("error"):
            notes.append(f"{view.name} was cut off before its end.")
        if len(view.steps) < len(view.tokens):
            notes.append(f"{view.name} has a fingerprint for {len(view.steps)} of {len(view.tokens)} tokens.")
    return tuple(notes)
