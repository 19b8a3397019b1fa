"""The compass with a discovery: how far its window is off the manifold, and numbers that stay what they are without."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geomcli.compass import DRIFT_WINDOW, Compass
from geomcli.discovery import artifacts
from geomcli.discovery.classification import Classifier
from geomcli.discovery.pipeline import Parameters, discover
from geomcli.discovery.reading import off_manifold
from geomcli.fingerprint import fingerprints_from_histograms
from tests.discovery.made_points import CENTRES, points


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    root = tmp_path_factory.mktemp("store") / "discovery"
    artifacts.write(discover(points(100)[0], Parameters(umap=False)), root)
    return Classifier(artifacts.load(root))


def steps_of(*clusters: int) -> np.ndarray:
    random = np.random.default_rng(7)
    weights = np.full((5, 16), 0.5)
    for label, bins in enumerate(CENTRES):
        weights[label, list(bins)] = 60
    return np.array([random.dirichlet(weights[cluster]) for cluster in clusters])


def test_a_window_of_one_cluster_is_on_the_manifold_and_one_of_two_is_not(classifier: Classifier) -> None:
    compass = Compass(manifold=classifier)
    seen = []
    for step in steps_of(*[0] * 20, *[4] * 20):
        drift = compass.update(step)
        assert (compass.off_manifold is None) == (drift is None)
        seen.append(compass.off_manifold)
    assert seen[: DRIFT_WINDOW - 1] == [None] * (DRIFT_WINDOW - 1)
    inside = [off.inside for off in seen[DRIFT_WINDOW - 1 :] if off is not None]
    assert inside[0]
    assert inside[-1]
    assert not inside[25 - DRIFT_WINDOW]
    # An empty step has no drift, and leaves the window as it is.
    compass.update(np.zeros(16))
    assert compass.off_manifold is None


@given(st.integers(0, 2**32 - 1))
def test_it_says_what_the_reading_of_a_trace_says_and_changes_no_other_number(
    classifier: Classifier, seed: int
) -> None:
    hists = np.random.default_rng(seed).dirichlet(np.full(16, 0.4), 25)
    with_, without = Compass(manifold=classifier), Compass()
    read = off_manifold(fingerprints_from_histograms(hists), classifier)
    for step, expected in zip(hists, read, strict=True):
        assert with_.update(step) == without.update(step)
        assert with_.status == without.status
        assert without.off_manifold is None
        found = with_.off_manifold
        assert (found is None) == (expected is None)
        if found is not None and expected is not None:
            assert found.cluster == expected.cluster
            assert found.angle == pytest.approx(expected.angle, abs=1e-5)
            assert found.radius == expected.radius
