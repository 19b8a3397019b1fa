"""What a cluster does, in words: traits with the numbers that they rest on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from geomcli.fingerprint import BIN_ENTROPY, LOCAL, LONG, MID, N_BINS
from geomcli.zones import UNKNOWN, ZONES_V1

_THRESHOLDS = {rule.metric: rule.threshold for rule in ZONES_V1.rules}
_FOCUSED = 0.40  # bin entropy: most of the mass in two or three bins
_APART = 1.0  # standard deviations from the mean of all fingerprints
_DIFFUSE = _THRESHOLDS["bin_entropy"]
# trait, place in the fingerprint, threshold, whether more of it is meant, value past which it is the opposite
_RULES = (
    ("local_attention", LOCAL, _THRESHOLDS["local"], True, _THRESHOLDS["local"] / 2),
    ("retrieval_heavy", MID, _THRESHOLDS["mid"], True, _THRESHOLDS["mid"] / 2),
    ("context_aware", LONG, _THRESHOLDS["long"], True, _THRESHOLDS["long"] / 2),
    ("focused", BIN_ENTROPY, _FOCUSED, False, _DIFFUSE),
    ("diffuse", BIN_ENTROPY, _DIFFUSE, True, _FOCUSED),
)
PERIODIC = "periodic"
TRAITS = (*(rule[0] for rule in _RULES), PERIODIC)
_METRICS = {LOCAL: "local", MID: "mid", LONG: "long", BIN_ENTROPY: "bin_entropy"}


class Trait(msgspec.Struct, frozen=True):
    """`value`: the mean of `metric` over the members; it is past `threshold` (`absolute`), or `deviations` standard
    deviations from the mean `everywhere` (of all fingerprints), or both.
    """

    name: str
    metric: str
    value: float
    threshold: float
    absolute: bool
    everywhere: float
    deviations: float


class ZoneOf(msgspec.Struct, frozen=True):
    """`zone`: the one that most members are in; `share`: how many of them."""

    zone: str
    share: float


def traits_of(members: NDArray[Any], everything: NDArray[Any], ripples: NDArray[Any] | None = None) -> list[Trait]:
    """Traits of members [m, 20] among all fingerprints [n, 20], the clearest first.

    A trait holds where the members' mean is past the threshold of the zone rules, or a standard deviation of all
    fingerprints from their mean in its direction. By its deviation alone it never holds for what is the opposite:
    "focused" past the threshold of "diffuse" and the other way round, so never both of them, and a distance with less
    than half of its threshold. ripples [m]: nan where a step has none; without any, nothing is said about periods.
    """
    f, every = np.asarray(members, dtype=np.float64), np.asarray(everything, dtype=np.float64)
    made = []
    for name, place, threshold, more, opposite in _RULES:
        value, mean, deviation = float(f[:, place].mean()), float(every[:, place].mean()), float(every[:, place].std())
        apart = (value - mean) / deviation if deviation > 1e-9 else 0.0
        absolute = value >= threshold if more else value <= threshold
        relative = apart >= _APART and value > opposite if more else apart <= -_APART and value < opposite
        if absolute or relative:
            made.append(Trait(name, _METRICS[place], value, threshold, absolute, mean, apart))
    if ripples is not None and (finite := np.asarray(ripples, dtype=np.float64)[np.isfinite(ripples)]).size:
        value, threshold = float(finite.mean()), _THRESHOLDS["ripple"]
        if value >= threshold:
            made.append(Trait(PERIODIC, "ripple", value, threshold, True, value, 0.0))
    return sorted(made, key=lambda trait: (-abs(trait.deviations), trait.name))


def zone_of(zones: Sequence[str]) -> ZoneOf:
    """The zone of most members; of as many, the first by name."""
    counts = Counter(zones)
    zone = min(counts, key=lambda name: (-counts[name], name), default=UNKNOWN)
    return ZoneOf(zone, counts[zone] / len(zones) if zones else 0.0)


def name_of(zone: ZoneOf, traits: Sequence[Trait]) -> str:
    """Like "syntax_floor, local_attention, focused"."""
    return ", ".join([zone.zone, *(trait.name for trait in traits[:2])])


def peak_distance(members: NDArray[Any]) -> str:
    """The distances of the bin with most mass, like "16-31": what a reader wants beside a trait."""
    mean = np.asarray(members, dtype=np.float64)[:, -N_BINS:].mean(axis=0)
    place = int(mean.argmax())
    if place == 0:
        return "0-1"
    return f"{2**place}+" if place == N_BINS - 1 else f"{2**place}-{2 ** (place + 1) - 1}"
