"""The angle that a window of tokens is judged by is calibrated on windows, where a cluster has enough of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from geomcli.discovery import artifacts, points
from geomcli.discovery.classification import Classifier
from geomcli.discovery.pipeline import Parameters, discover
from geomcli.discovery.points import Unit
from geomcli.discovery.reading import off_manifold
from geomcli.fingerprint import fingerprints_from_histograms
from geomcli.store import Store
from tests.discovery.made_points import CENTRES, filled

TOKENS = 40


def traffic(requests: int, seed: int, centres: tuple[tuple[int, ...], ...] = CENTRES) -> np.ndarray:
    """[requests * TOKENS, 20]: each request of one cluster, with a tenth of its tokens off every one."""
    random = np.random.default_rng(seed)
    hists = []
    for request in range(requests):
        weights = np.full(16, 0.5)
        weights[list(centres[request % len(centres)])] = 20
        some = random.dirichlet(weights, TOKENS)
        stray = random.random(TOKENS) < 0.1
        some[stray] = random.dirichlet(np.full(16, 0.3), int(stray.sum()))
        hists.append(some)
    return fingerprints_from_histograms(np.concatenate(hists))


def learnt(folder: Path, fingerprints: np.ndarray, unit: Unit = "token", tokens: int = TOKENS) -> Classifier:
    filled(folder / "t.db", fingerprints, tokens=tokens)
    with Store(folder / "t.db") as store:
        found = points.stored(store, unit=unit, most=2500)
    discovery = discover(found, Parameters(min_samples=10, umap=False))
    return Classifier(artifacts.load(artifacts.write(discovery, folder / "discovery")))


def judged(fingerprints: np.ndarray, classifier: Classifier) -> list[bool]:
    """Whether each window is inside, of requests that are read one after the other."""
    return [
        off.inside
        for at in range(0, len(fingerprints), TOKENS)
        for off in off_manifold(fingerprints[at : at + TOKENS], classifier)
        if off is not None
    ]


@pytest.mark.parametrize("seed", range(3))
def test_windows_like_those_learned_from_are_inside_and_no_others(tmp_path: Path, seed: int) -> None:
    # Thinned: neighbours of a learned point are mostly not among the points.
    classifier = learnt(tmp_path, traffic(200, seed))
    found = classifier.artifacts.manifest.clusters
    assert {cluster.angle_of for cluster in found} == {"windows"}
    assert sum(cluster.angle_n for cluster in found) <= 2000
    assert np.mean(judged(traffic(50, seed + 100), classifier)) >= 0.97
    assert np.mean(judged(traffic(50, seed + 200, ((1, 8), (0, 15), (5, 12))), classifier)) <= 0.05
    # Windows vary less than single tokens: the radius of these takes in what is between clusters.
    members = np.array([np.quantile(angles_of(classifier, label), 0.99) for label in range(len(found))])
    assert (classifier.artifacts.angles < members).all()


def angles_of(classifier: Classifier, label: int) -> np.ndarray:
    """Of single tokens of fresh traffic in a cluster to its medoid."""
    fresh = traffic(50, 7)
    labels = np.array([c.cluster for c in classifier.classify(fresh)])
    roots = np.sqrt(fresh[labels == label][:, 4:])
    return np.arccos(np.clip(roots @ np.sqrt(classifier.artifacts.medoids[label][4:]), -1, 1))


def test_one_point_a_request_is_calibrated_on_windows_of_tokens_too(tmp_path: Path) -> None:
    classifier = learnt(tmp_path, traffic(200, 0), "request")
    assert {cluster.angle_of for cluster in classifier.artifacts.manifest.clusters} == {"windows"}
    assert np.mean(judged(traffic(50, 100), classifier)) >= 0.97


def test_short_requests_are_calibrated_on_members(tmp_path: Path) -> None:
    classifier = learnt(tmp_path, traffic(60, 0), tokens=9)
    for cluster in classifier.artifacts.manifest.clusters:
        assert (cluster.angle_of, cluster.angle_n) == ("members", cluster.size)
