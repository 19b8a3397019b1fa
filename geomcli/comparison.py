"""Two traces side by side: aligned tokens, how similar their attention is, and what differs, in numbers and in words.

docs/geometry.md, "Comparison" and "Significance", holds the formulas.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Literal

import msgspec
import numpy as np
from msgspec.structs import replace

from geomcli.alignment import align
from geomcli.comparison_side import FIELDS, Floats, Side, SideView
from geomcli.compass import bhattacharyya_angle
from geomcli.differences import Divergence, Metric, ZoneAgreement, ZoneShare, sentences
from geomcli.errors import TraceError
from geomcli.fingerprint import BIN_ENTROPY, LOCAL, LONG, MID, N_BINS
from geomcli.interpretation import Interpretation, fitted, heuristic
from geomcli.measured import number
from geomcli.projection import Projection
from geomcli.significance import (
    CONFIDENCE,
    REPLICATES,
    SEED,
    Significance,
    Tested,
    agreement_interval,
    differences_of_means,
    kappa,
    verdict,
)
from geomcli.trace import Trace


class AlignedToken(msgspec.Struct, frozen=True, gc=False):
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
    agreement: ZoneAgreement | None  # None without such tokens
    significance: Significance
    zones: tuple[ZoneShare, ...]
    metrics: tuple[Metric, ...]
    histogram: Histograms
    interpretation: Interpretation
    differences: tuple[str, ...]  # sentences, largest first
    notes: tuple[str, ...]  # what has to be known to read the numbers
    alignment: tuple[AlignedToken, ...]


def compare(a: Trace, b: Trace, *, projection: Projection | None = None, fitted_on: Sequence[str] = ()) -> Comparison:
    """Compare two traces; TraceError names the reason why they cannot be.

    `projection`: axes fitted on stored fingerprints, of the models `fitted_on`; without them the four named axes are
    used and called heuristic.
    compare(b, a) has the sides and the signs exchanged and the same similarity.
    """
    return compare_sides(SideView(a, "A"), SideView(b, "B"), projection=projection, fitted_on=fitted_on)


def compare_sides(
    left: SideView,
    right: SideView,
    *,
    projection: Projection | None = None,
    fitted_on: Sequence[str] = (),
    beside: Executor | None = None,
) -> Comparison:
    """`compare`, of what was taken from the traces before; `beside` tests the differences while tokens are aligned."""
    _check_rulesets(left, right)
    zones = _zone_shares(left, right)
    series = _series(left, zones), _series(right, zones)
    testing = None if beside is None else beside.submit(differences_of_means, *series)
    by_id = left.model == right.model
    rows = _aligned(left, right, by_id)
    zoned = [row for row in rows if row.zone_a is not None and row.zone_b is not None]
    agreement = _agreement(zoned)
    direction = _cosine(left.mean, right.mean)
    entropy = 1.0 - abs(float(left.mean[BIN_ENTROPY] - right.mean[BIN_ENTROPY]))
    same_zone = None if agreement is None else agreement.agreement
    parts = [part for part in (direction, same_zone, entropy) if part is not None]
    same = sum(row.kind == "same" for row in rows)
    total = len(left.texts) + len(right.texts)
    divergence = _divergence(left, right, rows)
    found = differences_of_means(*series) if testing is None else testing.result()
    metrics, zones, significance = _judged(found, _metrics(left, right), zones)
    axes = (
        fitted(left.mean, right.mean, projection, tuple(fitted_on))
        if projection is not None
        else heuristic(left.mean, right.mean, left.ripple, right.ripple)
    )
    return Comparison(
        a=left.side,
        b=right.side,
        similarity=Similarity(sum(parts) / len(parts), direction, same_zone, entropy),
        same_tokens=2 * same / total if total else 1.0,
        divergence=divergence,
        zone_pairs=len(zoned),
        agreement=agreement,
        significance=significance,
        zones=zones,
        metrics=metrics,
        histogram=_histograms(left, right),
        interpretation=axes,
        differences=sentences(metrics, zones, divergence, agreement),
        notes=_notes(left, right),
        alignment=rows,
    )


def _check_rulesets(a: SideView, b: SideView) -> None:
    if a.ruleset and b.ruleset and a.ruleset != b.ruleset:
        raise TraceError(
            f"A was classified by {a.ruleset}, B by {b.ruleset}: their zones do not mean the same.",
            "geom run … on servers with the same thresholds",
        )


def _aligned(a: SideView, b: SideView, by_id: bool) -> tuple[AlignedToken, ...]:
    keys_a, keys_b = a.keys(by_id=by_id), b.keys(by_id=by_id)
    zones_a, zones_b = a.zone_of(), b.zone_of()
    rows = []
    for i, j in align(keys_a, keys_b):
        kind: Literal["same", "changed", "only_a", "only_b"] = "changed"
        if i is None or j is None:
            kind = "only_b" if i is None else "only_a"
        elif keys_a[i] == keys_b[j]:
            kind = "same"
        at_a = None if i is None else a.indices[i]
        at_b = None if j is None else b.indices[j]
        zone_a = None if at_a is None else zones_a.get(at_a)
        zone_b = None if at_b is None else zones_b.get(at_b)
        rows.append(AlignedToken(kind, at_a, at_b, zone_a, zone_b))
    return tuple(rows)


def _divergence(a: SideView, b: SideView, rows: tuple[AlignedToken, ...]) -> Divergence | None:
    first = next((place for place, row in enumerate(rows) if row.kind != "same"), None)
    if first is None:
        return None
    row = rows[first]
    texts = (None if index is None else view.text_of().get(index) for view, index in ((a, row.a), (b, row.b)))
    return Divergence(first, row.a, row.b, *texts)


def _cosine(a: Floats, b: Floats) -> float:
    if np.array_equal(a, b):
        return 1.0
    size = float(a @ a) * float(b @ b)
    if size <= 0:
        return 0.0
    return min(1.0, max(0.0, float(a @ b) / float(np.sqrt(size))))


def _metrics(a: SideView, b: SideView) -> list[Metric]:
    def metric(name: str, label: str, unit: str, x: float | None, y: float | None) -> Metric:
        delta = None if x is None or y is None else y - x
        # Of next to nothing, anything is a share that no float holds.
        relative = None if delta is None or not x else number(delta / x)
        return Metric(name, label, unit, x, y, delta, relative)

    def of_fingerprint(name: str, label: str, unit: str, place: int) -> Metric:
        return metric(name, label, unit, float(a.mean[place]), float(b.mean[place]))

    def of_field(name: str, label: str, unit: str, field: str) -> Metric:
        return metric(name, label, unit, a.average(field), b.average(field))

    speeds = [number(view.metrics.get("tokensPerSecond")) for view in (a, b)]
    drifts = [view.largest("drift") for view in (a, b)]
    return [
        metric("tokens", "tokens", "tokens", float(len(a.texts)), float(len(b.texts))),
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


def _zone_shares(a: SideView, b: SideView) -> tuple[ZoneShare, ...]:
    shares = []
    for zone in {*a.zone_counts, *b.zone_counts}:
        x, y = (view.zone_counts[zone] / view.steps for view in (a, b))
        shares.append(ZoneShare(zone, x, y, y - x))
    return tuple(sorted(shares, key=lambda share: (-(share.a + share.b), share.zone)))


# Metrics that are means over the steps; their values are a place of the fingerprint or a field of the step.
_MEANS: dict[str, int | str] = {
    "local": LOCAL,
    "mid": MID,
    "long": LONG,
    "bin_entropy": BIN_ENTROPY,
    **{field: field for field in FIELDS},
}


def _series(view: SideView, zones: tuple[ZoneShare, ...]) -> dict[str, Floats]:
    """What is tested of a side: name -> values of its steps; a zone's are 1 where a step is in it."""
    made = {
        name: view.rows[:, where] if isinstance(where, int) else view.series(where) for name, where in _MEANS.items()
    }
    labels = np.array(view.zones)
    return made | {f"zone {share.zone}": (labels == share.zone).astype(np.float64) for share in zones}


