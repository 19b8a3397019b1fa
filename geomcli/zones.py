"""Zone rules as data: which named pattern a fingerprint shows, with the evidence for it.

A ruleset is versioned and every threshold can be changed; the decision is the largest normalised margin
(v - t) / (1 - t), so no hidden order of rules decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from geomcli.fingerprint import BIN_ENTROPY, LOCAL, LONG, MID

UNKNOWN = "unknown"


class ZoneRule(msgspec.Struct, frozen=True):
    zone: str
    metric: str  # local | mid | long | ripple | bin_entropy
    threshold: float
    temperature: float
    top_p: float
    cache: str
    action: str


class Ruleset(msgspec.Struct, frozen=True):
    name: str
    rules: tuple[ZoneRule, ...]

    def with_thresholds(self, thresholds: Mapping[str, float]) -> Ruleset:
        """The same rules with other thresholds (zone -> value in [0, 1)); the name gets a '+' so that data tell."""
        known = {rule.zone for rule in self.rules}
        for zone, value in thresholds.items():
            if zone not in known:
                raise ValueError(f"unknown zone {zone!r}; known: {', '.join(sorted(known))}")
            if not 0 <= value < 1:
                raise ValueError(f"threshold of {zone} must be in [0, 1), got {value}")
        rules = tuple(msgspec.structs.replace(r, threshold=thresholds.get(r.zone, r.threshold)) for r in self.rules)
        return Ruleset(self.name + "+", rules)


ZONES_V1 = Ruleset(
    "zones-v1",
    (
        ZoneRule("syntax_floor", "local", 0.60, 0.3, 0.90, "aggressive", "standard"),
        ZoneRule("semantic_bridge", "mid", 0.40, 0.6, 0.95, "standard", "standard"),
        ZoneRule("long_range", "long", 0.30, 0.7, 0.95, "keep all", "full context needed"),
        ZoneRule("structure_ripple", "ripple", 0.60, 0.5, 0.90, "standard", "pattern detected"),
        ZoneRule("diffuse", "bin_entropy", 0.70, 0.8, 0.98, "standard", "off-manifold alert"),
    ),
)
ZONE_NAMES = (*(rule.zone for rule in ZONES_V1.rules), UNKNOWN)


class Evidence(msgspec.Struct, frozen=True):
    """One rule's value, threshold and margin; `value` is None when the metric is not available yet."""

    zone: str
    metric: str
    value: float | None
    threshold: float
    margin: float | None


class ZoneDecision(msgspec.Struct, frozen=True):
    zone: str
    confidence: float
    evidence: tuple[Evidence, ...]
    ruleset: str
    rule: ZoneRule | None  # None for "unknown": the request keeps its own sampling


def metrics(fingerprint: NDArray[Any], ripple: float | None = None) -> dict[str, float | None]:
    """The values that rules look at: bands and bin entropy of a fingerprint [20], and the ripple if there is one."""
    f = np.asarray(fingerprint, dtype=np.float64)
    return {
        "local": float(f[LOCAL]),
        "mid": float(f[MID]),
        "long": float(f[LONG]),
        "bin_entropy": float(f[BIN_ENTROPY]),
        "ripple": ripple,
    }


def classify_many(
    fingerprints: NDArray[Any], ripples: NDArray[Any], ruleset: Ruleset = ZONES_V1
) -> list[tuple[str, float]]:
    """(zone, confidence) of each fingerprint [n, 20], as `classify` decides; ripples [n], nan where there is none."""
    f = np.asarray(fingerprints, dtype=np.float64)
    columns = {"local": f[:, LOCAL], "mid": f[:, MID], "long": f[:, LONG], "bin_entropy": f[:, BIN_ENTROPY]}
    columns["ripple"] = np.asarray(ripples, dtype=np.float64)
    margins = np.stack([(columns[r.metric] - r.threshold) / (1 - r.threshold) for r in ruleset.rules], axis=1)
    margins = np.where(np.isnan(margins), -np.inf, margins)
    best = margins.argmax(axis=1).tolist()
    highest = np.minimum(margins.max(axis=1), 1.0).tolist()
    zones = [rule.zone for rule in ruleset.rules]
    return [(zones[i], m) if m >= 0 else (UNKNOWN, 0.0) for i, m in zip(best, highest, strict=True)]


def classify(fingerprint: NDArray[Any], ripple: float | None = None, ruleset: Ruleset = ZONES_V1) -> ZoneDecision:
    """Zone of a fingerprint [20]: the rule with the largest margin that is >= 0, else "unknown" with confidence 0."""
    values = metrics(fingerprint, ripple)
    evidence = []
    best: tuple[float, ZoneRule] | None = None
    for rule in ruleset.rules:
        value = values[rule.metric]
        margin = None if value is None else (value - rule.threshold) / (1 - rule.threshold)
        evidence.append(Evidence(rule.zone, rule.metric, value, rule.threshold, margin))
        if margin is not None and margin >= 0 and (best is None or margin > best[0]):
            best = (margin, rule)
    if best is None:
        return ZoneDecision(UNKNOWN, 0.0, tuple(evidence), ruleset.name, None)
    margin, rule = best
    return ZoneDecision(rule.zone, min(1.0, margin), tuple(evidence), ruleset.name, rule)
