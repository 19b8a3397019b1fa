"""Discovery from end to end: points -> reduction -> map -> clusters -> names -> calibration, with the time of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from geomcli import clusters
from geomcli.clusters import NOISE, Clusters
from geomcli.compass import directions_of
from geomcli.discovery import maps
from geomcli.discovery.calibration import Calibration, calibrate
from geomcli.discovery.gpu import Implementations
from geomcli.discovery.maps import Map
from geomcli.discovery.points import Points
from geomcli.discovery.traits import Trait, ZoneOf, name_of, peak_distance, traits_of, zone_of
from geomcli.errors import GeomError
from geomcli.fingerprint import FINGERPRINT_SIZE, N_BINS

Floats = NDArray[np.float64]

MIN_SAMPLES = 100
COVERAGE = 0.99
_SMALLEST_ANGLE = 0.01  # radians
_LEAST_WINDOWS = 20  # of a cluster, to calibrate its angle on
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
    """A cluster. peak: distances that have most of its attention; angle: Bhattacharyya angle to its medoid's histogram,
    in radians, that `angle_n` of its windows keep (`angle_of`: mean directions of the compass' windows), or its members
    where there are too few windows.
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
    angle_of: Literal["windows", "members"] = "members"
    angle_n: int = 0


@dataclass(frozen=True, eq=False)
class Discovery:
    """implementations: what computed a stage; reasons: why not cuML, where it is installed."""

    points: Points
    parameters: Parameters
    map: Map
    clusters: Clusters
    found: list[Found]
    calibration: Calibration
    seconds: dict[str, float] = field(default_factory=dict)
    implementations: dict[str, str] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)


Progress = Callable[[str, float | None], None]  # a stage, and its seconds when it is over


def refuse_too_few(points: Points, least: int) -> None:
    """GeomError for fewer than `least` points."""
    if len(points) >= least:
        return
    unit = "requests" if points.of_requests else "fingerprints"
    left_out = f" ({points.unsound} stored fingerprints are not sound)" if points.unsound else ""
    raise GeomError(
        f"{len(points)} {unit} of {points.model or 'no model'}{left_out} are fewer than the {least} that a manifold is "
        "learned from.",
        "more answers with fingerprints, or a lower --min-samples",
    )


def discover(points: Points, parameters: Parameters, progress: Progress = lambda _stage, _seconds: None) -> Discovery:
    """Learn the manifold of points; GeomError as `refuse_too_few`."""
    refuse_too_few(points, parameters.min_samples)
    seconds: dict[str, float] = {}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        progress(name, None)
        began = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - began
        progress(name, seconds[name])

    f = points.fingerprints
    by = Implementations()
    with stage("reduction"):
        components = maps.components_of(f)
    with stage("map"):
        drawn = maps.draw(f, components, seed=parameters.seed, embedder=by.umap if parameters.umap else None)
    with stage("clusters"):
        groups = clusters.find(
            f, parameters.min_cluster_size, sample=len(f), coverage=parameters.coverage, single=True,
            labeller=by.hdbscan,
        )  # fmt: skip
    with stage("names"):
        windows = _window_angles(points, groups)
        found = [_described(points, groups, label, angles, parameters.coverage) for label, angles in enumerate(windows)]
    with stage("calibration"):
        z = (f - groups.mean) / groups.scale
        calibration = calibrate(z, groups.labels, points.requests, parameters.coverage)
    return Discovery(points, parameters, drawn, groups, found, calibration, seconds, by.used, by.reasons)


def _window_angles(points: Points, groups: Clusters) -> list[Floats]:
    """For each cluster the angles to its medoid of the windows that are nearest to it, as `off_manifold` measures them.

    Of windows with at least half of their tokens in some cluster: the others are what is off the manifold. Of all of
    them where points are means of requests, as a token is then in no cluster.
    """
    if not len(groups):
        return []
    windows = points.windows
    if (points.steps >= 0).all():
        labels = groups.assign(windows.reshape(-1, FINGERPRINT_SIZE)).reshape(windows.shape[:2])
        windows = windows[(labels != NOISE).mean(axis=1) >= 0.5]
    roots = np.sqrt(np.maximum(windows[..., -N_BINS:], 0.0))
    means = roots.mean(axis=1)
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    angles = np.arccos(np.clip(means @ directions_of(groups.medoids).T, -1.0, 1.0))
    nearest = angles.argmin(axis=1)
    return [angles[nearest == label, label] for label in range(len(groups))]


def _described(points: Points, groups: Clusters, label: int, windows: Floats, coverage: float) -> Found:
    members = np.flatnonzero(groups.labels == label)
    f = points.fingerprints
    traits = traits_of(f[members], f, points.ripples[members])
    zone = zone_of([points.zones[place] for place in members.tolist()])
    enough = len(windows) >= _LEAST_WINDOWS
    angles = windows
    if not enough:
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
        "windows" if enough else "members",
        len(angles),
    )


def noise_of(discovery: Discovery) -> int:
    """Fingerprints in no cluster."""
    return int((discovery.clusters.labels == NOISE).sum())