def _judged(
    found: Tested, metrics: list[Metric], zones: tuple[ZoneShare, ...]
) -> tuple[tuple[Metric, ...], tuple[ZoneShare, ...], Significance]:
    """The differences with their intervals; all were tested together."""
    tested = found.intervals
    with_metrics = tuple(
        replace(m, interval=tested.get(m.name), verdict=verdict(m.delta, tested.get(m.name))) for m in metrics
    )
    with_zones = tuple(
        replace(z, interval=tested.get(f"zone {z.zone}"), verdict=verdict(z.delta, tested.get(f"zone {z.zone}")))
        for z in zones
    )
    clear = sum(m.verdict == "clear" for m in with_metrics) + sum(z.verdict == "clear" for z in with_zones)
    how = Significance(
        "circular block bootstrap", CONFIDENCE, REPLICATES, SEED, found.block_a, found.block_b, len(tested), clear
    )
    return with_metrics, with_zones, how


def _agreement(rows: Sequence[AlignedToken]) -> ZoneAgreement | None:
    if not rows:
        return None
    codes: dict[str | None, int] = {}
    # Numbered by name: the same numbers from either side.
    for zone in sorted({str(zone) for row in rows for zone in (row.zone_a, row.zone_b)}):
        codes[zone] = len(codes)
    a, b = (
        np.array([codes[zone] for zone in zones]) for zones in zip(*((r.zone_a, r.zone_b) for r in rows), strict=True)
    )
    agreement, chance, value = kappa(a, b)
    return ZoneAgreement(len(rows), agreement, chance, value, None if value is None else agreement_interval(a, b))


def _histograms(a: SideView, b: SideView) -> Histograms:
    x, y = a.mean[-N_BINS:], b.mean[-N_BINS:]
    angle = 0.0 if np.array_equal(x, y) else bhattacharyya_angle(x, y)
    return Histograms(tuple(x.tolist()), tuple(y.tolist()), tuple((y - x).tolist()), angle)


def _notes(a: SideView, b: SideView) -> tuple[str, ...]:
    notes = []
    if a.model != b.model:
        notes.append(f"Two models, {a.model or 'unknown'} and {b.model or 'unknown'}: layers and tokens differ too.")
    if a.prompt != b.prompt:
        notes.append("Two prompts: the distances that attention can have differ with them.")
    if a.layers != b.layers:
        layers = [", ".join(map(str, view.layers)) or "unknown" for view in (a, b)]
        notes.append(f"A shows layers {layers[0]}, B layers {layers[1]}: layers read differently.")
    for view in (a, b):
        if view.cache is not None and view.cache.freed:
            of = view.cache.kept + view.cache.freed
            notes.append(
                f"Of {of} tokens of {view.name}, {view.cache.freed} had left the KV cache by its last step: they were "
                "not looked at any more."
            )
        if not view.ruleset:
            notes.append(f"{view.name} does not say by which rules its zones were found.")
        if not view.metrics or view.metrics.get("error"):
            notes.append(f"{view.name} was cut off before its end.")
        if view.steps < len(view.texts):
            notes.append(f"{view.name} has a fingerprint for {view.steps} of {len(view.texts)} tokens.")
    return tuple(notes)
