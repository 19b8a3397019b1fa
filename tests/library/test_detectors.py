"""Every detector: causal, the same for many answers as for one, unmoved by what was not captured; made by its name."""

from __future__ import annotations

import numpy as np
import pytest

from geomcli.detectors import registry
from geomcli.detectors.heads import LOGIT_NUMBERS, HeadFeatures
from geomcli.detectors.logprob import LogprobDetector
from geomcli.detectors.observations import Observations, of_entries, replay
from geomcli.detectors.summary import Summarised
from geomcli.errors import UsageError
from tests.library.made_answers import HEADS, LAYERS, made, made_calibration, observations

NAMES = sorted(registry.DETECTORS)
TRAINED = [name for name in NAMES if registry.DETECTORS[name].trained]


def together(name: str, answers: list[Observations]) -> list[list[float]]:
    """Scores of answers that are watched side by side, each for as long as it lasts."""
    detector = made(name)
    states = [detector.start() for _ in answers]
    scores: list[list[float]] = [[] for _ in answers]
    for step in range(max(map(len, answers))):
        going = [at for at, answer in enumerate(answers) if step < len(answer)]
        rows = [answers[at].take(np.array([step])) for at in going]
        links = [row.links for row in rows if row.links is not None]
        heads = [row.heads for row in rows if row.heads is not None]
        seen = Observations(
            *(np.concatenate([getattr(row, field) for row in rows])
              for field in ("fingerprint", "logprob", "logit_entropy", "margin")),
            heads=np.concatenate(heads),
            links=type(links[0])(*(np.concatenate([getattr(link, field) for link in links])
                                   for field in ("query", "positions", "masses"))),
        )  # fmt: skip
        for at, score in zip(going, detector.update([states[at] for at in going], seen).tolist(), strict=True):
            scores[at].append(score)
    return scores


@pytest.mark.parametrize("name", NAMES)
def test_many_answers_at_once_are_scored_as_each_alone(name: str) -> None:
    answers = [observations(30 - at % 9, seed=at, lost=0.1) for at in range(12)]
    for answer, scores in zip(answers, together(name, answers), strict=True):
        alone = replay(made(name), answer)
        assert len(alone) == len(answer)
        np.testing.assert_allclose(scores, alone, rtol=1e-12, atol=1e-12)
        assert np.isfinite(alone).sum() > 10


@pytest.mark.parametrize("name", NAMES)
def test_a_score_rests_on_the_tokens_up_to_its_own(name: str) -> None:
    answer, other = observations(40, seed=1), observations(40, seed=2)
    whole = replay(made(name), answer)
    for cut in (1, 7, 25):
        prefix = replay(made(name), answer.take(np.arange(cut)))
        np.testing.assert_array_equal(prefix, whole[:cut])
    assert not np.array_equal(replay(made(name), other)[-5:], whole[-5:])


@pytest.mark.parametrize("name", sorted({*NAMES} - {"rauq"}))
def test_a_token_that_was_not_captured_has_no_score_and_moves_none(name: str) -> None:
    answer = observations(30, seed=3)
    assert answer.heads is not None
    assert answer.links is not None
    gone = observations(30, seed=3)
    assert gone.heads is not None
    assert gone.links is not None
    for values in (gone.fingerprint, gone.logprob, gone.heads):
        values[12] = np.nan
    gone.links.query[12] = -1
    without = replay(made(name), answer.take(np.delete(np.arange(30), 12)))
    scores = replay(made(name), gone)
    assert np.isnan(scores[12])
    np.testing.assert_array_equal(np.delete(scores, 12), without)


@pytest.mark.parametrize("name", sorted({*NAMES} - {"compass"}))
def test_without_what_it_needs_there_is_no_score(name: str) -> None:
    bare = Observations.of_fingerprints(observations(20).fingerprint)
    assert np.isnan(replay(made(name), bare)).all()


def test_logprob_is_the_running_mean_of_surprise() -> None:
    answer = observations(50, seed=4)
    expected = np.cumsum(-answer.logprob) / np.arange(1, 51)
    np.testing.assert_allclose(replay(LogprobDetector(least=1), answer), expected)
    np.testing.assert_array_equal(np.isnan(replay(LogprobDetector(least=6), answer)), np.arange(50) < 5)


@pytest.mark.parametrize("name", TRAINED)
def test_the_statistic_is_pages_and_begins_anew_at_zero(name: str) -> None:
    answer = observations(200, seed=5)
    calibration = made_calibration(name)
    stack = calibration.stack
    assert stack is not None
    about = calibration.about
    kind = registry.DETECTORS[name]
    assert kind.features is not None
    rows = replay(Summarised(kind.features(about.layers, about.heads, kind.set(None)), stack.window), answer)
    z = np.nan_to_num((rows - stack.mean) / stack.scale)
    p = 1 / (1 + np.exp(-(stack.slope * (z @ stack.weights + stack.bias) + stack.offset)))
    odds = np.log(p / (1 - p))
    middle = float(np.quantile(odds, 0.7))
    object.__setattr__(stack, "prior", 1 / (1 + np.exp(-middle)))
    terms = odds - middle
    expected, now = [], 0.0
    for term in terms:
        now = max(0.0, now + term)
        expected.append(now)
    scores = replay(registry.create(name, None, calibration), answer)
    np.testing.assert_allclose(scores, expected, rtol=1e-9, atol=1e-9)
    assert 0.1 < (scores == 0).mean() < 0.9


