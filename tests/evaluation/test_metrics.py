"""Metrics against their definitions, and bootstrap intervals that cover."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geomcli.evaluation import metrics
from geomcli.evaluation.online import cusum

SCORES = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=40)


@given(SCORES)
def test_auroc_is_the_share_of_pairs_in_order_ties_half(pairs: list[tuple[int, bool]]) -> None:
    scores, wrong = np.array([float(s) for s, _ in pairs]), np.array([w for _, w in pairs])
    found = metrics.auroc(scores, wrong)
    bad, good = scores[wrong], scores[~wrong]
    if not len(bad) or not len(good):
        assert np.isnan(found)
        return
    difference = bad[:, None] - good[None]
    assert found == pytest.approx(((difference > 0) + (difference == 0) / 2).mean())


@given(SCORES, st.integers(0, 2**31))
def test_a_weight_is_a_repetition(pairs: list[tuple[int, bool]], seed: int) -> None:
    scores, wrong = np.array([float(s) for s, _ in pairs]), np.array([w for _, w in pairs])
    times = np.random.default_rng(seed).integers(0, 4, size=len(scores))
    repeated = metrics.auroc(np.repeat(scores, times), np.repeat(wrong, times)) if times.sum() else float("nan")
    assert metrics.auroc(scores, wrong, times.astype(float)) == pytest.approx(repeated, nan_ok=True)


@given(st.lists(st.tuples(st.integers(-4, 4), st.booleans(), st.integers(0, 2)), min_size=1, max_size=40))
def test_within_strata_only_pairs_of_one_stratum_count(answers: list[tuple[int, bool, int]]) -> None:
    scores, wrong = np.array([float(s) for s, _, _ in answers]), np.array([w for _, w, _ in answers])
    strata = np.array([k for _, _, k in answers])
    found = metrics.within(scores, wrong, strata, np.ones((1, len(answers))))[0]
    pairs = [(a > b) + (a == b) / 2 for a, w, k in answers for b, v, other in answers if w and not v and k == other]
    assert found == pytest.approx(np.mean(pairs) if pairs else float("nan"), nan_ok=True)


def test_rejection_ratio_of_cases_by_hand() -> None:
    wrong = np.array([True, False, True, False])
    assert metrics.rejection_ratio(np.array([3.0, 1.0, 4.0, 2.0]), wrong) == pytest.approx(1.0)
    assert metrics.rejection_ratio(np.zeros(4), wrong) == pytest.approx(0.0)
    # Kept first: right, wrong, right, wrong: 0, 1/2, 1/3, 1/2; of the oracle 0, 0, 1/3, 1/2; of chance 1/2 each.
    expected = (2 - 4 / 3) / (2 - 5 / 6)
    assert metrics.rejection_ratio(np.array([2.0, 1.0, 4.0, 3.0]), wrong) == pytest.approx(expected)
    assert metrics.rejection_ratio(-np.array([3.0, 1.0, 4.0, 2.0]), wrong) < 0
    assert np.isnan(metrics.rejection_ratio(np.zeros(2), np.array([True, True])))


def test_average_precision_and_recall_of_cases_by_hand() -> None:
    scores, wrong = np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, False, True, False])
    assert metrics.average_precision(scores, wrong) == pytest.approx((1 + 2 / 3) / 2)
    assert metrics.average_precision(np.zeros(4), wrong) == pytest.approx(0.5)
    assert metrics.recall_at(scores, wrong, 0.0) == pytest.approx(0.5)
    assert metrics.recall_at(scores, wrong, 0.5) == pytest.approx(1.0)
    assert metrics.recall_at(np.zeros(4), wrong, 0.05) == 0.0


def test_calibration_error_of_right_and_of_shifted_probabilities() -> None:
    generator = np.random.default_rng(0)
    p = generator.random(40_000)
    wrong = generator.random(40_000) < p
    assert metrics.calibration_error(p, wrong) < 0.02
    assert metrics.calibration_error(np.clip(p + 0.3, 0, 1), wrong) > 0.15


def test_a_score_that_is_length_alone_is_worth_nothing_among_answers_of_one_length() -> None:
    generator = np.random.default_rng(1)
    wrong = generator.random(4000) < 0.5
    lengths = generator.integers(1, 8, size=4000) + 4 * wrong
    assert metrics.auroc(lengths.astype(float), wrong) > 0.85
    assert abs(metrics.matched_auroc(lengths + generator.random(4000) / 10, wrong, lengths, bins=50) - 0.5) < 0.04


def test_the_bootstrap_draws_groups_and_its_intervals_cover() -> None:
    weights = metrics.bootstrap_weights(np.array(["a", "b", "a", "c"]), 0, 50)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    generator = np.random.default_rng(2)
    truth, covered, n = 0.7602, 0, 60  # of N(1, 1) over N(0, 1): Phi(1 / sqrt 2)
    for run in range(n):
        wrong = np.repeat(generator.random(100) < 0.5, 2)
        scores = np.repeat(generator.normal(size=100), 2) + wrong  # both answers of a group are alike
        groups = np.repeat(np.arange(100), 2).astype(str)
        low, high = metrics.interval(metrics.aurocs(scores, wrong, metrics.bootstrap_weights(groups, run, 300)))
        covered += low <= truth <= high
    assert covered >= 0.85 * n


@given(st.lists(st.floats(-3, 3), max_size=30))
def test_cusum_is_the_largest_sum_that_ends_there(ratios: list[float]) -> None:
    found = cusum(np.array(ratios))
    for at in range(len(ratios)):
        assert found[at] == pytest.approx(max(0.0, *(sum(ratios[k : at + 1]) for k in range(at + 1))), abs=1e-9)


def test_a_wilson_interval_holds_its_share_and_is_never_outside() -> None:
    assert metrics.wilson(0, 10)[0] == 0.0
    assert metrics.wilson(0, 10)[1] == pytest.approx(0.2775, abs=1e-3)
    assert metrics.wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-3)
    assert np.isnan(metrics.wilson(0, 0)[0])


def test_a_share_s_interval_covers_where_both_answers_of_a_group_are_alike_and_wilson_s_does_not() -> None:
    generator = np.random.default_rng(3)
    groups, everyone = np.repeat(np.arange(80), 2).astype(str), np.ones(160, dtype=bool)
    covered, counted_apart, n = 0, 0, 200
    for run in range(n):
        values = np.repeat(generator.random(80) < 0.3, 2).astype(float)
        weights = metrics.bootstrap_weights(groups, run, 300)
        low, high = metrics.share_interval(values, everyone, groups, weights)
        covered += low <= 0.3 <= high
        low, high = metrics.wilson(int(values.sum()), 160)
        counted_apart += low <= 0.3 <= high
    assert covered >= 0.9 * n > counted_apart


def test_a_share_of_none_or_all_is_as_uncertain_as_its_number_of_groups() -> None:
    groups, everyone = np.repeat(np.arange(10), 2).astype(str), np.ones(20, dtype=bool)
    weights = metrics.bootstrap_weights(groups, 0)
    assert metrics.share_interval(np.zeros(20), everyone, groups, weights) == metrics.wilson(0, 10)
    assert metrics.share_interval(np.ones(20), everyone, groups, weights) == metrics.wilson(10, 10)
    assert np.isnan(metrics.share_interval(np.ones(20), ~everyone, groups, weights)[0])
