"""What a score is worth: larger means wrong. `wrong` [n] says which answers are; numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
REPLICATES = 2000


def auroc(scores: Floats, wrong: Bools, weights: Floats | None = None) -> float:
    """Probability that a wrong answer's score is above a right one's, ties half; nan without both classes."""
    return float(aurocs(scores, wrong, np.ones((1, len(scores))) if weights is None else weights[None])[0])


def aurocs(scores: Floats, wrong: Bools, weights: Floats) -> Floats:
    """`auroc` under each row of weights [B, n]: [B]."""
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    w = weights[:, order]
    bad = np.add.reduceat(w * wrong[order], first, axis=1)
    good = np.add.reduceat(w * ~wrong[order], first, axis=1)
    below = np.cumsum(good, axis=1) - good
    pairs = bad.sum(axis=1) * good.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        made: Floats = np.where(pairs > 0, (bad * (below + good / 2)).sum(axis=1) / pairs, np.nan)
    return made


def bootstrap_weights(groups: NDArray[np.str_], seed: int, replicates: int = REPLICATES) -> Floats:
    """[B, n]: how often each answer's group was drawn, as many groups with replacement as there are."""
    _, index = np.unique(groups, return_inverse=True)
    n = int(index.max()) + 1
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=replicates)
    return counts[:, index].astype(np.float64)


def interval(values: Floats) -> tuple[float, float]:
    """The middle 95 % of bootstrap values."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [0.025, 0.975])
    return float(low), float(high)


def average_precision(scores: Floats, wrong: Bools) -> float:
    """Area under precision and recall, in steps; ties are taken together."""
    if not wrong.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])
    hits = np.cumsum(wrong[order])[last]
    gained = np.diff(np.r_[0, hits])
    return float((gained * hits / (last + 1)).sum() / wrong.sum())


def recall_at(scores: Floats, wrong: Bools, false_alarms: float) -> float:
    """The largest share of wrong answers above a threshold that at most this share of right ones is above."""
    right = np.sort(scores[~wrong])[::-1]
    if not len(right) or not wrong.any():
        return float("nan")
    allowed = int(np.floor(false_alarms * len(right) + 1e-9))
    threshold = right[allowed] if allowed < len(right) else -np.inf
    return float((scores[wrong] > threshold).mean())


def calibration_error(probabilities: Floats, wrong: Bools, bins: int = 10) -> float:
    """Expected calibration error over bins of equally many answers."""
    order = np.argsort(probabilities, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return float(sum(abs(probabilities[p].mean() - wrong[p].mean()) * len(p) for p in parts) / len(order))


def matched_auroc(scores: Floats, wrong: Bools, lengths: NDArray[np.int64], bins: int = 10) -> float:
    """AUROC over the pairs of a wrong and a right answer of like length: both in one of `bins` quantiles of it."""
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, bins + 1)[1:-1]))
    bin_of = np.searchsorted(edges, lengths, side="right")
    won = pairs = 0.0
    for one in np.unique(bin_of):
        rows = bin_of == one
        n = float(wrong[rows].sum()) * float((~wrong[rows]).sum())
        if n:
            won += n * auroc(scores[rows], wrong[rows])
            pairs += n
    return won / pairs if pairs else float("nan")


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % interval of a share."""
    if not n:
        return float("nan"), float("nan")
    z, p = 1.959964, successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def quartiles(values: Sequence[int]) -> tuple[float, float, float] | None:
    """Lower quartile, median, upper quartile; None of nothing."""
    if not values:
        return None
    low, middle, high = np.quantile(np.asarray(values, dtype=np.float64), [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)