def test_a_fall_to_zero_forgets_what_was_before() -> None:
    """From a prior so high that every token lowers the statistic, it is 0; from one so low, the plain sum."""
    answer = observations(60, seed=6)
    for prior, falls in ((1 - 1e-9, True), (1e-9, False)):
        calibration = made_calibration("heads")
        assert calibration.stack is not None
        object.__setattr__(calibration.stack, "prior", prior)
        scores = replay(registry.create("heads", None, calibration), answer)
        assert (scores == 0).all() if falls else (np.diff(scores) > 0).all()


def test_summaries_are_mean_recent_and_max_of_what_was_seen() -> None:
    answer = observations(40, seed=7)
    summarised = Summarised(HeadFeatures(LAYERS, HEADS), window=8)
    rows = replay(summarised, answer).reshape(40, 3, -1)
    values = np.column_stack([answer.logprob, answer.logit_entropy, answer.margin])
    np.testing.assert_allclose(rows[:, 0, :3], np.cumsum(values, axis=0) / np.arange(1, 41)[:, None])
    np.testing.assert_array_equal(rows[:, 2, :3], np.maximum.accumulate(values))
    recent = values[0]
    for value in values[1:]:
        recent = recent + (value - recent) / 8
    np.testing.assert_allclose(rows[-1, 1, :3], recent)
    assert summarised.names[:3] == tuple(f"mean {name}" for name in LOGIT_NUMBERS)
    assert summarised.names[3] == "mean entropy of layer 3, head 0"
    assert answer.heads is not None
    np.testing.assert_allclose(rows[-1, 0, 3:], answer.heads.reshape(40, -1)[1:].mean(axis=0), atol=0.05)


def test_the_lookback_of_the_first_token_is_left_out() -> None:
    answer = observations(10, seed=8)
    rows = replay(Summarised(HeadFeatures(LAYERS, HEADS)), answer).reshape(10, 3, -1)
    lookback = [at for at, name in enumerate(HeadFeatures(LAYERS, HEADS).names) if name.startswith("lookback")]
    assert np.isnan(rows[0][:, lookback]).all()
    assert answer.heads is not None
    np.testing.assert_allclose(rows[-1, 0, lookback], answer.heads[1:, :, 3].mean(axis=0).ravel())


def test_entries_become_observations() -> None:
    stats = {
        str(layer): {name: [0.1 * layer + at] * 2 for at, name in enumerate(("entropy", "sink", "prev", "lookback"))}
        for layer in (12, 4)
    }
    seen = of_entries([
        {"logit_stats": {"logprob": -0.5, "entropy_bits": 2.0, "margin": 1.0}, "head_stats": stats,
         "query_position": 9, "token_positions": [9, 2], "topk_logits": [1.0, 0.0], "logsumexp_candidates": 2.0},
        {"flags": ["error"]},
    ])  # fmt: skip
    assert seen.heads is not None
    assert seen.links is not None
    assert seen.heads.shape == (2, 2, 4, 2)
    np.testing.assert_allclose(seen.heads[0, :, 0, 0], [0.4, 1.2])
    assert np.isnan(seen.heads[1]).all()
    assert seen.logprob[0] == -0.5
    assert np.isnan(seen.logprob[1])
    np.testing.assert_allclose(seen.links.masses, [[np.exp(-1), np.exp(-2)], [0, 0]])
    assert seen.links.query.tolist() == [9, -1]
    with pytest.raises(ValueError, match="layers 4 beside 4, 12"):
        of_entries([{"head_stats": stats}, {"head_stats": {"4": stats["4"]}}])


def test_a_detector_with_weights_is_refused_without_them() -> None:
    for name in TRAINED:
        with pytest.raises(UsageError, match=f"{name} has no weights"):
            registry.create(name)
        with pytest.raises(UsageError, match="is for detector logprob"):
            registry.create(name, None, made_calibration("logprob"))


def test_settings_are_checked_by_name() -> None:
    with pytest.raises(UsageError, match="no setting 'depth'; it has: window"):
        registry.create("compass", {"depth": 3})
    with pytest.raises(UsageError, match="window must be >= 2"):
        registry.create("compass", {"window": 1})
    for value in (2.5, 0, 1025, float("inf"), float("nan")):
        with pytest.raises(UsageError, match=r"window of detector compass must be a whole number of 1\.\.1024, got"):
            registry.create("compass", {"window": value})
    with pytest.raises(UsageError, match="alpha must be above 0"):
        registry.create("rauq", {"alpha": 0})
    with pytest.raises(UsageError, match="there is no detector 'oracle'; there are: compass"):
        registry.create("oracle")


def test_other_heads_than_those_it_was_trained_on_are_an_error() -> None:
    answer = observations(3)
    assert answer.heads is not None
    fewer = Observations(answer.fingerprint, answer.logprob, answer.logit_entropy, answer.margin, answer.heads[..., :2])
    with pytest.raises(ValueError, match=r"\(2, 4, 2\).*not \(2, 4, 3\)"):
        replay(made("heads"), fewer)
