"""The manifold's points on the learned map: their places and clusters, added to as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from geomcli.clusters import NOISE, Labels
from geomcli.display import NAMELESS, cluster_name
from geomcli.tui.grouping import Backdrop, Kinds, Label
from geomcli.tui.learned import Learned, Plane, words
from geomcli.zones import UNKNOWN

if TYPE_CHECKING:
    from geomcli.discovery.pipeline import Found

_FEW = 32  # points that are placed at once; for more of them keys do not wait
ELSEWHERE = -2  # of a point that is of another model, or not placed yet


class Mapping:
    """`shown`: the learned map is wanted in place of principal components. xy [n, 2], nan where a point is not on the
    map; labels [n]: its cluster, NOISE or ELSEWHERE.
    """

    def __init__(self, learned: Learned) -> None:
        self.learned = learned
        self.shown = False
        self.of_tokens = True  # rather than of traces
        self.busy = False
        self._plane: Plane | None = None
        self._backdrop: Backdrop | None = None
        self.forget()

    def forget(self) -> None:
        """Other points are shown."""
        self.xy: NDArray[np.float64] = np.zeros((0, 2))
        self.labels: Labels = np.zeros(0, dtype=np.int64)
        self._number = object()

    @property
    def drawn(self) -> bool:
        """Whether the plane is the learned map."""
        return self.shown and self.learned.plane is not None

    def due(self, n: int) -> bool:
        """Whether some of n points are not placed yet."""
        if self._plane is not self.learned.plane:
            self._plane, self._backdrop = self.learned.plane, None
            self.forget()
        return self.drawn and not self.busy and len(self.xy) < n

    def is_quick(self, n: int) -> bool:
        return n - len(self.xy) <= _FEW

    def place(self, fingerprints: NDArray[np.float64], models: Sequence[str]) -> None:
        """Place what is new of fingerprints [n, 20]. models: of those that are new."""
        self._add(*_placed(self.learned, fingerprints[len(self.xy) :], models, tokens=self.of_tokens))

    async def place_beside(self, fingerprints: NDArray[np.float64], models: Sequence[str]) -> None:
        """`place`, without holding up the app."""
        self.busy, number = True, self._number
        try:
            new = fingerprints[len(self.xy) :].copy()
            made = await asyncio.to_thread(_placed, self.learned, new, models, tokens=self.of_tokens)
            if number is self._number:
                self._add(*made)
        finally:
            self.busy = False

    def _add(self, xy: NDArray[np.float64], labels: Labels) -> None:
        self.xy, self.labels = np.concatenate([self.xy, xy]), np.concatenate([self.labels, labels])

    def places(self, n: int) -> NDArray[np.float64]:
        """[n, 2], nan for those that are not placed yet."""
        return np.concatenate([self.xy[:n], np.full((max(0, n - len(self.xy)), 2), np.nan)])

    def clusters(self, n: int) -> Labels:
        """[n]"""
        return np.concatenate([self.labels[:n], np.full(max(0, n - len(self.labels)), ELSEWHERE, dtype=np.int64)])

    @property
    def found(self) -> list[Found]:
        """The discovery's clusters."""
        classifier = self.learned.classifier
        return [] if classifier is None else classifier.artifacts.manifest.clusters

    def kinds(self) -> Kinds:
        """A letter for each cluster in the colour of its zone; what is in none comes last."""
        names = [cluster_name(found.cluster) for found in self.found]
        glyphs = (name if len(name) == 1 else "+" for name in names)
        return Kinds((*glyphs, NAMELESS), (*(found.zone.zone for found in self.found), UNKNOWN))

    def backdrop(self) -> Backdrop | None:
        """The map's own points, in the colours of their clusters' zones."""
        plane = self.learned.plane
        if plane is None:
            return None
        if self._backdrop is None:
            of = np.where(plane.clusters == NOISE, len(self.found), plane.clusters)
            self._backdrop = Backdrop(plane.xy, of, (*(found.zone.zone for found in self.found), ""))
        return self._backdrop

    def names(self) -> list[Label]:
        """At the medoid of each cluster its letter, name and share of the discovery."""
        plane = self.learned.plane
        if plane is None:
            return []
        return [
            Label(x, y, cluster_name(found.cluster), _texts(found), found.zone.zone)
            for found, (x, y) in zip(self.found, plane.medoids.tolist(), strict=True)
        ]


def _texts(found: Found) -> tuple[str, ...]:
    share = f"{found.share:.0%}"
    parts = words(found.name).split(", ")
    return (*(f"{', '.join(parts[:count])} {share}" for count in range(len(parts), 0, -1)), share)


def _placed(
    learned: Learned, fingerprints: NDArray[np.float64], models: Sequence[str], *, tokens: bool
) -> tuple[NDArray[np.float64], Labels]:
    xy = np.full((len(fingerprints), 2), np.nan)
    labels = np.full(len(fingerprints), ELSEWHERE, dtype=np.int64)
    classifier, plane = learned.classifier, learned.plane
    if classifier is None or plane is None:
        return xy, labels
    from geomcli.discovery.maps import place

    a = classifier.artifacts
    own = np.array([model == a.manifest.model for model in models], dtype=bool) & np.isfinite(fingerprints).all(axis=1)
    values = np.clip(fingerprints[own], 0.0, 1.0)
    if len(values):
        if not (tokens and learned.of_requests):
            labels[own], _ = learned.assign(values)
        xy[own] = place((values - a.mean) / a.scale, plane.z, plane.xy)
    return xy, labels
