"""How sure an assignment to a medoid is: the share of held-out fingerprints with such a margin that the clustering put
into the same group.

Isotonic regression (Barlow et al., 1972; Zadrozny & Elkan 2002, doi:10.1145/775047.775151), kept as the corners of its
steps.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geomcli.clusters import NOISE, distances, medoid_of, parts

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
_BINS = 10
_FEWEST = 2  # members that a radius is measured by


@dataclass(frozen=True, eq=False)
class Curve:
    """Confidence by margin: along lines between the corners (x, y), constant beyond; `constant` without corners."""

    x: Floats
    y: Floats
    constant: float = 0.5

    def __call__(self, margin: Floats) -> Floats:
        made: Floats = np.interp(margin, self.x, self.y) if len(self.x) else np.full(len(margin), self.constant)
        return made


@dataclass(frozen=True, eq=False)
class Calibration:
    """`inside`, `outside`: of what lies within a radius, and of what lies in none; `held_out`: how many fingerprints
    they rest on; `accuracy`: share of these that the medoids gave to the group of the clustering; `error`: expected
    calibration error, in [0, 1], where a curve was fitted on other requests; None where there are no others.
    """

    inside: Curve
    outside: Curve
    held_out: int
    accuracy: float
    error: float | None


def assigned(apart: Floats, radii: Floats) -> tuple[Labels, Floats]:
    """(label [n], margin [n]) from distances [n, k] and radii [k].

    The nearest medoid whose radius is not exceeded, else NOISE. Margin of a member: how far it is from the radius and
    from the next medoid, whichever is less, as a share; of noise: by what share of a radius it is outside.
    """
    n, k = apart.shape
    if not k:
        return np.full(n, NOISE, dtype=np.int64), np.full(n, np.inf)
    within = np.where(apart <= radii * (1 + 1e-9), apart, np.inf)
    nearest = within.argmin(axis=1)
    rows = np.arange(n)
    inside = np.isfinite(within[rows, nearest])
    own = apart[rows, nearest]
    others = apart.copy()
    others[rows, nearest] = np.inf
    next_ = others.min(axis=1) if k > 1 else np.full(n, np.inf)
    # A medoid that is nearer, with a radius that is too small, leaves no margin.
    of_next = np.where(next_ > 0, 1 - own / np.where(next_ > 0, next_, 1.0), 0.0)
    margin = np.minimum(1 - own / radii[nearest], of_next)
    outside = (apart / radii).min(axis=1) - 1
    return np.where(inside, nearest, NOISE).astype(np.int64), np.where(inside, margin, outside)


def assigned_to(z: Floats, medoids: Floats, radii: Floats) -> tuple[Labels, Floats]:
    """`assigned` of standardised fingerprints [n, 20] to medoids [k, 20]; never with [n, k] distances in memory."""
    labels, margins = np.empty(len(z), dtype=np.int64), np.empty(len(z))
    for part in parts(len(z), len(medoids)):
        labels[part], margins[part] = assigned(distances(z[part], medoids), radii)
    return labels, margins


def calibrate(z: Floats, labels: Labels, requests: Sequence[str], coverage: float) -> Calibration:
    """Of standardised fingerprints [n, 20] with the clustering's labels [n], in two halves by request.

    Medoids and radii of one half assign the other, so nothing is judged by what it was fitted on. A cluster with fewer
    than two members in one half is not looked for in the other, and its members there are not judged.
    """
    hashes = np.array([zlib.crc32(request.encode()) for request in requests], dtype=np.int64)
    half, quarter = hashes & 1, hashes >> 1 & 1
    margins, right, found, folds = [], [], [], []
    for side in (0, 1):
        sizes = np.bincount(labels[(labels != NOISE) & (half != side)])
        known = np.flatnonzero(sizes >= _FEWEST)
        held = np.flatnonzero((half == side) & ((labels == NOISE) | np.isin(labels, known)))
        if not len(known) or not len(held):
            continue
        given, margin = _assigned_by_half(z, labels, half != side, known, held, coverage)
        margins.append(margin)
        found.append(given)
        right.append((given == labels[held]).astype(np.float64))
        folds.append(held)
    if not margins:
        return Calibration(Curve(np.zeros(0), np.zeros(0)), Curve(np.zeros(0), np.zeros(0)), 0, 0.0, None)
    margin, given, correct, held = (np.concatenate(part) for part in (margins, found, right, folds))
    inside = given != NOISE
    return Calibration(
        _curve(margin[inside], correct[inside]), _curve(margin[~inside], correct[~inside]), len(margin),
        float(correct.mean()), _error(margin, correct, inside, half[held] if len(folds) == 2 else quarter[held]),
    )  # fmt: skip


def _assigned_by_half(
    z: Floats, labels: Labels, fitted: NDArray[np.bool_], known: Labels, held: Labels, coverage: float
) -> tuple[Labels, Floats]:
    """(label, margin) of the fingerprints `held`, by the medoids that the clusters `known` have among the `fitted`."""
    groups = [z[(labels == label) & fitted] for label in known]
    centres = np.array([group[medoid_of(group)] for group in groups])
    radii = np.array([
        max(float(np.quantile(distances(group, centre[None])[:, 0], coverage)), 1e-9)
        for group, centre in zip(groups, centres, strict=True)
    ])  # fmt: skip
    places, margin = assigned_to(z[held], centres, radii)
    return np.where(places == NOISE, NOISE, known[places]), margin


def _error(margin: Floats, correct: Floats, inside: NDArray[np.bool_], fold: Labels) -> float | None:
    """Expected calibration error of curves that are fitted on one fold (0 or 1) and judged on the other."""
    said = np.full(len(margin), np.nan)
    for part in (inside, ~inside):
        for side in (0, 1):
            other = part & (fold != side)
            if other.any():
                said[part & (fold == side)] = _curve(margin[other], correct[other])(margin[part & (fold == side)])
    judged = np.isfinite(said)
    return expected_error(said[judged], correct[judged]) if judged.any() else None


def expected_error(said: Floats, correct: Floats) -> float:
    """Expected calibration error of confidences [n] against what was right [n], in ten bins of equal width."""
    place = np.clip((said * _BINS).astype(np.int64), 0, _BINS - 1)
    parts = [place == at for at in range(_BINS)]
    return float(sum(abs(said[p].mean() - correct[p].mean()) * p.mean() for p in parts if p.any()))


def _curve(margin: Floats, correct: Floats) -> Curve:
    from sklearn.isotonic import IsotonicRegression

    if len(margin) < 2:
        return Curve(np.zeros(0), np.zeros(0), float(correct.mean()) if len(correct) else 0.5)
    fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(margin, correct)
    return Curve(np.asarray(fitted.X_thresholds_), np.asarray(fitted.y_thresholds_))
