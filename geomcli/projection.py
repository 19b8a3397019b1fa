"""Map of fingerprints: principal components [n, 20] -> [n, 2], with what each axis means in words.

Fitted on the data at hand, so axes of two fits are not comparable. What the manifold is drawn on until `geom discover`
has made artifacts; clusters are not looked for on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomcli.fingerprint import BIN_ENTROPY, FINGERPRINT_SIZE, LOCAL, LONG, MID

Floats = NDArray[np.float64]

# A component that varies by less than a thousandth of the attention is not blown up to the weight of the others.
SMALLEST_SCALE = 1e-3
_NOTHING = 1e-9  # share of the largest singular value below which a direction is rounding
_SPOKEN = 0.5  # correlation from which a feature is worth a word

# Feature -> (more of it, less of it).
_WORDS = {
    LOCAL: ("more local", "less local"),
    MID: ("more mid-range", "less mid-range"),
    LONG: ("more long-range", "less long-range"),
    BIN_ENTROPY: ("more diffuse", "more focused"),
}
_NAMES = {LOCAL: "local", MID: "mid-range", LONG: "long-range", BIN_ENTROPY: "diffuse"}


@dataclass(frozen=True, eq=False)
class Projection:
    """Axes fitted by `fit`; k of them.

    mean, scale [20]: what is subtracted, and divided by; components [k, 20]: orthonormal rows, a row of zeros where
    the data have no such direction; explained [k]: share of the standardised variance; deviations [k]: standard
    deviation of the coordinates; correlations [k, 4]: of each axis with local, mid, long and bin entropy; n: rows used.
    """

    mean: Floats
    scale: Floats
    components: Floats
    explained: Floats
    deviations: Floats
    correlations: Floats
    n: int

    def project(self, fingerprints: NDArray[Any]) -> Floats:
        """Coordinates [m, k] of fingerprints [m, 20]; nan where a fingerprint is not finite."""
        f = _rows(fingerprints)
        finite = np.isfinite(f).all(axis=1)
        made = np.full((f.shape[0], self.components.shape[0]), np.nan)
        made[finite] = (f[finite] - self.mean) / self.scale @ self.components.T
        return made

    def directions(self, axis: int) -> tuple[str, str]:
        """What grows towards + and towards - on an axis, like ("more long-range, more diffuse", "more local")."""
        spoken = self._spoken(axis)
        if not spoken:
            return ("no named feature", "no named feature")
        plus = [_WORDS[feature][0 if r > 0 else 1] for feature, r in spoken]
        minus = [_WORDS[feature][1 if r > 0 else 0] for feature, r in spoken]
        return (", ".join(plus), ", ".join(minus))

    def moved(self, axis: int, difference: NDArray[Any], least: float, up: bool) -> str:
        """The features named by an axis that a difference [20] of fingerprints moves by at least `least`, and to the
        side (`up`: +) that the axis says, like "more long-range"; empty where none does.
        """
        d = np.asarray(difference, dtype=np.float64)
        said = [(feature, float(d[feature])) for feature, r in self._spoken(axis) if d[feature] * (r if up else -r) > 0]
        return ", ".join(_WORDS[feature][0 if by > 0 else 1] for feature, by in said if abs(by) >= least)

    def name(self, axis: int) -> str:
        """Short name of an axis, like "local ↔ long-range": the features that grow towards - and towards +."""
        spoken = self._spoken(axis)
        minus = [_NAMES[feature] for feature, r in spoken if r < 0]
        plus = [_NAMES[feature] for feature, r in spoken if r > 0]
        if minus and plus:
            return f"{minus[0]} ↔ {plus[0]}"
        return (minus or plus or ["mixed"])[0]

    def describe(self, axis: int) -> str:
        """One sentence: the axis, its share of the variance and what it was fitted on."""
        plus, _ = self.directions(axis)
        return f"PC{axis + 1} ({self.explained[axis]:.0%} of the variance of {self.n} fingerprints): + is {plus}."

    def _spoken(self, axis: int) -> list[tuple[int, float]]:
        """(feature, correlation) of the features that go with an axis, strongest first."""
        found = [(feature, float(r)) for feature, r in enumerate(self.correlations[axis]) if abs(r) >= _SPOKEN]
        return sorted(found, key=lambda item: (-round(abs(item[1]), 9), item[0]))


def fit(fingerprints: NDArray[Any] | Sequence[Sequence[float]], dimensions: int = 2) -> Projection:
    """Principal components of fingerprints [n, 20], standardised first: mean 0, divided by the standard deviation.

    A deviation below SMALLEST_SCALE counts as SMALLEST_SCALE. Rows that are not finite are left out. Deterministic:
    the largest entry of a component is positive (the first of several). With fewer than two different rows every
    coordinate is 0 and nothing is explained.
    """
    f = _rows(fingerprints)
    f = f[np.isfinite(f).all(axis=1)]
    n = f.shape[0]
    mean, scale = standardisation(f)
    z = (f - mean) / scale
    components = np.zeros((dimensions, FINGERPRINT_SIZE))
    variances = np.zeros(dimensions)
    total = float((z * z).sum()) / max(n, 1)
    if n > 1 and total > _NOTHING**2:
        # The covariance is 20 x 20 however many rows there are.
        values, vectors = np.linalg.eigh(z.T @ z / n)
        order = np.argsort(-values, kind="stable")[:dimensions]
        for axis, place in enumerate(order):
            if values[place] > _NOTHING * values[order[0]]:
                components[axis] = _signed(vectors[:, place])
                variances[axis] = values[place]
    deviations = np.sqrt(variances)
    features = z[:, [LOCAL, MID, LONG, BIN_ENTROPY]]
    spread = np.sqrt((features * features).mean(axis=0)) if n else np.zeros(4)
    covariance = (z @ components.T).T @ features / max(n, 1)
    size = deviations[:, None] * spread[None, :]
    correlations = np.divide(covariance, size, out=np.zeros_like(covariance), where=size > _NOTHING)
    explained = variances / total if total > 0 else variances
    return Projection(mean, scale, components, explained, deviations, np.clip(correlations, -1.0, 1.0), n)


def standardisation(fingerprints: Floats) -> tuple[Floats, Floats]:
    """(mean [20], scale [20]) of finite fingerprints [n, 20]: the standard deviation, at least SMALLEST_SCALE."""
    if not len(fingerprints):
        return np.zeros(FINGERPRINT_SIZE), np.full(FINGERPRINT_SIZE, SMALLEST_SCALE)
    mean = fingerprints.mean(axis=0)
    centred = fingerprints - mean
    return mean, np.maximum(np.sqrt((centred * centred).mean(axis=0)), SMALLEST_SCALE)


def _signed(component: Floats) -> Floats:
    size = np.abs(component)
    first = int(np.argmax(size >= size.max() * (1 - 1e-6)))
    return component if component[first] > 0 else -component


def _rows(fingerprints: Any) -> Floats:
    f = np.asarray(fingerprints, dtype=np.float64)
    if f.size == 0:
        return np.zeros((0, FINGERPRINT_SIZE))
    if f.ndim != 2 or f.shape[1] != FINGERPRINT_SIZE:
        raise ValueError(f"fingerprints must have shape (n, {FINGERPRINT_SIZE}), got {f.shape}")
    return f
