"""Training finds a planted signal and none where there is none; parts share no group; what is said is held out."""

from __future__ import annotations

import numpy as np
import pytest

from geomcli.detector_calibration import HELD_OUT, PARTS, Plan, calibrate, split
from geomcli.detectors import registry
from geomcli.detectors.calibration import THOUSAND
from geomcli.detectors.conformal import level
from geomcli.detectors.observations import replay
from geomcli.detectors.summary import Summarised
from geomcli.detectors.trained import log_odds, margins
from geomcli.errors import GeomError, UsageError
from geomcli.labelled_answers import Answer
from tests.library.made_answers import HEADS, LAYERS, observations


def answers(n: int, *, seed: int = 0, planted: float = 0.0, surprise: float = 0.0, start: int = 0) -> list[Answer]:
    """Two of each question, every third wrong; planted: what one head's lookback loses in wrong ones; surprise: what
    their tokens cost more, as a share.
    """
    random = np.random.default_rng([seed, start])
    made = []
    for at in range(start, start + n):
        wrong = bool(random.random() < 1 / 3)
        seen = observations(int(random.integers(12, 30)), seed=1000 * seed + at, surprise=1 + surprise * wrong)
        assert seen.heads is not None
        if wrong:
            seen.heads[1:, 1, 3, 2] *= 1 - planted
        made.append(Answer(f"t{at}", "m", f"q{at // 2}", wrong, seen, len(seen), LAYERS, HEADS))
    return made


def test_a_planted_signal_of_one_head_is_found() -> None:
    calibration, result = calibrate(Plan("heads", 0.1), answers(400, planted=0.4), [], "made")
    held = result.held_out
    assert held is not None
    ours, *others = held.areas
    assert ours.auroc > 0.9
    assert ours.interval is not None
    assert ours.interval[0] <= ours.auroc <= ours.interval[1]
    assert [area.name for area in others] == ["length", "mean -logprob", "trained on logits alone"]
    for area in others:
        assert area.gain == pytest.approx(ours.auroc - area.auroc)
        assert area.gain_interval is not None
        assert area.gain_interval[0] > 0.1
    assert held.caught / held.wrong > 0.6
    assert held.false_alarms / held.right < 0.25
    stack = calibration.stack
    assert stack is not None
    # All that is heavy is about that head.
    assert stack.features[int(np.abs(stack.weights).argmax())].endswith("lookback of layer 7, head 2")
    assert stack.slope > 0


def test_where_there_is_none_nothing_is_found() -> None:
    areas = []
    for seed in range(4):
        _, result = calibrate(Plan("heads", 0.1, seed=seed), answers(180, seed=seed), [], "made")
        assert result.held_out is not None
        areas.append(result.held_out.areas[0].auroc)
    assert abs(np.mean(areas) - 0.5) < 0.15


def test_probabilities_are_calibrated() -> None:
    """Over the tokens of answers that nothing was fitted on: in each half by p, the share of wrong ones is p."""
    calibration, _ = calibrate(Plan("heads", 0.1), answers(500, planted=0.25), [], "made")
    stack = calibration.stack
    assert stack is not None
    fresh = answers(300, planted=0.25, start=10_000)
    features = registry.DETECTORS["heads"].features
    assert features is not None
    summarised = Summarised(features(LAYERS, HEADS, {}), stack.window)
    odds = [log_odds(margins(replay(summarised, answer.seen), stack), stack).mean() for answer in fresh]
    p = 1 / (1 + np.exp(-np.array(odds)))
    wrong = np.array([bool(answer.wrong) for answer in fresh])
    low = p < np.median(p)
    assert abs(p[low].mean() - wrong[low].mean()) < 0.1
    assert abs(p[~low].mean() - wrong[~low].mean()) < 0.15
    assert wrong[~low].mean() > wrong[low].mean() + 0.3


