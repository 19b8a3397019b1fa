"""How well a score tells wrong answers from right ones: the area under the ROC curve, with a bootstrap over groups.

The area is the probability that a wrong answer scores above a right one, ties counting half (Hanley and McNeil, 1982,
doi:10.1148/radiology.143.1.7063747).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
REPLICATES, CONFIDENCE = 2000, 0.95


def auroc(scores: Floats, wrong: NDArray[np.bool_], weights: Floats | None = None) -> float:
    """In [0, 1], of scores [n]; nan where all or none are wrong. weights [n]: how often each answer counts."""
    w = np.ones(len(scores)) if weights is None else weights
    _, place = np.unique(scores, return_inverse=True)
    of_wrong = np.bincount(place, np.where(wrong, w, 0.0))
    of_right = np.bincount(place, np.where(wrong, 0.0, w))
    total = of_wrong.sum() * of_right.sum()
    below = of_right.cumsum() - of_right / 2
    return float((of_wrong * below).sum() / total) if total > 0 else float("nan")


def drawn(groups: Sequence[str], replicates: int = REPLICATES, seed: int = 0) -> NDArray[np.int64]:
    """How often each answer [n] is in each of `replicates` draws of whole groups with replacement: [replicates, n]."""
    _, of = np.unique(np.asarray(groups), return_inverse=True)
    k = int(of.max(initial=-1)) + 1
    rng = np.random.default_rng(seed)
    counts: NDArray[np.int64] = rng.multinomial(k, np.full(k, 1 / k), size=replicates)[:, of]
    return counts


def interval(values: Floats) -> tuple[float, float] | None:
    """The middle CONFIDENCE of bootstrapped values; None where fewer than half of them are numbers."""
    known = values[np.isfinite(values)]
    if 2 * len(known) < len(values) or not len(known):
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)


def bootstrapped(scores: Floats, wrong: NDArray[np.bool_], draws: NDArray[np.int64]) -> Floats:
    """`auroc` of each draw [replicates]."""
    return np.array([auroc(scores, wrong, draw.astype(np.float64)) for draw in draws])
