"""New fingerprints against a discovery: the nearest medoid inside its radius, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from geomcli.clusters import NOISE, distances
from geomcli.compass import directions_of
from geomcli.discovery.artifacts import Artifacts
from geomcli.discovery.calibration import assigned
from geomcli.errors import GeomError
from geomcli.fingerprint import FINGERPRINT_SIZE

Floats = NDArray[np.float64]
NOISE_NAME = "noise"


@dataclass(frozen=True)
class Classification:
    """cluster, name: -1 and "noise" where no radius reaches; nearest: the cluster of the medoid that is least radii
    away; distance: to it, radius: its own, both in standard deviations; confidence: share of held-out fingerprints
    with such a margin that were right, in [0, 1], .5 where none could be held out; traits: names.
    """

    cluster: int
    name: str
    on_manifold: bool
    confidence: float
    nearest: int
    distance: float
    radius: float
    zone: str
    traits: tuple[str, ...]


class OffManifold(msgspec.Struct, frozen=True):
    """angle: from a direction to the nearest cluster's medoid, in radians; radius: the angle that its windows keep, or
    its members where the manifest says so.
    """

    cluster: int
    angle: float
    radius: float

    @property
    def inside(self) -> bool:
        return self.angle <= self.radius


class Classifier:
    """Classifies against one run; GeomError where it found no cluster at all."""

    def __init__(self, artifacts: Artifacts) -> None:
        if not artifacts.manifest.clusters:
            raise GeomError(
                f"{artifacts.path} found no cluster: everything in it is noise.",
                "geom discover, with more or other traffic",
            )
        self.artifacts = artifacts
        self._medoids = (artifacts.medoids - artifacts.mean) / artifacts.scale
        self._directions = directions_of(artifacts.medoids)

    def classify(self, fingerprints: NDArray[Any]) -> list[Classification]:
        """Of fingerprints [m, 20], finite; ValueError else."""
        f = np.atleast_2d(np.asarray(fingerprints, dtype=np.float64))
        if f.shape[1] != FINGERPRINT_SIZE or not np.isfinite(f).all():
            raise ValueError(f"fingerprints have {FINGERPRINT_SIZE} finite numbers each")
        a = self.artifacts
        apart = distances((f - a.mean) / a.scale, self._medoids)
        labels, margins = assigned(apart, a.radii)
        inside = labels != NOISE
        confidence = np.where(inside, a.inside(margins), a.outside(margins))
        nearest = np.where(inside, labels, (apart / a.radii).argmin(axis=1))
        made = []
        for row, (label, near) in enumerate(zip(labels.tolist(), nearest.tolist(), strict=True)):
            found = a.manifest.clusters[near]
            made.append(
                Classification(
                    label,
                    found.name if label != NOISE else NOISE_NAME,
                    label != NOISE,
                    float(confidence[row]),
                    near,
                    float(apart[row, near]),
                    float(a.radii[near]),
                    found.zone.zone,
                    tuple(trait.name for trait in found.traits),
                )
            )
        return made

    def off_manifold(self, direction: NDArray[Any]) -> OffManifold:
        """Of a direction [16] (roots of a histogram, or the mean of several): the cluster that is least angles away."""
        u = np.asarray(direction, dtype=np.float64)
        size = float(np.linalg.norm(u))
        cosines = self._directions @ u / size if size > 0 else np.zeros(len(self._directions))
        angles = np.arccos(np.clip(cosines, -1.0, 1.0))
        radii = self.artifacts.angles
        best = int((angles / np.maximum(radii, 1e-9)).argmin())
        return OffManifold(best, float(angles[best]), float(radii[best]))
