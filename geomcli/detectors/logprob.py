"""How unlikely the model finds its own answer: the running mean of -logprob, the baseline that others have to beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from geomcli.detectors.observations import LOGITS, Floats, Observations


class Surprise:
    """What an answer's tokens cost so far, in nats, and how many they are."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0


class LogprobDetector:
    """Mean of -logprob (nats) of the tokens so far, >= 0; tokens without one are left out, and nan is their score."""

    name = "logprob"
    needs = frozenset({LOGITS})

    def start(self) -> Surprise:
        return Surprise()

    def update(self, states: Sequence[Surprise], seen: Observations) -> Floats:
        made = np.full(len(states), np.nan)
        for row, (state, logprob) in enumerate(zip(states, seen.logprob.tolist(), strict=True)):
            if np.isfinite(logprob):
                state.total -= logprob
                state.count += 1
                made[row] = state.total / state.count
        return made
