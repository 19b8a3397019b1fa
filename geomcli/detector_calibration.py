"""A detector with a threshold from answers: a split by group, training, the threshold, what held-out answers say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from geomcli import auroc
from geomcli.detector_training import fit
from geomcli.detectors import conformal, registry
from geomcli.detectors.calibration import ANSWER, THOUSAND, About, Calibration
from geomcli.detectors.heads import LogitFeatures
from geomcli.detectors.logprob import LogprobDetector
from geomcli.detectors.observations import HEADS, LINKS, LOGITS, Detector, Floats, Observations, replay
from geomcli.detectors.trained import TrainedDetector
from geomcli.errors import GeomError, UsageError
from geomcli.labelled_answers import Answer

TRAIN, CALIBRATE, CONFORMAL, HELD_OUT = PARTS = ("train", "calibrate", "conformal", "held_out")
Shape = tuple[tuple[int, ...], int]  # layers, and how many heads of each
# Of the groups, by what there is to do with them: (weights to train, clean traffic given).
_SHARES: Mapping[tuple[bool, bool], tuple[float, float, float, float]] = {
    (True, False): (0.4, 0.15, 0.25, 0.2),
    (True, True): (0.5, 0.2, 0.0, 0.3),
    (False, False): (0.0, 0.0, 0.5, 0.5),
    (False, True): (0.0, 0.0, 0.0, 1.0),
}
_LEAST = 2  # wrong and right held-out answers that an AUROC is said for


@dataclass(frozen=True)
class Plan:
    """false_alarms: for each `per`; settings: of the detector."""

    detector: str
    false_alarms: float
    per: str = ANSWER
    consecutive: int = 1
    settings: Mapping[str, float] | None = None
    seed: int = 0


class Part(msgspec.Struct, frozen=True):
    """wrong: of the answers that have a label."""

    groups: int
    answers: int
    wrong: int


class Area(msgspec.Struct, frozen=True):
    """An AUROC on held-out answers; interval: 95 %, groups drawn anew; gain: what the detector has above it, None for
    the detector's own.
    """

    name: str
    auroc: float
    interval: tuple[float, float] | None
    gain: float | None = None
    gain_interval: tuple[float, float] | None = None


class HeldOut(msgspec.Struct, frozen=True):
    """false_alarms: of `right` answers; caught: of `wrong` ones; areas: the detector's, then those it has to beat;
    empty where there are too few answers.
    """

    right: int
    wrong: int
    false_alarms: int
    caught: int
    areas: list[Area]


class Result(msgspec.Struct, frozen=True):
    """clean: what the threshold rests on; held_out: None without labelled answers for it; notes: sentences."""

    about: About
    needs: list[str]
    parts: dict[str, Part]
    clean: Part
    held_out: HeldOut | None
    notes: list[str]


def calibrate(
    plan: Plan, answers: Sequence[Answer], clean: Sequence[Answer], trained_on: str
) -> tuple[Calibration, Result]:
    """The calibration, and what is to be said of it. answers: labelled ones; clean: others in which nothing is wrong.

    GeomError or UsageError where they do not do.
    """
    kind = registry.kind(plan.detector)
    settings = kind.set(plan.settings)
    notes: list[str] = []
    answers, clean = _usable(answers, kind, "labelled", notes), _usable(clean, kind, "clean", notes)
    model = _one_model([*answers, *clean])
    layers, heads = _seen([*answers, *clean], kind.needs)
    if kind.trained and not answers:
        raise UsageError(f"detector {kind.name} has weights to train, and needs labelled answers.", "--labels FILE")
    parts = split(answers, _SHARES[kind.trained, bool(clean)], plan.seed)
    known = {answer.group for name in (TRAIN, CALIBRATE) for answer in parts[name]}
    rest = [answer for answer in clean if answer.group not in known] if clean else [
        answer for answer in parts[CONFORMAL] if not answer.wrong
    ]  # fmt: skip
    if clean and len(rest) < len(clean):
        notes.append(f"{len(clean) - len(rest)} clean answers are left out: the detector was trained on their groups.")
    resting = {answer.group for answer in rest}
    held_out = [answer for answer in parts[HELD_OUT] if answer.group not in resting]
    if len(held_out) < len(parts[HELD_OUT]):
        left = len(parts[HELD_OUT]) - len(held_out)
        notes.append(f"{left} labelled answers are left out: the threshold rests on clean ones of their groups.")
        parts[HELD_OUT] = held_out

    stack = None
    detector: Detector[Any]
    if kind.features is not None:
        features = kind.features(layers, heads, settings)
        stack = fit(features, parts[TRAIN], parts[CALIBRATE])
        detector = TrainedDetector(kind.name, features, stack)
    else:
        detector = registry.create(kind.name, settings)
    rest = _one_of_each_group(rest, plan.seed, notes)
    levels = _levels(detector, rest, plan.consecutive)
    if plan.per == THOUSAND:
        threshold = conformal.per_thousand(levels, [answer.tokens for answer in rest], plan.false_alarms)
    else:
        threshold = conformal.per_answer(levels, plan.false_alarms)
    about = About(
        model=model, detector=kind.name, settings={name: float(value) for name, value in settings.items()},
        layers=layers, heads=heads, threshold=threshold, consecutive=plan.consecutive,
        false_alarms=plan.false_alarms, per=plan.per, n=len(rest), trained_on=trained_on,
    )  # fmt: skip
    held = None
    if parts[HELD_OUT]:
        held = _held_out(plan, detector, kind, parts, threshold, notes)
    result = Result(
        about, sorted(kind.needs), {name: _part(parts[name]) for name in PARTS}, _part(rest), held, notes,
    )  # fmt: skip
    return Calibration(about, stack), result


def _one_of_each_group(answers: list[Answer], seed: int, notes: list[str]) -> list[Answer]:
    """Answers to one prompt are alike: a threshold that counted each would promise more than it keeps."""
    order = np.random.default_rng(seed).permutation(len(answers))
    chosen = {answers[at].group: at for at in order.tolist()}
    if len(chosen) < len(answers):
        notes.append(f"The threshold rests on {len(chosen)} clean answers, one of each group, of {len(answers)}.")
    return [answers[at] for at in sorted(chosen.values())]


def split(answers: Sequence[Answer], shares: Sequence[float], seed: int) -> dict[str, list[Answer]]:
    """Answers by part; each group is in one. The same groups and seed give the same parts, in whatever order."""
    groups = sorted({answer.group for answer in answers})
    order = np.random.default_rng(seed).permutation(len(groups))
    ends = np.round(np.cumsum(shares) / sum(shares) * len(groups))
    part_of = {groups[group]: PARTS[int(np.searchsorted(ends, rank, side="right"))] for rank, group in enumerate(order)}
    made: dict[str, list[Answer]] = {name: [] for name in PARTS}
    for answer in answers:
        made[part_of[answer.group]].append(answer)
    return made


def captured(needs: frozenset[str], seen: Observations) -> bool:
    """Whether some token has what a detector needs; a fingerprint where it needs nothing else."""
    has = {
        LOGITS: bool(np.isfinite(seen.logprob).any()),
        HEADS: seen.heads is not None,
        LINKS: seen.links is not None,
    }
    return all(has[need] for need in needs) if needs else bool(np.isfinite(seen.fingerprint).all(axis=1).any())


def _usable(answers: Sequence[Answer], kind: registry.Kind, called: str, notes: list[str]) -> list[Answer]:
    some = [answer for answer in answers if captured(kind.needs, answer.seen)]
    if answers and not some:
        needed = " and ".join(registry.CAPTURED_BY[need] for need in sorted(kind.needs)) or "fingerprints"
        raise UsageError(
            f"detector {kind.name} needs {needed}; none of the {len(answers)} {called} answers has them.",
            "answers captured with them, or another --detector",
        )
    if len(some) < len(answers):
        notes.append(
            f"{len(answers) - len(some)} {called} answers are left out: what {kind.name} needs was not captured."
        )
    return some


def _one_model(answers: Sequence[Answer]) -> str:
    models = sorted({answer.model for answer in answers})
    if len(models) != 1:
        raise UsageError(
            f"a calibration is of one model, and the answers are of {', '.join(models)}." if models else
            "there is no answer to calibrate on.", "--model NAME" if models else "geom run --jsonl …",
        )  # fmt: skip
    return models[0]


def _seen(answers: Sequence[Answer], needs: frozenset[str]) -> Shape:
    """Layers and heads that a detector is calibrated on, of all answers the same."""
    if HEADS in needs:
        return _one_shape("head statistics", {(answer.layers, answer.heads) for answer in answers})
    if LINKS in needs:
        return _one_shape("links", {((answer.linked,), 0) for answer in answers if answer.linked is not None})
    if LOGITS in needs:
        return (), 0
    return _one_shape("fingerprints", {answer.fingerprinted for answer in answers if answer.fingerprinted[1]})


def _one_shape(what: str, found: Set[Shape]) -> Shape:
    if len(found) > 1:
        said = "; ".join(
            f"{f'{heads} heads of ' if heads else ''}layers {', '.join(map(str, layers))}"
            for layers, heads in sorted(found)[:3]
        )
        raise UsageError(f"{what} are of different layers or heads: {said}.", "answers captured alike")
    return next(iter(found), ((), 0))


def _levels(detector: Detector[Any], answers: Sequence[Answer], consecutive: int) -> list[float]:
    return [conformal.level(replay(detector, answer.seen), consecutive) for answer in answers]


def _part(answers: Sequence[Answer]) -> Part:
    return Part(len({answer.group for answer in answers}), len(answers), sum(bool(answer.wrong) for answer in answers))


def _held_out(
    plan: Plan, detector: Detector[Any], kind: registry.Kind, parts: Mapping[str, list[Answer]], threshold: float,
    notes: list[str],
) -> HeldOut:  # fmt: skip
    held = parts[HELD_OUT]
    wrong = np.array([bool(answer.wrong) for answer in held])
    own = np.array(_levels(detector, held, plan.consecutive))
    alarmed = own >= threshold
    few = min(wrong.sum(), (~wrong).sum()) < _LEAST
    if few:
        notes.append(f"AUROC is not said: {wrong.sum()} of {len(held)} held-out answers are wrong.")
    areas = [] if few else _areas(kind.name, own, wrong, [a.group for a in held], _baselines(plan, kind, parts))
    return HeldOut(
        int((~wrong).sum()), int(wrong.sum()), int((alarmed & ~wrong).sum()), int((alarmed & wrong).sum()), areas
    )


def _baselines(plan: Plan, kind: registry.Kind, parts: Mapping[str, list[Answer]]) -> dict[str, Floats]:
    """Scores of the held-out answers by what needs no attention."""
    held = parts[HELD_OUT]
    made = {"length": np.array([float(answer.tokens) for answer in held])}
    if all(captured(frozenset({LOGITS}), answer.seen) for answer in held):
        made["mean -logprob"] = np.array([_last(replay(LogprobDetector(least=1), answer.seen)) for answer in held])
        if kind.trained and all(captured(frozenset({LOGITS}), answer.seen) for answer in parts[TRAIN]):
            try:
                stack = fit(LogitFeatures(), parts[TRAIN], parts[CALIBRATE])
            except GeomError:
                return made  # the part of Platt's calibration has no logits
            logits: Detector[Any] = TrainedDetector("logits", LogitFeatures(), stack)
            made["trained on logits alone"] = np.array(_levels(logits, held, plan.consecutive))
    return made


def _last(scores: Floats) -> float:
    known = scores[np.isfinite(scores)]
    return float(known[-1]) if len(known) else 0.0


def _areas(
    name: str, own: Floats, wrong: NDArray[np.bool_], groups: Sequence[str], others: Mapping[str, Floats]
) -> list[Area]:
    draws = auroc.drawn(groups)
    ours, area = auroc.bootstrapped(own, wrong, draws), auroc.auroc(own, wrong)
    made = [Area(name, area, auroc.interval(ours))]
    for other, scores in others.items():
        theirs, value = auroc.bootstrapped(scores, wrong, draws), auroc.auroc(scores, wrong)
        made.append(Area(other, value, auroc.interval(theirs), area - value, auroc.interval(ours - theirs)))
    return made
