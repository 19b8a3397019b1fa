"""AUROC against the count of all pairs; its bootstrap against the spread over fresh samples."""

from __future__ import annotations

import numpy as np
import pytest

from geomcli import auroc


def pairs(scores: np.ndarray, wrong: np.ndarray) -> float:
    differences = scores[wrong][:, None] - scores[~wrong][None]
    return float((differences > 0).mean() + (differences == 0).mean() / 2)


def sample(random: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    wrong = random.random(n) < 0.4
    return random.normal(0, 1, n) + wrong, wrong


def test_it_is_the_share_of_pairs_in_the_right_order() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        scores, wrong = sample(random, 50)
        scores = scores.round(1)  # ties
        assert auroc.auroc(scores, wrong) == pytest.approx(pairs(scores, wrong))
        counts = random.integers(0, 4, 50)
        repeated = np.repeat(scores, counts), np.repeat(wrong, counts)
        assert auroc.auroc(scores, wrong, counts.astype(float)) == pytest.approx(pairs(*repeated))


def test_without_both_kinds_there_is_none() -> None:
    assert np.isnan(auroc.auroc(np.arange(3.0), np.zeros(3, dtype=bool)))
    assert auroc.interval(np.full(10, np.nan)) is None


def test_an_answer_that_no_threshold_alarms_at_is_the_lowest() -> None:
    assert auroc.auroc(np.array([-np.inf, -np.inf, 1.0]), np.array([False, False, True])) == 1


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    truth = 0.7602  # P(N(1, 1) > N(0, 1))
    inside = 0
    for seed in range(200):
        scores, wrong = sample(random, 120)
        draws = auroc.drawn([str(at) for at in range(120)], 200, seed)
        found = auroc.interval(auroc.bootstrapped(scores, wrong, draws))
        assert found is not None
        inside += found[0] <= truth <= found[1]
    assert 0.88 <= inside / 200 <= 0.99


def test_groups_are_drawn_whole() -> None:
    draws = auroc.drawn(["a", "b", "a", "c"], 50)
    assert (draws[:, 0] == draws[:, 2]).all()
    assert (draws[:, [0, 1, 3]].sum(axis=1) == 3).all()
