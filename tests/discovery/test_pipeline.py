"""Planted clusters are found, named with evidence and kept apart from noise; too little is refused."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from geomcli.clusters import NOISE
from geomcli.discovery.pipeline import STAGES, Parameters, discover, noise_of
from geomcli.discovery.points import Points
from geomcli.discovery.traits import TRAITS, traits_of
from geomcli.errors import GeomError
from geomcli.fingerprint import fingerprints_from_histograms
from geomcli.zones import UNKNOWN
from tests.discovery.made_points import CENTRES, planted, points

FAST = Parameters(umap=False)


@pytest.mark.parametrize("seed", range(5))
def test_five_planted_clusters_and_noise(seed: int) -> None:
    given, labels = points(300, seed=seed)
    found = discover(given, FAST)
    assert len(found.found) == len(CENTRES)
    assert adjusted_rand_score(labels, found.clusters.labels) >= 0.95
    members = labels != NOISE
    assert adjusted_rand_score(labels[members], found.clusters.labels[members]) >= 0.95
    stray = found.clusters.labels[~members] == NOISE
    assert stray.mean() >= 0.7
    assert noise_of(found) == (found.clusters.labels == NOISE).sum()


def of(hists: np.ndarray) -> Points:
    n = len(hists)
    return Points("m", fingerprints_from_histograms(hists), [f"r{at // 10}" for at in range(n)], np.arange(n) % 10,
                  [UNKNOWN] * n, np.full(n, np.nan), "traffic", n)  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_one_kind_of_traffic_is_one_cluster_and_its_strays_are_noise(seed: int) -> None:
    random = np.random.default_rng(seed)
    weights = np.full(16, 0.5)
    weights[[0, 1]] = 60
    found = discover(of(np.concatenate([random.dirichlet(weights, 400), random.dirichlet(np.full(16, 0.3), 40)])), FAST)
    assert (len(found.found), found.clusters.one_kind) == (1, True)
    assert found.found[0].size == pytest.approx(400, abs=8)
    assert "local_attention" in [trait.name for trait in found.found[0].traits]
    assert found.calibration.held_out == 440
    assert found.calibration.accuracy >= 0.95


@pytest.mark.parametrize("seed", range(3))
def test_what_has_no_structure_is_no_cluster(seed: int) -> None:
    given = of(np.random.default_rng(seed).dirichlet(np.ones(16), 400))
    found = discover(given, FAST)
    assert found.found == []
    assert noise_of(found) == len(given)
    assert found.calibration.held_out == 0


def test_every_stage_is_told_with_its_time() -> None:
    told: list[tuple[str, float | None]] = []
    given, _ = points(60)
    found = discover(given, FAST, lambda stage, seconds: told.append((stage, seconds)))
    assert [stage for stage, seconds in told if seconds is None] == list(STAGES)
    assert {stage: seconds for stage, seconds in told if seconds is not None} == found.seconds


def test_too_few_are_refused_with_a_sentence() -> None:
    given, _ = points(19, noise=0)
    with pytest.raises(GeomError, match=r"95 fingerprints of made are fewer than the 100 .* Try: .*--min-samples"):
        discover(given, FAST)
    assert discover(given, Parameters(min_samples=95, umap=False)).points is given


def test_names_say_where_the_attention_goes() -> None:
    given, labels = points(200)
    found = discover(given, FAST)
    of = {int(labels[np.flatnonzero(found.clusters.labels == f.cluster)[0]]): f for f in found.found}
    assert of[0].zone.zone == "syntax_floor"
    assert "local_attention" in [t.name for t in of[0].traits]
    assert "retrieval_heavy" in [t.name for t in of[1].traits]
    assert "context_aware" in [t.name for t in of[4].traits]
    assert of[4].peak in ("4096-8191", "16384-32767")
    for f in found.found:
        assert f.share == f.size / len(given)
        for trait in f.traits:
            assert trait.name in TRAITS
            # The evidence is what the trait says it is.
            past = trait.value <= trait.threshold if trait.name == "focused" else trait.value >= trait.threshold
            assert trait.absolute == past
            assert trait.absolute or abs(trait.deviations) >= 1


def test_periods_come_from_ripples_alone() -> None:
    fingerprints, _ = planted(50)
    assert "periodic" not in [t.name for t in traits_of(fingerprints, fingerprints, np.full(len(fingerprints), np.nan))]
    ripples = np.where(np.arange(len(fingerprints)) % 2, 0.8, np.nan)
    (periodic,) = [t for t in traits_of(fingerprints, fingerprints, ripples) if t.name == "periodic"]
    assert (periodic.value, periodic.metric) == (pytest.approx(0.8), "ripple")


def test_umap_keeps_planted_clusters_apart_and_its_seed() -> None:
    given, labels = points(80, noise=0)
    first, again = (discover(given, Parameters(seed=3)) for _ in range(2))
    assert first.map.method == "umap"
    assert first.map.xy.shape == (len(given), 2)
    np.testing.assert_array_equal(first.map.xy, again.map.xy)
    # The nearest neighbour on the map is of the same cluster.
    apart = ((first.map.xy[:, None] - first.map.xy[None]) ** 2).sum(axis=2)
    np.fill_diagonal(apart, np.inf)
    assert (labels[apart.argmin(axis=1)] == labels).mean() > 0.98
