"""RAUQ as its definition says, written out for whole answers."""

from __future__ import annotations

import numpy as np
import pytest

from geomcli.detectors.observations import Observations, replay
from geomcli.detectors.rauq import RauqDetector
from tests.library.made_answers import observations


def defined(probabilities: np.ndarray, attention: np.ndarray, alpha: float) -> float:
    """u of tokens with probabilities [T] and attention to the token before [T, layers, H]."""
    of_layers = []
    for layer in range(attention.shape[1]):
        head = attention[1:, layer].sum(axis=0).argmax()
        confidence = [probabilities[0]]
        for i in range(1, len(probabilities)):
            confidence.append(alpha * probabilities[i] + (1 - alpha) * attention[i, layer, head] * confidence[-1])
        of_layers.append(-np.log(confidence).mean())
    return float(max(of_layers))


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0])
def test_it_is_the_definition_one_token_late(alpha: float) -> None:
    answer = observations(25, seed=1)
    assert answer.heads is not None
    scores = replay(RauqDetector(alpha, least=1), answer)
    probabilities = np.exp(answer.logprob)
    own_rows = answer.heads[1:, :, 2]  # the row of token i comes with the entry of token i + 1
    assert np.isnan(scores[0])
    for seen in range(1, 25):
        assert scores[seen] == pytest.approx(defined(probabilities[:seen], own_rows[:seen], alpha))


def test_with_alpha_1_it_is_the_mean_surprise() -> None:
    answer = observations(25, seed=2)
    np.testing.assert_allclose(replay(RauqDetector(1.0, least=1), answer)[-1], -answer.logprob[:-1].mean())


def test_less_attention_to_the_token_before_is_less_confidence() -> None:
    answer = observations(20, seed=3)
    assert answer.heads is not None
    less = answer.heads.copy()
    less[:, :, 2] *= 0.5
    looking_away = Observations(answer.fingerprint, answer.logprob, answer.logit_entropy, answer.margin, less)
    assert (replay(RauqDetector(), looking_away)[4:] > replay(RauqDetector(), answer)[4:]).all()


def test_tokens_without_numbers_leave_a_number() -> None:
    scores = replay(RauqDetector(), observations(60, seed=4, lost=0.2))
    assert np.isfinite(scores).sum() > 20
    assert np.isfinite(scores[-10:]).any()


def test_an_impossible_token_is_a_number() -> None:
    answer = observations(5)
    answer.logprob[1] = -1e4
    assert np.isfinite(replay(RauqDetector(1.0, least=1), answer)[1:]).all()
