"""Thresholds keep their rate of false alarms, in simulation, and are refused where they cannot."""

from __future__ import annotations

import numpy as np
import pytest

from geomcli.compass import HALT
from geomcli.detectors import conformal
from geomcli.detectors.logprob import LogprobDetector
from geomcli.detectors.observations import replay
from geomcli.errors import GeomError
from geomcli.firewall import Firewall
from tests.library.made_answers import observations


def test_the_level_of_an_answer_is_the_highest_threshold_that_alarms() -> None:
    scores = np.array([np.nan, 1.0, 5.0, np.nan, 2.0, 3.0])
    assert conformal.level(scores) == 5
    assert conformal.level(scores, 2) == 2
    assert conformal.level(scores, 4) == 1
    assert conformal.level(scores, 5) == conformal.NEVER
    assert conformal.level(np.zeros(0)) == conformal.NEVER


@pytest.mark.parametrize("consecutive", [1, 2, 5])
def test_a_firewall_halts_exactly_the_answers_whose_level_reaches_its_threshold(consecutive: int) -> None:
    halted = 0
    for seed in range(60):
        answer = observations(30, seed=seed, lost=0.1)
        detector = LogprobDetector()
        reached = conformal.level(replay(detector, answer), consecutive)
        firewall = Firewall(detector, 1.3, 1.3, consecutive)
        watched = firewall.watch()
        for step in range(len(answer)):
            firewall.check([watched], answer.take(np.array([step])))
        assert (watched.status == HALT) == (reached >= 1.3)
        halted += watched.status == HALT
    assert 5 < halted < 55


@pytest.mark.parametrize(("n", "rate"), [(99, 0.01), (150, 0.05), (40, 0.1)])
def test_coverage_of_new_answers(n: int, rate: float) -> None:
    """Over draws of calibration answers the false alarms are at most the rate, and not below rate - 1 / (n + 1)."""
    random = np.random.default_rng(1)
    draws = 4000
    alarms = 0
    for _ in range(draws):
        levels = random.standard_t(3, n + 1)
        alarms += levels[-1] >= conformal.per_answer(levels[:-1].tolist(), rate)
    error = 3 * (rate * (1 - rate) / draws) ** 0.5
    assert rate - 1 / (n + 1) - error <= alarms / draws <= rate + error


def test_coverage_where_levels_are_tied() -> None:
    random = np.random.default_rng(2)
    alarms = [
        float(levels[-1] >= conformal.per_answer(levels[:-1].tolist(), 0.1))
        for levels in random.integers(0, 4, (3000, 60)).astype(float)
    ]
    assert np.mean(alarms) <= 0.1 + 3 * (0.09 / 3000) ** 0.5


def test_alarms_in_a_thousand_tokens() -> None:
    """Long answers score higher: the rate still holds for alarms over tokens."""
    random = np.random.default_rng(3)
    rate, alarms, tokens = 1.0, 0, 0
    for _ in range(3000):
        lengths = random.integers(5, 120, 81)
        levels = random.exponential(1, 81) + lengths / 100
        threshold = conformal.per_thousand(levels[:-1].tolist(), lengths[:-1].tolist(), rate)
        alarms += int(levels[-1] >= threshold)
        tokens += int(lengths[-1])
    found = 1000 * alarms / tokens
    assert 0.5 * rate < found <= rate + 3 * (alarms**0.5) * 1000 / tokens


def test_too_few_answers_are_refused_with_the_number_needed() -> None:
    assert conformal.answers_needed(0.01) == 99
    assert conformal.answers_needed(0.05) == 19
    conformal.per_answer([1.0] * 99, 0.01)
    with pytest.raises(GeomError, match="needs 99 clean answers, and there are 98") as refused:
        conformal.per_answer([1.0] * 98, 0.01)
    assert refused.value.mend is not None
    rate = float(refused.value.mend.split()[1].rstrip(","))
    conformal.per_answer([1.0] * 98, rate)
    with pytest.raises(GeomError, match="need 2000 tokens of clean answers, and there are 1999"):
        conformal.per_thousand([1.0] * 10, [199] * 9 + [208], 0.5)
    with pytest.raises(GeomError, match="one in each of the 3 clean answers"):
        conformal.per_thousand([1.0] * 3, [1000] * 3, 500)


def test_answers_without_scores_do_not_make_a_threshold() -> None:
    with pytest.raises(GeomError, match="have no score"):
        conformal.per_answer([conformal.NEVER] * 99, 0.01)


def test_the_threshold_lies_just_above_a_level() -> None:
    levels = list(map(float, range(99)))
    threshold = conformal.per_answer(levels, 0.01)
    assert threshold > 98
    assert threshold - 98 < 1e-9
