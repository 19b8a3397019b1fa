"""Laws of drift, status and ripple."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geomcli import compass
from geomcli.compass import HALT, OK, WARN, Compass, RippleTracker, bhattacharyya_angle, drift, ripple

seeds = st.integers(0, 2**32 - 1)


def histograms(seed: int, count: int = 10) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(16, 0.5), count)


def test_drift_of_the_known_patterns() -> None:
    assert drift(np.tile(histograms(1, 1), (10, 1))) == 0.0
    flipping = np.tile(np.eye(16)[[2, 9]], (5, 1))
    assert drift(flipping) == pytest.approx(0.5)
    assert drift(np.eye(16)[:10]) == pytest.approx(0.9)


@given(seeds)
def test_drift_is_the_mean_pairwise_distance_and_ignores_the_order_of_bins(seed: int) -> None:
    h = histograms(seed)
    u = np.sqrt(h)
    assert drift(h) == pytest.approx(np.mean([1 - a @ b for a in u for b in u]))
    permuted = h[:, np.random.default_rng(seed).permutation(16)]
    assert drift(permuted) == pytest.approx(drift(h))
    assert 0 <= drift(h) <= 0.9 + 1e-12


@given(seeds)
def test_the_angle_is_a_metric(seed: int) -> None:
    a, b, c = histograms(seed, 3)
    assert bhattacharyya_angle(a, a) == pytest.approx(0, abs=1e-6)
    assert bhattacharyya_angle(a, b) == pytest.approx(bhattacharyya_angle(b, a))
    assert bhattacharyya_angle(a, c) <= bhattacharyya_angle(a, b) + bhattacharyya_angle(b, c) + 1e-9
    assert bhattacharyya_angle(np.eye(16)[0], np.eye(16)[1]) == pytest.approx(np.pi / 2)


def test_status_needs_a_full_window_and_two_steps_and_never_unhalts() -> None:
    watcher = Compass()
    for step in range(9):
        assert watcher.update(np.eye(16)[step]) is None
        assert watcher.status == OK
    assert watcher.update(np.eye(16)[9]) == pytest.approx(0.9)
    assert watcher.status == OK
    watcher.update(np.eye(16)[10])
    assert watcher.status == HALT
    for _ in range(30):
        last = watcher.update(np.eye(16)[0])
    assert last == 0.0
    assert watcher.status == HALT


def test_a_warning_is_taken_back_when_the_pattern_is_stable_again() -> None:
    watcher = Compass(window=4, warn=0.3, halt=0.8)
    for step in range(12):
        watcher.update(np.eye(16)[step % 2])
    assert watcher.status == WARN
    for _ in range(5):
        watcher.update(np.eye(16)[0])
    assert watcher.status == OK


def test_empty_histograms_do_not_count() -> None:
    watcher = Compass(window=2)
    assert watcher.update(np.zeros(16)) is None
    watcher.update(np.eye(16)[0])
    assert watcher.update(np.zeros(16)) is None
    assert watcher.update(np.eye(16)[0]) == 0.0


@pytest.mark.parametrize("arguments", [{"window": 1}, {"warn": 0.6, "halt": 0.5}, {"warn": 0.0}, {"halt": 1.5}])
def test_impossible_settings_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"window|warn"):
        Compass(**arguments)  # type: ignore[arg-type]


def test_ripple_hears_a_period_and_not_a_decay() -> None:
    d = np.arange(256)
    assert ripple(np.exp(-d / 20.0)) < 0.05
    assert ripple(1 / (1.0 + d)) < 0.05
    for period in (4, 7, 16, 40):
        assert ripple(1.0 + np.cos(2 * np.pi * d / period)) > 0.8
    assert ripple(np.zeros(256)) == 0.0
    assert ripple(np.ones(3)) == 0.0
    noise = np.random.default_rng(0).random(256)
    assert ripple(noise) < 0.4


def test_ripple_waits_for_sixteen_steps_and_forgets_after_sixty_four() -> None:
    d = np.arange(256)
    periodic, flat = 1 + np.cos(2 * np.pi * d / 8), np.exp(-d / 20.0)
    tracker = RippleTracker()
    values = [tracker.update(periodic) for _ in range(20)]
    assert values[:15] == [None] * 15
    assert values[15] > 0.8  # type: ignore[operator]
    for _ in range(compass.RIPPLE_WINDOW):
        last = tracker.update(flat)
    assert last is not None
    assert last < 0.05
