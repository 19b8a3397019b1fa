"""Many requests at once give what the one-request classes of the library give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from geomcli.compass import Compass, RippleTracker, ripple
from geomcli.fingerprint import (
    fingerprint_from_histogram,
    fingerprints_from_histograms,
    mean_histogram,
    round_significant,
    rounded,
)
from geomcli.trackers import Trackers
from geomcli.zones import classify, classify_many


def test_drift_and_ripple_of_requests_that_come_and_go() -> None:
    rng = np.random.default_rng(5)
    trackers, compasses, tracked = Trackers(), {}, {}
    slots: dict[int, int] = {}
    steps = 0
    for step in range(160):
        if step % 7 == 0:
            slots[step] = trackers.open()
            compasses[step], tracked[step] = Compass(), RippleTracker()
        if step % 31 == 30:
            trackers.close(slots.pop(min(slots)))
        names = [n for n in slots if rng.random() < 0.9]
        if not names:
            continue
        histograms = rng.dirichlet(np.full(16, 0.3), len(names))
        histograms[rng.random(len(names)) < 0.05] = 0  # nothing but sinks
        width = int(rng.integers(1, 257))
        profiles = rng.random((len(names), width)) * (1 + np.sin(np.arange(width) / 2))
        profiles = profiles.astype(np.float32)
        if step // 40 % 2:
            profiles[:, width // 3 :] = 0  # mass that comes and goes
        moved = trackers.update([slots[n] for n in names], histograms, profiles)
        for i, name in enumerate(names):
            drift, strength = compasses[name].update(histograms[i]), tracked[name].update(profiles[i])
            assert (drift is None and np.isnan(moved.drift[i])) or drift == moved.drift[i]
            if strength is None:
                assert np.isnan(moved.ripple[i])
            else:
                assert moved.ripple[i] == pytest.approx(strength, abs=1e-9)
            steps += 1
    assert steps > 1000


def test_a_reopened_slot_remembers_nothing() -> None:
    trackers = Trackers()
    slot = trackers.open()
    constant = np.full((1, 16), 1 / 16)
    for _ in range(30):
        moved = trackers.update([slot], constant, np.ones((1, 4), dtype=np.float32))
    assert moved.drift[0] == 0
    trackers.close(slot)
    assert trackers.open() == slot
    moved = trackers.update([slot], constant, np.ones((1, 4), dtype=np.float32))
    assert np.isnan(moved.drift[0])
    assert np.isnan(moved.ripple[0])


@given(arrays(np.float64, (7, 16), elements=st.floats(0, 1)), arrays(np.float64, 7, elements=st.floats(0, 1)))
def test_zones_and_fingerprints_of_many(histograms: np.ndarray, strengths: np.ndarray) -> None:
    sums = histograms.sum(axis=1, keepdims=True)
    histograms = np.divide(histograms, sums, out=np.zeros_like(histograms), where=sums > 1e-9)
    many = fingerprints_from_histograms(histograms)
    strengths[0] = np.nan
    zones = classify_many(many, strengths)
    for i, (zone, confidence) in enumerate(zones):
        one = fingerprint_from_histogram(histograms[i])
        assert (one == many[i]).all()
        decision = classify(one, None if np.isnan(strengths[i]) else float(strengths[i]))
        assert (zone, confidence) == (decision.zone, decision.confidence)


def test_the_mean_over_layers_of_many() -> None:
    rng = np.random.default_rng(0)
    histograms, weights = rng.dirichlet(np.ones(16), (3, 5)), rng.integers(0, 9, (3, 5))
    histograms[1, 2] = 0
    weights[:, 4] = 0
    many = mean_histogram(histograms, weights)
    for i in range(5):
        assert (many[i] == mean_histogram(histograms[:, i], weights[:, i])).all()
    assert (many[4] == 0).all()


@given(st.floats(-1e12, 1e12, allow_nan=False))
def test_rounding_of_many_is_the_rounding_of_one(value: float) -> None:
    found, expected = rounded(np.array([value]))[0], round_significant(value)
    assert found == pytest.approx(expected, rel=1.1e-6 if abs(value) < 1e6 else 1e-5, abs=1e-300)
    if 1e-15 < abs(value) < 1e5:
        assert len(repr(found).replace("-", "").replace(".", "").lstrip("0").split("e")[0]) <= 7


def test_a_profile_of_any_width_has_a_ripple() -> None:
    wave = 1 + np.cos(2 * np.pi * np.arange(200) / 10)
    assert ripple(wave) > 0.8
    assert ripple(np.exp(-np.arange(200) / 20)) == 0
    assert ripple(np.array([])) == ripple(np.ones(3)) == 0
