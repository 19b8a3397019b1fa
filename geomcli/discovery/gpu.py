"""HDBSCAN and UMAP on a GPU by cuML, where it can be imported; on the CPU by scikit-learn and umap-learn, else.

After cuML's documentation, docs.rapids.ai: `cuml.cluster.HDBSCAN`, `cuml.manifold.UMAP`. What it raises, or gives in
another shape, is a reason to compute on the CPU, and is said.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from geomcli import clusters
from geomcli.clusters import Labels
from geomcli.discovery import maps

Floats = NDArray[np.float64]
T = TypeVar("T")


class Implementations:
    """`used`: what computed a stage, by name and version; `reasons`: why cuML did not, where it is installed."""

    def __init__(self) -> None:
        self.used: dict[str, str] = {}
        self.reasons: list[str] = []
        self._ready = find_spec("cuml") is not None and self._has_gpu()

    def hdbscan(self, z: Floats, smallest: int) -> Labels:
        """A `clusters.Labeller`."""

        def on_gpu() -> Labels:
            fitted = import_module("cuml.cluster").HDBSCAN(min_cluster_size=smallest, output_type="numpy").fit(z)
            labels: Labels = _array(fitted.labels_, (len(z),)).astype(np.int64)
            return labels

        return self._by("clusters", on_gpu, lambda: clusters.hdbscan(z, smallest), "scikit-learn")

    def umap(self, reduced: Floats, neighbours: int, seed: int) -> Floats:
        """A `maps.Embedder`."""

        def on_gpu() -> Floats:
            made = import_module("cuml.manifold").UMAP(
                n_components=2, n_neighbors=neighbours, random_state=seed, output_type="numpy"
            )
            return _array(made.fit_transform(reduced), (len(reduced), 2))

        return self._by("map", on_gpu, lambda: maps.umap(reduced, neighbours, seed), "umap-learn")

    def _by(self, stage: str, on_gpu: Callable[[], T], on_cpu: Callable[[], T], package: str) -> T:
        if self._ready:
            try:
                made = on_gpu()
            except Exception as error:  # whatever it raises, the CPU can do it
                self.reasons.append(f"cuML was not used for {stage}: {_said(error)}.")
            else:
                self.used[stage] = _named("cuml")
                return made
        made = on_cpu()
        self.used[stage] = _named(package)
        return made

    def _has_gpu(self) -> bool:
        """As CuPy counts them, which cuML is built on."""
        try:
            if import_module("cupy").cuda.runtime.getDeviceCount() > 0:
                return True
            reason = "there is no GPU"
        except Exception as error:  # CuPy's own errors, those of a driver, a library that is missing
            reason = _said(error)
        self.reasons.append(f"cuML was not used: {reason}.")
        return False


def _array(made: Any, shape: tuple[int, ...]) -> Floats:
    values = np.asarray(made, dtype=np.float64)
    if values.shape != shape or not np.isfinite(values).all():
        raise ValueError(f"numbers of shape {values.shape} came, not {shape}, or not all finite")
    return values


def _said(error: Exception) -> str:
    """In one line; the dot at its end is the caller's."""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".: ")


def _named(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package
