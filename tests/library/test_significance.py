"""Significance: the block length that theory asks for, few false alarms, no miss of what is there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from geomcli.comparison import compare
from geomcli.significance import (
    MIN_STEPS,
    agreement_interval,
    block_length,
    differences_of_means,
    effective_steps,
    kappa,
    verdict,
)
from tests.library.made_traces import LOCAL, LONG, MID, trace

values = st.floats(0, 1) | st.just(float("nan"))
series = arrays(np.float64, st.integers(0, 60), elements=values)


def autoregressive(rng: np.random.Generator, n: int, phi: float, columns: int = 1) -> np.ndarray:
    """x_t = phi x_(t-1) + noise, [n, columns]."""
    noise = rng.normal(size=(n + 300, columns))
    x = np.zeros_like(noise)
    for t in range(1, n + 300):
        x[t] = phi * x[t - 1] + noise[t]
    return x[300:]


def named(rows: np.ndarray) -> dict[str, np.ndarray]:
    return {str(column): rows[:, column] for column in range(rows.shape[1])}


@pytest.mark.parametrize("phi", [0.3, 0.5, 0.8, 0.9])
def test_the_block_length_is_the_one_that_theory_asks_for(phi: float) -> None:
    rng, n = np.random.default_rng(1), 10_000
    found = np.mean([block_length(autoregressive(rng, n, phi)[:, 0]) for _ in range(10)])
    assert found == pytest.approx((6 * phi**2 / (1 - phi**2) ** 2 * n) ** (1 / 3), rel=0.15)


def test_steps_without_correlation_are_drawn_nearly_alone() -> None:
    rng = np.random.default_rng(2)
    assert np.median([block_length(rng.normal(size=1000)) for _ in range(20)]) <= 6
    assert block_length(np.ones(1000)) == 1
    assert block_length(np.arange(3.0)) == 1


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.8])
def test_steps_that_are_alike_count_for_fewer(phi: float) -> None:
    found = effective_steps(autoregressive(np.random.default_rng(3), 5000, phi)[:, 0])
    assert found == pytest.approx(5000 * (1 - phi) / (1 + phi), rel=0.1)


@pytest.mark.parametrize(("n", "phi"), [(60, 0.0), (60, 0.5), (256, 0.5), (256, 0.8), (1000, 0.9)])
def test_one_source_twice_rarely_differs(n: int, phi: float) -> None:
    """All six differences at once: 5 in 100 are meant to be alarms; more than 12 would be a broken test."""
    rng, alarms = np.random.default_rng(4), 0
    for _ in range(100):
        found = differences_of_means(*(named(autoregressive(rng, n, phi, 6)) for _ in range(2)), replicates=200)
        alarms += any(verdict(1.0, interval) == "clear" for interval in found.intervals.values())
    assert alarms <= 12


def test_a_difference_that_is_there_is_found() -> None:
    rng = np.random.default_rng(5)
    a, b = (autoregressive(rng, 256, 0.5, 3) for _ in range(2))
    b[:, 1] += 1.0
    found = differences_of_means(named(a), named(b))
    verdicts = {name: verdict(1.0, interval) for name, interval in found.intervals.items()}
    assert verdicts == {"0": "noise", "1": "clear", "2": "noise"}
    assert found.intervals["1"][0] < b[:, 1].mean() - a[:, 1].mean() < found.intervals["1"][1]


@given(series, series)
def test_any_series_either_side_first(a: np.ndarray, b: np.ndarray) -> None:
    there = differences_of_means({"x": a}, {"x": b}, replicates=20)
    back = differences_of_means({"x": b}, {"x": a}, replicates=20)
    assert set(there.intervals) == set(back.intervals)
    assert (there.block_a, there.block_b) == (back.block_b, back.block_a)
    if "x" in there.intervals:
        (low, high), (other_low, other_high) = there.intervals["x"], back.intervals["x"]
        assert low <= np.nanmean(b) - np.nanmean(a) + 1e-12
        assert high >= np.nanmean(b) - np.nanmean(a) - 1e-12
        assert (low, high) == pytest.approx((-other_high, -other_low), abs=1e-12)


@given(arrays(np.float64, 40, elements=st.floats(0, 1)))
def test_a_series_against_itself_is_noise(a: np.ndarray) -> None:
    found = differences_of_means({"x": a}, {"x": a}, replicates=20)
    assert all(verdict(0.0, interval) == "noise" for interval in found.intervals.values())


def test_too_little_is_not_tested() -> None:
    rng = np.random.default_rng(6)
    long, short = rng.normal(size=100), rng.normal(size=MIN_STEPS - 1)
    gaps = np.full(100, np.nan)
    gaps[: MIN_STEPS - 1] = short
    wandering = autoregressive(rng, 60, 0.99)[:, 0]
    for other in (short, gaps, wandering):
        assert differences_of_means({"x": long}, {"x": other}) == ({}, None, None)
    assert differences_of_means({"x": long}, {"y": long}).intervals == {}
    assert verdict(0.5, None) == verdict(None, (0.1, 0.2)) == "untested"


def test_kappa() -> None:
    a, b = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    assert kappa(a, b) == pytest.approx((0.75, 0.5, 0.5))
    assert kappa(a, a)[2] == 1
    assert kappa(np.zeros(3, int), np.zeros(3, int)) == (1.0, 1.0, None)


def test_agreement_tells_order_from_chance() -> None:
    rng = np.random.default_rng(7)
    a = rng.integers(0, 3, 200)
    mostly = np.where(rng.random(200) < 0.2, rng.integers(0, 3, 200), a)
    low, high = agreement_interval(a, mostly) or (0, 0)
    assert 0.6 < low < (kappa(a, mostly)[2] or 0) < high < 1
    low, high = agreement_interval(a, rng.permutation(a)) or (0, 0)
    assert low < 0 < high
    assert agreement_interval(a, mostly) == agreement_interval(mostly, a)
    assert agreement_interval(a[:5], a[:5]) is None


def drawn(seed: int, weights: np.ndarray, n: int = 80) -> Any:
    hists = np.random.default_rng(seed).dirichlet(weights * 4 + 0.01, n)
    return trace([f"t{at}" for at in range(n)], list(hists))


def test_traces_are_called_what_they_are() -> None:
    one, again, other = drawn(0, LOCAL + MID), drawn(1, LOCAL + MID), drawn(2, LOCAL + 3 * LONG)
    alike, unlike = compare(one, again), compare(one, other)
    assert alike.significance.clear == 0
    assert alike.significance.tested >= 6
    assert all("within the noise" in said for said in alike.differences if "against" in said)
    assert unlike.significance.clear >= 4
    assert not any("within the noise" in said for said in unlike.differences if "long-range" in said)


def test_what_was_not_tested_is_not_said_to_be_so() -> None:
    one, few = drawn(0, LOCAL + MID), drawn(2, LOCAL + 3 * LONG, MIN_STEPS - 1)
    c = compare(one, few)
    assert c.significance.tested == 0
    told = [said for said in c.differences if "against" in said and "longer" not in said and "shorter" not in said]
    assert len(told) > 3
    assert all("not tested: too few independent steps" in said for said in told)
    assert any(said.endswith("not tested: too few pairs.") for said in c.differences if "aligned" in said)
    wild = drawn(0, LOCAL + MID)
    wild.steps[3]["drift"], one.steps[3]["drift"] = 0.4, 0.1
    said = next(said for said in compare(one, wild).differences if "largest drift" in said)
    assert said == "B changes its pattern more: largest drift 0.400 against 0.100, not tested: one step each."


def test_shuffled_steps_are_said_to_agree_by_chance() -> None:
    hists = [LOCAL, LOCAL, MID, LONG] * 20
    shuffled = [hists[n] for n in np.random.default_rng(8).permutation(80)]
    texts = [f"t{n}" for n in range(80)]
    c = compare(trace(texts, hists), trace(texts, shuffled))
    assert c.differences[0].startswith("At 80 aligned tokens the zones agree in ")
    assert c.differences[0].endswith("no more than by chance.")
    assert c.significance.clear == 0
