"""A map of fingerprints for eyes: standardised, principal components, then UMAP [n, 2], or the first two components.

McInnes, Healy & Melville 2018, arXiv:1802.03426, as umap-learn implements it. Clusters are not looked for on it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from geomcli.errors import GeomError
from geomcli.projection import Projection, fit

Floats = NDArray[np.float64]
Embedder = Callable[[Floats, int, int], Floats]  # [n, d], neighbours, seed -> [n, 2]

_COMPONENTS = 10
_NEIGHBOURS = 15
_NEAREST = 5  # points that place a new one


@dataclass(frozen=True, eq=False)
class Map:
    """`xy` [n, 2]; `method`; `components`: what the fingerprints were reduced to in front of it."""

    xy: Floats
    method: Literal["umap", "pca"]
    components: Projection


def components_of(fingerprints: Floats) -> Projection:
    """The first ten principal components of fingerprints [n, 20]."""
    return fit(fingerprints, _COMPONENTS)


def umap(reduced: Floats, neighbours: int, seed: int) -> Floats:
    """[n, 2] of reduced [n, d] by umap-learn, on one core; GeomError where that is not installed."""
    with warnings.catch_warnings():
        # Of libraries that it imports and does not need; several components of its graph are what clusters look like.
        warnings.simplefilter("ignore")
        try:
            from umap import UMAP
        except ImportError:
            raise GeomError(
                "the map needs umap-learn.", "pip install 'geomcli[discover]', or geom discover --no-umap"
            ) from None
        made = UMAP(n_components=2, n_neighbors=neighbours, random_state=seed, n_jobs=1).fit_transform(reduced)
    return np.asarray(made, dtype=np.float64)


def draw(fingerprints: Floats, components: Projection, *, seed: int = 0, embedder: Embedder | None = umap) -> Map:
    """The map of fingerprints [n, 20] by `embedder`; by principal components without one, and for very few.

    umap: the same seed gives the same map on one machine.
    """
    reduced = components.project(fingerprints)
    if embedder is None or len(reduced) <= _NEIGHBOURS + 1:
        return Map(reduced[:, :2], "pca", components)
    return Map(embedder(reduced, _NEIGHBOURS, seed), "umap", components)


def place(new: Floats, known: Floats, xy: Floats) -> Floats:
    """[m, 2]: where new points [m, d] come to lie beside known ones [n, d] at xy [n, 2]: the mean place of the five
    nearest, by inverse distance. nan where nothing is known.
    """
    if not len(known):
        return np.full((len(new), 2), np.nan)
    made = np.empty((len(new), 2))
    count = min(_NEAREST, len(known))
    squares = (known * known).sum(axis=1)
    for at, row in enumerate(new):
        apart = np.sqrt(np.maximum(squares - 2 * known @ row + row @ row, 0.0))
        nearest = np.argpartition(apart, count - 1)[:count]
        weight = 1 / np.maximum(apart[nearest], 1e-6)
        made[at] = (xy[nearest] * weight[:, None]).sum(axis=0) / weight.sum()
    return made
