"""Fingerprints and their differences in words, along the four axes that the specification names or along fitted ones.

The named axes are a convention, not a fit: no share of variance belongs to them, and none is given. Fitted axes are
`geomcli.projection`'s and say how many fingerprints they come from.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from geomcli.fingerprint import BIN_ENTROPY, LOCAL, LONG, MID
from geomcli.projection import Projection
from geomcli.zones import ZONES_V1

Strength = Literal["strong", "moderate", "weak", "none"]

# Difference from which a shift is called weak, moderate, strong: in shares of the attention, in standard deviations.
SHARE_STEPS = (0.01, 0.05, 0.15)
DEVIATION_STEPS = (0.1, 0.5, 1.0)

_LOCAL = "local syntax (immediate neighbours, 0 to 7 tokens back)"
_LONG = "long-range retrieval (256 tokens back and more)"
_MID = "paragraph-level context (8 to 255 tokens back)"
_PERIODIC = "periodic patterns (code, lists)"

_PORTRAIT = (
    (LOCAL, "syntax_floor", "local syntax processing (immediate neighbours)"),
    (MID, "semantic_bridge", "semantic context retrieval (paragraph-level)"),
    (LONG, "long_range", "long-range information retrieval"),
)


class AxisReading(msgspec.Struct, frozen=True):
    """Where B lies of A on one axis: `value` in shares of attention (heuristic) or standard deviations (fitted)."""

    name: str
    value: float
    strength: Strength
    sentence: str
    explained: float | None = None  # share of variance; of fitted axes only


class Interpretation(msgspec.Struct, frozen=True):
    """Readings, strongest first.

    n: mean fingerprints of traces that the axes were fitted on, None where they are heuristic; models: whose they are.
    """

    kind: Literal["heuristic", "fitted"]
    n: int | None
    axes: tuple[AxisReading, ...]
    models: tuple[str, ...] = ()


def portrait(fingerprint: NDArray[Any]) -> tuple[str, ...]:
    """Three sentences about one fingerprint [20]: "strong" where its zone's threshold is met, "moderate" from half."""
    f = np.asarray(fingerprint, dtype=np.float64)
    thresholds = {rule.zone: rule.threshold for rule in ZONES_V1.rules}
    sentences = []
    for place, zone, what in _PORTRAIT:
        share = float(f[place]) / thresholds[zone]
        word = "Strong" if share >= 1 else "Moderate" if share >= 0.5 else "Weak"
        sentences.append(f"{word} {what}")
    return tuple(sentences)


def heuristic(
    a: NDArray[Any], b: NDArray[Any], ripple_a: float | None = None, ripple_b: float | None = None
) -> Interpretation:
    """Difference of two fingerprints [20] along the four named axes; the fourth only where both have a ripple.

    The axis between local and long-range is their difference: its sentence names the end, or both, that really moved.
    """
    d = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    local, long = float(d[LOCAL]), float(d[LONG])
    axes = [
        _shift(
            "Local vs Long-Range",
            local - long,
            _ends((local, f"towards {_LOCAL}"), (-long, f"away from {_LONG}")),
            _ends((long, f"towards {_LONG}"), (-local, f"away from {_LOCAL}")),
        ),
        _shift("Focused vs Diffuse", -float(d[BIN_ENTROPY]), "towards focused attention", "towards diffuse attention"),
        _shift("Semantic Bridge", float(d[MID]), f"towards {_MID}", f"away from {_MID}"),
    ]
    if ripple_a is not None and ripple_b is not None:
        moved = ripple_b - ripple_a
        axes.append(_shift("Structure Ripple", moved, f"towards {_PERIODIC}", f"away from {_PERIODIC}"))
    return Interpretation("heuristic", None, _sorted(axes))


def fitted(a: NDArray[Any], b: NDArray[Any], projection: Projection, models: tuple[str, ...] = ()) -> Interpretation:
    """Difference of two fingerprints [20] along fitted axes, in standard deviations of what they were fitted on.

    Of the features that an axis goes with, the sentence names those that really moved that way.
    """
    places = projection.project(np.stack([np.asarray(a), np.asarray(b)]))
    moved = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    axes = []
    for axis, deviation in enumerate(projection.deviations.tolist()):
        if deviation <= 0:
            continue
        value = float(places[1, axis] - places[0, axis]) / deviation
        words = projection.moved(axis, moved, SHARE_STEPS[0], value > 0)
        which = f"towards {words}" if words else "along this axis; what it is named after did not move that way"
        reading = _shift(projection.name(axis), value, which, which, DEVIATION_STEPS)
        sentence = f"{reading.sentence} ({abs(value):.1f} standard deviations)"
        axes.append(msgspec.structs.replace(reading, sentence=sentence, explained=float(projection.explained[axis])))
    return Interpretation("fitted", projection.n, _sorted(axes), models)


def strength(value: float, steps: tuple[float, float, float] = SHARE_STEPS) -> Strength:
    """Word for the size of a difference."""
    weak, moderate, strong = steps
    size = abs(value)
    return "strong" if size >= strong else "moderate" if size >= moderate else "weak" if size >= weak else "none"


def _shift(
    name: str, value: float, plus: str, minus: str, steps: tuple[float, float, float] = SHARE_STEPS
) -> AxisReading:
    word = strength(value, steps)
    if word == "none":
        return AxisReading(name, value, word, "No shift that is worth a word")
    return AxisReading(name, value, word, f"{word.capitalize()} shift of B {plus if value > 0 else minus}")


def _ends(*ends: tuple[float, str]) -> str:
    """Those ends of an axis, (how far it moved, words), that moved by a weak difference; the one that moved most."""
    moved = sorted(ends, key=lambda end: -end[0])
    return " and ".join(words for by, words in moved if by >= SHARE_STEPS[0]) or moved[0][1]


def _sorted(axes: list[AxisReading]) -> tuple[AxisReading, ...]:
    return tuple(sorted(axes, key=lambda reading: -abs(reading.value)))
