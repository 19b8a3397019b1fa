"""Discovery from end to end: points -> reduction -> map -> clusters -> names -> calibration, with the time of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from geomcli import clusters
from geomcli.clusters import NOISE, Clusters
from geomcli.compass import directions_of
from geomcli.discovery import maps
from geomcli.discovery.calibration import Calibration, calibrate
from geomcli.discovery.maps import Map
from geomcli.discovery.points import Points
from geomcli.discovery.traits import Trait, ZoneOf, name_of, peak_distance, traits_of, zone_of
from geomcli.errors import GeomError

Floats = NDArray[np.float64]

MIN_SAMPLES = 100
COVERAGE = 0.99
_SMALLEST_ANGLE = 0.01  # radians
STAGES = ("reduction", "map", "clusters", "names", "calibration")


class Parameters(msgspec.Struct, frozen=True):
    """min_samples: fewer fingerprints are refused; min_cluster_size: None for a fortieth of them; coverage: share of a
    cluster's members that its radius reaches.
    """

    min_samples: int = MIN_SAMPLES
    min_cluster_size: int | None = None
    umap: bool = True
    coverage: float = COVERAGE
    seed: int = 0


class Found(msgspec.Struct, frozen=True):
    """A cluster. angle: Bhattacharyya angle to its medoid's histogram that its members keep, in radians; peak:
    distances that have most of its attention.
    """

    cluster: int
    name: str
    size: int
    share: float
    zone: ZoneOf
    traits: list[Trait]
    radius: float
    angle: float
    peak: str


@dataclass(frozen=True, eq=False)
class Discovery:
    points: Points
    parameters: Parameters
    map: Map
    clusters: Clusters
    found: list[Found]
    calibration: Calibration
    seconds: dict[str, float] = field(default_factory=dict)


Progress = Callable[[str, float | None], None]  # a stage, and its seconds when it is over


def discover(points: Points, parameters: Parameters, progress: Progress = lambda _stage, _seconds: None) -> Discovery:
    """Learn the manifold of points; GeomError for fewer than `min_samples` of them."""
    if len(points) < parameters.min_samples:
        raise GeomError(
            f"{len(points)} fingerprints of {points.model or 'no model'} are fewer than the {parameters.min_samples} "
            "that a manifold is learned from.",
            "more answers with fingerprints, or a lower --min-samples",
        )
    seconds: dict[str, float] = {}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        progress(name, None)
        began = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - began
        progress(name, seconds[name])

    f = points.fingerprints
    with stage("reduction"):
        components = maps.components_of(f)
    with stage("map"):
        drawn = maps.draw(f, components, umap=parameters.umap, seed=parameters.seed)
    with stage("clusters"):
        groups = clusters.find(f, parameters.min_cluster_size, sample=len(f), coverage=parameters.coverage)
    with stage("names"):
        found = [_described(points, groups, label, parameters.coverage) for label in range(len(groups))]
    with stage("calibration"):
        z = (f - groups.mean) / groups.scale
        calibration = calibrate(z, groups.labels, points.requests, parameters.coverage)
    return Discovery(points, parameters, drawn, groups, found, calibration, seconds)


def _described(points: Points, groups: Clusters, label: int, coverage: float) -> Found:
    members = np.flatnonzero(groups.labels == label)
    f = points.fingerprints
    traits = traits_of(f[members], f, points.ripples[members])
    zone = zone_of([points.zones[place] for place in members.tolist()])
    roots = directions_of(f[members])
    angles = np.arccos(np.clip(roots @ directions_of(groups.medoids[label])[0], -1.0, 1.0))
    return Found(
        label,
        name_of(zone, traits),
        len(members),
        len(members) / len(points),
        zone,
        traits,
        float(groups.radii[label]),
        max(float(np.quantile(angles, coverage)), _SMALLEST_ANGLE),
        peak_distance(f[members]),
    )


def noise_of(discovery: Discovery) -> int:
    """Fingerprints in no cluster."""
    return int((discovery.clusters.labels == NOISE).sum())