def test_parts_share_no_group_and_do_not_rest_on_the_order() -> None:
    some = answers(100)
    parts = split(some, (0.4, 0.15, 0.25, 0.2), 0)
    groups = [{answer.group for answer in parts[name]} for name in PARTS]
    assert [len(of) for of in groups] == [20, 8, 12, 10]
    assert len(set.union(*groups)) == sum(map(len, groups)) == 50
    again = split(some[::-1], (0.4, 0.15, 0.25, 0.2), 0)
    assert [{a.trace_id for a in again[name]} for name in PARTS] == [
        {a.trace_id for a in parts[name]} for name in PARTS
    ]
    assert split(some, (0.4, 0.15, 0.25, 0.2), 1)[HELD_OUT] != parts[HELD_OUT]


@pytest.mark.parametrize("name", ["compass", "logprob", "rauq"])
def test_clean_traffic_alone_gives_a_threshold(name: str) -> None:
    clean = answers(120)
    calibration, result = calibrate(Plan(name, 0.05), [], clean, "made")
    assert result.held_out is None
    # Two answers to each question: they are alike, so that one of them counts.
    assert (result.clean.answers, calibration.about.n) == (60, 60)
    assert any("60 clean answers, one of each group, of 120" in note for note in result.notes)
    detector = registry.create(name, None, calibration)
    alarms = sum(level(replay(detector, answer.seen)) >= calibration.about.threshold for answer in clean)
    assert alarms <= 0.1 * 120


def test_labelled_answers_judge_a_threshold_of_clean_traffic() -> None:
    clean, labelled = answers(150, start=1000), answers(200, surprise=2.0)
    for answer in clean:
        object.__setattr__(answer, "wrong", None)
    _, result = calibrate(Plan("logprob", 0.05, consecutive=2), labelled, clean, "made")
    held = result.held_out
    assert held is not None
    assert (result.parts[HELD_OUT].answers, result.clean.answers) == (200, 75)
    assert held.areas[0].auroc > 0.75
    assert held.false_alarms / held.right < 0.4


def test_clean_answers_of_questions_that_were_trained_on_are_left_out() -> None:
    labelled, clean = answers(300, planted=0.4), answers(160, start=200)
    calibration, result = calibrate(Plan("heads", 0.05), labelled, clean, "made")
    assert calibration.about.n == result.clean.answers < 160
    assert any("trained on their groups" in note for note in result.notes)


def test_nothing_is_judged_by_what_the_threshold_rests_on() -> None:
    some = answers(120)
    _, result = calibrate(Plan("logprob", 0.05), some, answers(60), "made")
    assert result.parts[HELD_OUT].answers == 60
    assert any("60 labelled answers are left out" in note for note in result.notes)
    _, result = calibrate(Plan("logprob", 0.05), some, some, "made")
    assert result.held_out is None


def test_a_rate_for_a_thousand_tokens() -> None:
    calibration, _ = calibrate(Plan("logprob", 2.0, per=THOUSAND), [], answers(120), "made")
    assert calibration.about.per == THOUSAND
    with pytest.raises(GeomError, match=r"need 100000 tokens"):
        calibrate(Plan("logprob", 0.01, per=THOUSAND), [], answers(120), "made")


def test_what_does_not_do_is_refused() -> None:
    some = answers(80)
    with pytest.raises(UsageError, match="needs labelled answers"):
        calibrate(Plan("heads", 0.1), [], some, "made")
    right = [answer for answer in answers(200) if not answer.wrong]
    with pytest.raises(GeomError, match=r"the part `train` has 0 wrong and .* both are needed"):
        calibrate(Plan("heads", 0.1), right, [], "made")
    for name, value, said in (
        ("model", "n", "of one model, and the answers are of m, n"),
        ("heads", 4, "4 heads of layers"),
    ):
        odd = answers(80)
        object.__setattr__(odd[3], name, value)
        with pytest.raises(UsageError, match=said):
            calibrate(Plan("heads", 0.1), odd, [], "made")
    bare = [
        Answer(a.trace_id, "m", a.group, a.wrong, type(a.seen).of_fingerprints(a.seen.fingerprint), a.tokens, (), 0)
        for a in some
    ]
    with pytest.raises(UsageError, match=r"rauq needs .*head_stats.* and .*logit_stats.*; none of the 80 labelled"):
        calibrate(Plan("rauq", 0.1), bare, [], "made")
    with pytest.raises(GeomError, match="needs 99 clean answers, and there are"):
        calibrate(Plan("logprob", 0.01), some, [], "made")
