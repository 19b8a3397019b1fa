"""Clusters of the manifold's points: found beside the app, kept while points are added, until a scope is left.

Provisional: artifacts of `geom discover` come from more traffic than a screen shows.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from geomcli import clusters
from geomcli.clusters import NOISE, Clusters, Labels
from geomcli.display import NAMELESS, ZONE_GLYPHS, cluster_name
from geomcli.errors import GeomError
from geomcli.tui.cloud import Cloud
from geomcli.zones import UNKNOWN, ZONE_NAMES

# As many times as many points as clusters were found among make it worth to look again.
_AGAIN = 1.25


@dataclass(frozen=True)
class Kinds:
    """What points are told apart by: for each kind a glyph, and the zone whose colour it has."""

    glyphs: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()


class Label(NamedTuple):
    """A name at a place; `texts`: what may stand beside it, the longest first, in the colour of `zone`."""

    x: float
    y: float
    name: str
    texts: tuple[str, ...] = ()
    zone: str = UNKNOWN


@dataclass(frozen=True, eq=False)
class Backdrop:
    """Dots behind the points: xy [m, 2], of [m] places in `colours`, which are zones; "" for what has no colour."""

    xy: NDArray[np.float64]
    of: NDArray[np.int64]
    colours: tuple[str, ...]


ZONE_KINDS = Kinds(tuple(ZONE_GLYPHS[zone] for zone in ZONE_NAMES), tuple(ZONE_NAMES))
_COLOURS = tuple(zone for zone in ZONE_NAMES if zone != UNKNOWN)


class Grouping:
    """`found`: clusters, None before they were looked for; `error`: why they could not be; `shown`: points are drawn as
    clusters and not as zones."""

    def __init__(self) -> None:
        self.found: Clusters | None = None
        self.error = ""
        self.shown = False
        self.busy = False
        self._number = 0
        self._labels = np.zeros(0, dtype=np.int64)

    @property
    def drawn(self) -> bool:
        """Whether there are clusters, and they are to be seen in place of zones."""
        return self.shown and bool(self.found)

    def forget(self) -> None:
        """Other points are shown."""
        self.found = None
        self._number += 1

    def due(self, cloud: Cloud, *, ended: bool) -> bool:
        """Whether to look now. `ended`: no more points are on their way."""
        if self.busy or self.error or not len(cloud):
            return False
        known = 0 if self.found is None else len(self.found.labels)
        return self.found is None or (len(cloud) > known and (ended or len(cloud) >= _AGAIN * known))

    async def look(self, cloud: Cloud) -> None:
        """Find clusters without holding up the app."""
        self.busy, number = True, self._number
        try:
            found = await asyncio.to_thread(clusters.find, cloud.fingerprints.copy())
        except GeomError as error:
            self.error = str(error)
        else:
            if number == self._number:
                self.found, self._labels = found, found.labels
        finally:
            self.busy = False

    def labels(self, cloud: Cloud) -> Labels:
        """[n]: the cluster of each point; of points that came since by the medoids."""
        if self.found is None:
            return np.full(len(cloud), NOISE, dtype=np.int64)
        if len(self._labels) < len(cloud):
            newer = self.found.assign(cloud.fingerprints[len(self._labels) :])
            self._labels = np.concatenate([self._labels, newer])
        return self._labels

    def kinds(self) -> Kinds:
        """A letter for each cluster, the largest A; what is in none comes last. Colours come round."""
        colours = [self.colour(label) for label in range(len(self.found or ()))]
        return Kinds((*map(cluster_name, range(len(colours))), NAMELESS), (*colours, UNKNOWN))

    def colour(self, label: int) -> str:
        """The zone whose colour a cluster has."""
        return UNKNOWN if label == NOISE else _COLOURS[label % len(_COLOURS)]
