"""Detectors with weights: logistic regression on a causal summary, Platt's calibration, CUSUM.

Platt, "Probabilistic outputs for support vector machines", 1999. Page, "Continuous inspection schemes", Biometrika
1954, doi:10.1093/biomet/41.1-2.100.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from geomcli.detectors.calibration import Stack
from geomcli.detectors.observations import Floats, Observations
from geomcli.detectors.summary import Features, Summarised, Summary


class Sum:
    """Of one answer: its summary, and the CUSUM statistic."""

    def __init__(self, summary: Summary) -> None:
        self.summary, self.statistic = summary, 0.0


def margins(summaries: Floats, stack: Stack) -> Floats:
    """Decision values [n] of the regression for summaries [n, 3 F]; a number that is not known yet weighs nothing."""
    known = np.isfinite(summaries)
    if not known.all():
        summaries = np.where(known, summaries, stack.mean)
    slopes = stack.weights / stack.scale
    made: Floats = summaries @ slopes + (stack.bias - float(stack.mean @ slopes))
    return made


def log_odds(margin: Floats, stack: Stack) -> Floats:
    """log p / (1 - p) of Platt's p = 1 / (1 + exp(-(a margin + b)))."""
    return stack.slope * margin + stack.offset


class TrainedDetector:
    """CUSUM statistic S >= 0 of how much more probable than before anything was seen a wrong answer is:

        S_t = max(0, S_{t-1} + log p_t / (1 - p_t) - log prior / (1 - prior))

    It begins anew whenever it falls to 0. p_t is of a summary of the tokens so far, so the terms are not independent: S
    is a score for a threshold, and no likelihood. nan where the token was not captured.
    """

    def __init__(self, name: str, features: Features, stack: Stack) -> None:
        self.name, self.needs = name, features.needs
        self._summarised = Summarised(features, stack.window)
        if self._summarised.names != stack.features:
            raise ValueError(f"the calibration is for {len(stack.features)} other features")
        self._stack = stack
        self._prior = float(np.log(stack.prior / (1 - stack.prior)))

    def start(self) -> Sum:
        return Sum(self._summarised.start())

    def update(self, states: Sequence[Sum], seen: Observations) -> Floats:
        summaries = self._summarised.update([state.summary for state in states], seen)
        odds = log_odds(margins(summaries, self._stack), self._stack)
        made = np.full(len(states), np.nan)
        for row in np.flatnonzero(np.isfinite(summaries).any(axis=1)).tolist():
            state = states[row]
            state.statistic = max(0.0, state.statistic + float(odds[row]) - self._prior)
            made[row] = state.statistic
        return made
