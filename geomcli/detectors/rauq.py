"""RAUQ: confidence that is passed on from token to token by heads which look at the token before.

Vazhentsev et al., "Efficient Hallucination Detection for LLMs Using Uncertainty-Aware Attention Heads",
arXiv 2505.20045, here for the captured layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from geomcli.detectors.logprob import LEAST
from geomcli.detectors.observations import HEAD_SCALARS, HEADS, LOGITS, Floats, Observations

ALPHA = 0.2
_PREV = HEAD_SCALARS.index("prev")
_SMALLEST = 1e-30  # of a probability: its logarithm is a number


class Confidence:
    """Of one answer, for each layer and head [layers, H]: confidence of the last token, the sums of its logarithm and
    of the mass on the token before; `waiting`: probability of the token whose own row has not been seen, nan without.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.waiting = np.nan
        self.confidence = self.logarithms = self.previous = np.zeros((0, 0))


class RauqDetector:
    """u of the tokens so far but the newest, >= 0 (nats):

        c_1 = p_1,  c_i = alpha p_i + (1 - alpha) a_i c_{i-1},  u = max over layers of mean over i of -log c_i

    a_i = attention of token i to token i-1, of the head of each layer whose mean a_i is largest so far. A token's row
    comes with the entry of the next token, so the score is one token late; nan before `least` tokens are in it. Tokens
    without numbers are left out.
    """

    name = "rauq"
    needs = frozenset({LOGITS, HEADS})

    def __init__(self, alpha: float = ALPHA, least: int = LEAST) -> None:
        if least < 1:
            raise ValueError(f"least must be >= 1 tokens, got {least}")
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha must be above 0 and at most 1, got {alpha}")
        self.alpha, self.least = alpha, least

    def start(self) -> Confidence:
        return Confidence()

    def update(self, states: Sequence[Confidence], seen: Observations) -> Floats:
        made = np.full(len(states), np.nan)
        if seen.heads is None:
            return made
        rows = seen.heads[:, :, _PREV]  # [n, layers, H]: of the tokens that wait
        known = np.asarray(np.isfinite(rows).all(axis=(1, 2)))
        probability = np.exp(seen.logprob)
        ready = [row for row, state in enumerate(states) if known[row] and np.isfinite(state.waiting)]
        if ready:
            made[ready] = self._take([states[row] for row in ready], rows[ready])
        for state, p in zip(states, probability.tolist(), strict=True):
            state.waiting = p
        return made

    def _take(self, states: Sequence[Confidence], attention: Floats) -> Floats:
        for state in states:
            if not state.tokens:
                state.confidence = np.zeros(attention.shape[1:])
                state.logarithms = state.previous = state.confidence
        tokens = np.array([state.tokens for state in states])[:, None, None]
        p = np.array([state.waiting for state in states])[:, None, None]
        before = np.stack([state.confidence for state in states])
        passed = self.alpha * p + (1 - self.alpha) * attention * before
        confidence = np.maximum(np.where(tokens == 0, p, passed), _SMALLEST)
        logarithms = np.stack([state.logarithms for state in states]) + np.log(confidence)
        # The first token's look back is at the prompt, and is not part of the recurrence.
        previous = np.stack([state.previous for state in states]) + np.where(tokens == 0, 0.0, attention)
        for row, state in enumerate(states):
            state.tokens += 1
            state.confidence, state.logarithms, state.previous = confidence[row], logarithms[row], previous[row]
        head = previous.argmax(axis=2)[:, :, None]
        of_layer = -np.take_along_axis(logarithms, head, axis=2)[:, :, 0] / (tokens[:, :, 0] + 1)
        made: Floats = np.where(tokens[:, 0, 0] + 1 >= self.least, of_layer.max(axis=1), np.nan)
        return made
