"""Which tokens of a running request stay, and when others leave. Pure: numbers and numpy arrays in, indices out.

A request of `logical` tokens (what it has read and written) keeps `budget(logical)` of them. Between two evictions it
may hold a little more, so that an eviction is no matter of every step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SINKS = 4
RECENT = 32
LEAST = 64
WINDOW = 64  # last queries by which tokens are scored
_LEAST_SLACK = 16
_SLACK_SHARE = 10  # a tenth of the budget
_ROUNDING = 1e-9  # .3 · 10 is 3


@dataclass(frozen=True)
class Retention:
    """ratio: share of the tokens that stay, in (0, 1]; the first `sinks` and the last `recent` of them always do, and
    no fewer than `least`."""

    ratio: float
    sinks: int = SINKS
    recent: int = RECENT
    least: int = LEAST

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio must be above 0 and at most 1, got {self.ratio}")
        if self.least < self.sinks + self.recent:
            raise ValueError(f"least must hold {self.sinks} sinks and {self.recent} recent tokens, got {self.least}")

    def budget(self, logical: int) -> int:
        """Tokens that stay of `logical`."""
        return min(logical, max(self.least, math.ceil(self.ratio * logical - _ROUNDING)))

    def slack(self, logical: int) -> int:
        """Tokens above the budget that may be held until the next eviction."""
        return max(_LEAST_SLACK, self.budget(logical) // _SLACK_SHARE)

    def is_due(self, held: int, logical: int) -> bool:
        """Whether a request that holds `held` of its tokens is to let some go."""
        return self.ratio < 1 and held > self.budget(logical) + self.slack(logical)

    def room(self, held: int, logical: int, more: int, *, delay: int, copies: bool) -> int:
        """Slots, beyond those it holds, that a request needs while it writes `more` tokens.

        What leaves is free at once, but only `delay` steps after an eviction is due. `copies`: none has been yet, and
        what stays of a shared prompt is copied before its own slots are let go.
        """
        end = logical + more
        most = self.budget(end) + self.slack(end) + delay + 1
        if self.ratio >= 1 or held + more <= most:
            return more
        return min(more, max(most - held, delay + 1) + (min(held, self.budget(end)) if copies else 0))


def choose(scores: NDArray[np.floating], budget: int, *, sinks: int = SINKS, recent: int = RECENT) -> NDArray[np.int64]:
    """Indices [min(budget, n)], ascending, of the tokens that stay, by their scores [n]; higher ones stay.

    The first `sinks` and the last `recent` stay whatever their score. Of equal scores the later ones stay; what is no
    number leaves first. ValueError when the budget does not hold sinks and recent tokens.
    """
    n = scores.shape[0]
    if budget >= n:
        return np.arange(n, dtype=np.int64)
    if budget < sinks + recent:
        raise ValueError(f"a budget of {budget} does not hold {sinks} sinks and {recent} recent tokens")
    candidates = np.nan_to_num(scores[sinks : n - recent].astype(np.float64), nan=-np.inf)
    free = budget - sinks - recent
    best = np.argsort(candidates, kind="stable")[candidates.shape[0] - free :] + sinks
    return np.concatenate([np.arange(sinks), np.sort(best), np.arange(n - recent, n)]).astype(np.int64)
