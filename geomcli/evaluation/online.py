"""Token by token: how soon after a wrong answer parts from the right one an alarm comes, at a rate of false ones.

Causal: a token's score rests on the answer's tokens up to it. Thresholds are split-conformal on clean answers of groups
that neither the detector was fitted on nor the result is counted on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from geomcli.detector_training import fit
from geomcli.detectors.compass import CompassDetector
from geomcli.detectors.heads import HeadFeatures
from geomcli.detectors.logprob import LogprobDetector
from geomcli.detectors.rauq import RauqDetector
from geomcli.detectors.summary import Features
from geomcli.detectors.trained import TrainedDetector
from geomcli.errors import GeomError
from geomcli.evaluation.alarms import PER_ANSWER, PER_TOKEN, Alarms
from geomcli.evaluation.dataset import Bools, Dataset, Floats, Ints
from geomcli.evaluation.features import WINDOW, causal_drift, rolling
from geomcli.evaluation.fitting import logistic
from geomcli.evaluation.metrics import bootstrap_weights
from geomcli.evaluation.splits import folds
from geomcli.labelled_answers import Answer

RATES = (0.01, 0.05)
COMPASS_THRESHOLDS = (0.1, 0.3, 0.5)
_STRENGTH = 0.03
_FITTED = 0.6  # of the training groups; the others are for thresholds
_FEWEST = 20  # tokens or answers, of each class


def cusum(ratios: Floats) -> Floats:
    """S_t = max(0, S_{t-1} + ratios_t) of log-likelihood ratios [t]; Page (1954)."""
    made = np.zeros(len(ratios))
    value = 0.0
    for at, ratio in enumerate(ratios):
        value = max(0.0, value + ratio)
        made[at] = value
    return made


def token_labels(data: Dataset) -> tuple[Bools, Bools]:
    """[T] known, [T] bad: tokens of right answers are good, and those of a wrong one before its onset; from there on
    they are bad. Of other answers nothing is known.
    """
    known, bad = np.zeros(len(data.drift), dtype=bool), np.zeros(len(data.drift), dtype=bool)
    for row, (a, b) in enumerate(zip(data.starts[:-1], data.starts[1:], strict=True)):
        if data.outcome[row] == "right":
            known[a:b] = True
        elif data.outcome[row] == "wrong" and data.onset[row] >= 0:
            known[a:b] = True
            bad[a + data.onset[row] : b] = True
    return known, bad


def causal_features(data: Dataset, values: Floats) -> Floats:
    """values [T, d]: of each token its own, means of the last tokens and of all so far, and the largest and smallest so
    far; [T, 5 d].
    """
    made = np.full((len(values), 5 * values.shape[1]), np.nan)
    filled = np.where(np.isfinite(values), values, 0.0)
    for a, b in zip(data.starts[:-1], data.starts[1:], strict=True):
        x = filled[a:b]
        made[a:b] = np.hstack([x, rolling(x, WINDOW), rolling(x, b - a), np.maximum.accumulate(x),
                               np.minimum.accumulate(x)])  # fmt: skip
    return made


@dataclass(frozen=True)
class _Detector:
    """Token scores of its own, features from which they are learned, or what `geom calibrate` learns from."""

    name: str
    scores: Floats | None = None
    features: Floats | None = None
    shipped: Features | None = None


def _detectors(data: Dataset) -> Iterable[_Detector]:
    place = np.log1p(np.concatenate([np.arange(n) for n in data.length])[:, None])
    surprise = np.where(np.isfinite(data.logits[:, :1]), -data.logits[:, :1], 0.0)
    of_logits = causal_features(data, data.logits) if np.isfinite(data.logits[:, 0]).any() else None
    if of_logits is not None:
        yield _Detector("logprob", scores=data.replayed(LogprobDetector()))
        yield _Detector("logprob, mean from the first token", scores=of_logits_mean(data, surprise))
        yield _Detector(f"logprob, last {WINDOW}", scores=_rolled(data, surprise, WINDOW))
        yield _Detector("logits", features=np.hstack([of_logits, place]))
    yield _Detector("compass", scores=data.replayed(CompassDetector()))
    yield _Detector("compass, from the second token", scores=causal_drift(data))
    for name, values in (("head statistics", data.heads), ("received", data.received)):
        if values is not None:
            flat = values.reshape(len(values), -1)
            finite = np.where(np.isfinite(flat), flat, 0.0)
            window = np.hstack([finite, _rolled_rows(data, finite, WINDOW)])
            yield _Detector(name, features=np.hstack([window, place]))
            if of_logits is not None:
                yield _Detector(f"{name} + logits", features=np.hstack([window, of_logits, place]))
    if data.heads is not None and of_logits is not None:
        yield _Detector("rauq", scores=data.replayed(RauqDetector()))
        yield _Detector("heads", shipped=HeadFeatures(data.layers, data.heads.shape[-1]))


def of_logits_mean(data: Dataset, surprise: Floats) -> Floats:
    return _rolled(data, surprise, int(data.length.max()))


def _rolled(data: Dataset, values: Floats, window: int) -> Floats:
    return _rolled_rows(data, values, window)[:, 0]


def _rolled_rows(data: Dataset, values: Floats, window: int) -> Floats:
    return np.concatenate([rolling(values[a:b].copy(), window)
                           for a, b in zip(data.starts[:-1], data.starts[1:], strict=True)])  # fmt: skip


def evaluate(data: Dataset, jobs: list[tuple[Ints, Ints]], seed: int) -> dict[str, Any]:
    """jobs: rows to fit and calibrate on, rows to count on, no group in both."""
    known, bad = token_labels(data)
    owner = np.repeat(np.arange(len(data)), data.length)
    result: list[dict[str, Any]] = []
    split = []
    for training, test in jobs:
        fitting = folds(data.group[training], data.domain[training], seed + 5, 10) < round(10 * _FITTED)
        split.append((training[fitting], training[~fitting], test))
    tested = np.concatenate([test for _, _, test in split])
    weights = bootstrap_weights(data.group[tested], seed)
    for detector in _detectors(data):
        counted: dict[tuple[str, str, float], Alarms] = {}
        for fitted, calibrating, test in split:
            for name, scores in _token_scores(data, detector, fitted, known, bad, owner, seed).items():
                for kind in (PER_ANSWER, PER_TOKEN):
                    for rate in RATES:
                        counts = counted.setdefault((name, kind, rate), Alarms())
                        counts.add(data, scores, calibrating, test, kind, rate)
        result += [{"detector": name, "per": kind, "rate": rate, **counts.summary(data.group[tested], weights)}
                   for (name, kind, rate), counts in counted.items()]  # fmt: skip
    return {
        "alarms": result,
        "compass_thresholds": compass_thresholds(data, tested),
        "with_onset": int(((data.outcome[tested] == "wrong") & (data.onset[tested] >= 0)).sum()),
        "right": int((data.outcome[tested] == "right").sum()),
    }


def _token_scores(
    data: Dataset, detector: _Detector, fitted: Ints, known: Bools, bad: Bools, owner: Ints, seed: int
) -> dict[str, Floats]:
    if detector.scores is not None:
        return {detector.name: detector.scores}
    if detector.shipped is not None:
        return _as_shipped(data, detector.name, detector.shipped, fitted, seed)
    assert detector.features is not None
    rows = np.flatnonzero(known & np.isin(owner, fitted))
    if min(bad[rows].sum(), (~bad[rows]).sum()) < _FEWEST:
        return {}
    odds = logistic(detector.features[rows], bad[rows], _STRENGTH)(detector.features)
    share = bad[rows].mean()
    ratios = odds - math.log(share / (1 - share))
    cuts = np.flatnonzero(np.diff(owner)) + 1
    sums = np.concatenate([cusum(part) for part in np.split(ratios, cuts)])
    return {f"{detector.name}, probability": odds, f"{detector.name}, CUSUM": sums}


def _as_shipped(data: Dataset, name: str, features: Features, fitted: Ints, seed: int) -> dict[str, Floats]:
    """Scores of the detector that `geom calibrate` would make of these answers; nothing where it makes none."""
    answers = [
        Answer("", "", str(data.group[row]), bool(data.wrong[row]), data.seen(row), int(data.length[row]), (), 0)
        for row in fitted.tolist()
        if data.stated[row]
    ]
    halves = folds(np.array([answer.group for answer in answers]), np.full(len(answers), ""), seed + 6, 2)
    train, calibrate = ([answers[at] for at in np.flatnonzero(halves == half)] for half in (0, 1))
    try:
        return {name: data.replayed(TrainedDetector(name, features, fit(features, train, calibrate)))}
    except GeomError:
        return {}


def compass_thresholds(data: Dataset, rows: Ints) -> list[dict[str, Any]]:
    """Shares of right and wrong answers whose published drift reaches the fixed thresholds; drift begins at the tenth
    token, so shorter answers never do.
    """
    made = []
    highest = np.array([np.nanmax(np.append(data.drift[data.starts[r] : data.starts[r + 1]], -1.0)) for r in rows])
    for threshold in COMPASS_THRESHOLDS:
        row: dict[str, Any] = {"threshold": threshold}
        for outcome in ("right", "wrong"):
            members = data.outcome[rows] == outcome
            row[outcome] = float((highest[members] >= threshold).mean()) if members.any() else math.nan
            row[f"{outcome}_with_drift"] = int((highest[members] >= 0).sum())
            row[f"{outcome}_answers"] = int(members.sum())
        made.append(row)
    return made
