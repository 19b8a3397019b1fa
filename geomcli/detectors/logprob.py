"""How unlikely the model finds its own answer: the running mean of -logprob, the baseline that others have to beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from geomcli.detectors.observations import LOGITS, Floats, Observations

LEAST = 4  # tokens: a mean of fewer says little, and would be the highest of most answers


class Surprise:
    """What an answer's tokens cost so far, in nats, and how many they are."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0


class LogprobDetector:
    """Mean of -logprob (nats) of the tokens so far, >= 0; nan before `least` of them, and for a token without one."""

    name = "logprob"
    needs = frozenset({LOGITS})

    def __init__(self, least: int = LEAST) -> None:
        if least < 1:
            raise ValueError(f"least must be >= 1 tokens, got {least}")
        self.least = least

    def start(self) -> Surprise:
        return Surprise()

    def update(self, states: Sequence[Surprise], seen: Observations) -> Floats:
        made = np.full(len(states), np.nan)
        for row, (state, logprob) in enumerate(zip(states, seen.logprob.tolist(), strict=True)):
            if np.isfinite(logprob):
                state.total -= logprob
                state.count += 1
                if state.count >= self.least:
                    made[row] = state.total / state.count
        return made
