"""Dense groups of fingerprints: HDBSCAN on standardised fingerprints [n, 20], never on a map of them.

Campello, Moulavi & Sander 2013, doi:10.1007/978-3-642-37456-2_14, as scikit-learn implements it. A group is kept as its
medoid and a radius, so that fingerprints that come later can be given to it without fitting again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomcli.compass import directions_of
from geomcli.errors import GeomError
from geomcli.projection import standardisation

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
# Labels [n] of standardised fingerprints [n, 20] in groups of at least as many members: 0 to k - 1, below 0 for noise.
Labeller = Callable[[Floats, int], Labels]

NOISE = -1
SMALLEST = 5  # fingerprints that make a group
# Standard deviations. Members that are all the same are still found when they come with fewer digits.
SMALLEST_RADIUS = 0.01
# A group has at least one fortieth of the points: smaller ones are more than can be told apart in a list.
_SHARE = 40
# HDBSCAN's time grows with the square of n, and it keeps Python's lock for half a second at 4,000 points.
SAMPLE = 2000
# Radians between histograms of one kind. Half of structureless ones, uniform on the simplex, are .53 from their medoid.
ALIKE = 0.35
_MOST_ALIKE = 2 / 3  # share; of a line from one pattern to another, .64 are near its middle
_IN_MEMORY = 2**20  # differences that are in memory at a time


@dataclass(frozen=True, eq=False)
class Clusters:
    """k groups, the largest first.

    labels [n]: 0 to k - 1, NOISE where a fingerprint is in no group; medoids [k, 20]: the member with the smallest sum
    of distances to the others; radii [k]: the distance to it that members keep, in standard deviations; mean,
    scale [20]: what was subtracted, and divided by; smallest: how many members a group had to have; one_kind: whether
    the only group is of `one_kind`, where HDBSCAN found none.
    """

    labels: Labels
    medoids: Floats
    radii: Floats
    mean: Floats
    scale: Floats
    smallest: int
    one_kind: bool = False

    def __len__(self) -> int:
        return len(self.medoids)

    @property
    def sizes(self) -> Labels:
        """[k]: members."""
        return np.bincount(self.labels[self.labels >= 0], minlength=len(self)).astype(np.int64)

    @property
    def noise(self) -> float:
        """Share of the fingerprints that are in no group."""
        return float((self.labels == NOISE).mean()) if len(self.labels) else 0.0

    def assign(self, fingerprints: NDArray[Any]) -> Labels:
        """[m]: the group of the nearest medoid within whose radius each of fingerprints [m, 20] is, else NOISE."""
        f = np.asarray(fingerprints, dtype=np.float64)
        found = np.full(len(f), NOISE, dtype=np.int64)
        if not len(self) or not len(f):
            return found
        finite = np.isfinite(f).all(axis=1)
        z, centres = (f[finite] - self.mean) / self.scale, (self.medoids - self.mean) / self.scale
        given = np.empty(len(z), dtype=np.int64)
        for part in parts(len(z), len(centres)):
            distance = distances(z[part], centres)
            distance[distance > self.radii[None] * (1 + 1e-9)] = np.inf
            given[part] = np.where(np.isfinite(distance.min(axis=1)), distance.argmin(axis=1), NOISE)
        found[finite] = given
        return found


def parts(n: int, k: int) -> Iterator[slice]:
    """Slices that cover n rows, of so many that their differences [rows, k, 20] are a few megabytes."""
    rows = max(1, _IN_MEMORY // (20 * max(k, 1)))
    return (slice(at, at + rows) for at in range(0, n, rows))


def distances(z: Floats, medoids: Floats) -> Floats:
    """[n, k]: Euclidean, of standardised fingerprints [n, 20] to medoids [k, 20].

    From differences: |a|² - 2ab + |b|² loses the digits that distances between nearly equal rows consist of.
    """
    made = np.empty((len(z), len(medoids)))
    for part in parts(*made.shape):
        made[part] = np.sqrt(((z[part, None] - medoids[None]) ** 2).sum(axis=2))
    return made


def medoid_of(z: Floats, *, among: int = SAMPLE) -> int:
    """Row of z [n, 20] with the smallest sum of distances to the others; above `among` rows, to as many of them."""
    rows = np.arange(len(z)) if len(z) <= among else np.linspace(0, len(z) - 1, among).astype(np.int64)
    some = z[rows]
    squares = (some * some).sum(axis=1)
    apart = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * some @ some.T, 0.0))
    return int(rows[apart.sum(axis=1).argmin()])


def smallest_group(n: int) -> int:
    """How many members a group among n fingerprints has to have."""
    return max(SMALLEST, -(-n // _SHARE))


def hdbscan(z: Floats, smallest: int) -> Labels:
    """HDBSCAN of scikit-learn on z [n, 20]; GeomError where that is not installed."""
    try:
        from sklearn.cluster import HDBSCAN
    except ImportError:
        raise GeomError("clusters need scikit-learn.", "pip install 'geomcli[discover]'") from None
    labels: Labels = HDBSCAN(min_cluster_size=smallest, copy=True).fit(z).labels_.astype(np.int64)
    return labels


def find(
    fingerprints: NDArray[Any],
    smallest: int | None = None,
    *,
    sample: int = SAMPLE,
    coverage: float = 1.0,
    single: bool = False,
    labeller: Labeller = hdbscan,
) -> Clusters:
    """Groups among fingerprints [n, 20] of at least `smallest` members (by default `smallest_group`). Deterministic.

    coverage: share of its members that a radius reaches; single: where there is none, fingerprints that are of one kind
    (`one_kind`) are one group; labeller: what finds the groups.

    Above `sample` fingerprints, groups are found among as many, spread evenly over the rows, and the others assigned.
    Rows that are not finite are in none. GeomError where scikit-learn is not installed.
    """
    f = np.asarray(fingerprints, dtype=np.float64)
    finite = np.flatnonzero(np.isfinite(f).all(axis=1)) if len(f) else np.zeros(0, np.int64)
    mean, scale = standardisation(f[finite])
    rows = finite if len(finite) <= sample else finite[np.linspace(0, len(finite) - 1, sample).astype(np.int64)]
    wanted = smallest_group(len(rows)) if smallest is None else smallest
    labels = np.full(len(f), NOISE, dtype=np.int64)
    nothing = Clusters(labels, np.zeros((0, f.shape[1] if f.ndim == 2 else 0)), np.zeros(0), mean, scale, wanted)
    if len(rows) < 2 * wanted:
        return nothing
    z = (f[rows] - mean) / scale
    fitted = labeller(z, wanted)
    alone = single and bool((fitted < 0).all())
    if alone:
        fitted = one_kind(f[rows], z)
    raw = np.where(fitted >= 0, fitted, NOISE)
    count = int(raw.max()) + 1
    if not count:
        return nothing
    order = np.argsort(-np.bincount(raw[raw >= 0], minlength=count), kind="stable")
    place = np.empty(count, dtype=np.int64)
    place[order] = np.arange(count)
    labels[rows] = np.where(raw >= 0, place[raw], NOISE)
    members = [np.flatnonzero(labels[rows] == k) for k in range(count)]
    medoids = np.array([some[medoid_of(z[some])] for some in members])
    apart = np.sqrt(((z - z[medoids][labels[rows]]) ** 2).sum(axis=1))
    radii = np.array([max(float(np.quantile(apart[some], coverage)), SMALLEST_RADIUS) for some in members])
    made = Clusters(labels, f[rows][medoids], radii, mean, scale, wanted, alone)
    if len(rows) < len(finite):
        others = np.setdiff1d(finite, rows)
        labels[others] = made.assign(f[others])
    return made


def one_kind(fingerprints: Floats, z: Floats) -> Labels:
    """[n]: 0 for fingerprints [n, 20] whose histogram is within ALIKE of the medoid's, if two thirds of them are.

    HDBSCAN compares densities within the data, and in one cloud there is nothing to compare: allowed a single cluster,
    it takes the few points of the densest core. z [n, 20]: the same, standardised.
    """
    directions = directions_of(fingerprints)
    near = np.ones(len(z), dtype=np.bool_)
    for _ in range(2):  # once more, from the medoid of those that are near: strays have no part in it
        rows = np.flatnonzero(near)
        near = directions @ directions[rows[medoid_of(z[rows])]] >= np.cos(ALIKE)
        if near.mean() < _MOST_ALIKE:
            return np.full(len(z), NOISE, dtype=np.int64)
    return np.where(near, 0, NOISE)
