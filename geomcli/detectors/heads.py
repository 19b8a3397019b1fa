"""Features of the trained detector `heads`: the logit numbers, and the scalars of each captured head.

The logit numbers alone are what heads have to add to. The lookback ratio: Chuang et al., 2024, arXiv 2407.07071.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from geomcli.detectors.observations import HEAD_SCALARS, HEADS, LOGITS, Floats, Observations

LOGIT_NUMBERS = ("logprob", "logit_entropy", "margin")
_LOOKBACK = HEAD_SCALARS.index("lookback")


class LogitFeatures:
    """The logit numbers alone."""

    needs = frozenset({LOGITS})
    names: tuple[str, ...] = LOGIT_NUMBERS

    def start(self) -> None:
        return None

    def update(self, states: Sequence[None], seen: Observations) -> Floats:  # noqa: ARG002
        made = _logits(seen)
        made[~np.isfinite(made).all(axis=1)] = np.nan
        return made


class HeadFeatures:
    """3 + layers * 4 * heads numbers; layers: ids of the captured ones, ascending."""

    needs = frozenset({LOGITS, HEADS})

    def __init__(self, layers: Sequence[int], heads: int) -> None:
        self.shape = (len(layers), len(HEAD_SCALARS), heads)
        of_heads = tuple(
            f"{name} of layer {layer}, head {head}"
            for layer in layers
            for name in HEAD_SCALARS
            for head in range(heads)
        )
        self.names = (*LOGIT_NUMBERS, *of_heads)

    def start(self) -> None:
        return None

    def update(self, states: Sequence[None], seen: Observations) -> Floats:
        """ValueError where other layers or heads were captured."""
        n = len(states)
        if seen.heads is None:
            return np.full((n, len(self.names)), np.nan)
        if seen.heads.shape[1:] != self.shape:
            raise ValueError(f"head statistics are {seen.heads.shape[1:]} (layers, scalars, heads), not {self.shape}")
        heads = seen.heads.astype(np.float64)
        # 1 in all heads: there is no generated key yet.
        heads[(heads[:, :, _LOOKBACK] >= 1).all(axis=(1, 2)), :, _LOOKBACK] = np.nan
        logits = _logits(seen)
        whole = np.isfinite(logits).all(axis=1) & np.isfinite(heads[:, :, 0]).all(axis=(1, 2))
        made = np.column_stack([logits, heads.reshape(n, -1)])
        made[~whole] = np.nan
        return made


def _logits(seen: Observations) -> Floats:
    """[n, 3]"""
    return np.column_stack([seen.logprob, seen.logit_entropy, seen.margin])
