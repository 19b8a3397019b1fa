"""What a score is worth: larger means wrong. `wrong` [n] says which answers are; numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Weights = Floats | Floats32
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
REPLICATES = 2000


def auroc(scores: Floats, wrong: Bools, weights: Weights | None = None) -> float:
    """Probability that a wrong answer's score is above a right one's, ties half; nan without both classes."""
    return float(aurocs(scores, wrong, np.ones((1, len(scores))) if weights is None else weights[None])[0])


def aurocs(scores: Floats, wrong: Bools, weights: Weights) -> Floats:
    """`auroc` under each row of weights [B, n]: [B]."""
    return _share(*_won(scores, wrong, weights))


def within(scores: Floats, wrong: Bools, strata: Ints, weights: Weights) -> Floats:
    """`aurocs` over the pairs of a wrong and a right answer of one stratum [n]: a stratum counts by its pairs."""
    won, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum)
        if wrong[rows].any() and not wrong[rows].all():
            more, of = _won(scores[rows], wrong[rows], weights[:, rows])
            won, pairs = won + more, pairs + of
    return _share(won, pairs)


def _won(scores: Floats, wrong: Bools, weights: Weights) -> tuple[Floats, Floats]:
    """[B] weight of the pairs in order, ties half, and of all pairs."""
    by_answer = weights.T  # bootstrap_weights keeps an answer's weights side by side, which is what is read here
    good = np.flatnonzero(~wrong)
    good = good[np.argsort(scores[good], kind="stable")]
    bad = np.flatnonzero(wrong)
    below = np.zeros((len(good) + 1, len(weights)), dtype=weights.dtype)
    np.cumsum(by_answer[good], axis=0, out=below[1:])
    first, last = (np.searchsorted(scores[good], scores[bad], side=side) for side in ("left", "right"))
    of_bad = by_answer[bad]
    won = np.einsum("ib,ib->b", of_bad, below[first]) + np.einsum("ib,ib->b", of_bad, below[last])
    return won.astype(np.float64) / 2, of_bad.sum(axis=0, dtype=np.float64) * below[-1]


def _share(won: Floats, pairs: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        made: Floats = np.where(pairs > 0, won / pairs, np.nan)
    return made


def bootstrap_weights(groups: NDArray[np.str_], seed: int, replicates: int = REPLICATES) -> Floats32:
    """[B, n]: how often each answer's group was drawn, as many groups with replacement as there are."""
    _, index = np.unique(groups, return_inverse=True)
    n = int(index.max()) + 1
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=replicates)
    return counts.T.astype(np.float32)[index].T


def interval(values: Floats) -> tuple[float, float]:
    """The middle 95 % of bootstrap values."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [0.025, 0.975])
    return float(low), float(high)


def share_interval(values: Floats, counted: Bools, groups: NDArray[np.str_], weights: Weights) -> tuple[float, float]:
    """95 % interval of the mean of values [n] in 0 .. 1 over the counted answers, of groups drawn with `weights`.

    Where all are 0 or all are 1, every draw says the same: then Wilson's, of as many trials as there are groups.
    """
    of = values[counted]
    if not len(of):
        return float("nan"), float("nan")
    if np.ptp(of) == 0 and of[0] in (0.0, 1.0):
        trials = len(np.unique(groups[counted]))
        return wilson(trials if of[0] else 0, trials)
    drawn = (weights @ counted.astype(weights.dtype)).astype(np.float64)
    return interval(_share((weights @ (values * counted).astype(weights.dtype)).astype(np.float64), drawn))


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


def rejection_ratio(scores: Floats, wrong: Bools) -> float:
    """PRR: (AURC of chance - AURC) / (AURC of chance - AURC of an oracle); 1 is the oracle, 0 chance.

    AURC: the share of wrong answers among the k with the lowest scores, averaged over k = 1 .. n (area under risk and
    coverage); tied answers in the mean of their orders. Of chance: the share of wrong answers among all.
    """
    if not wrong.any() or wrong.all():
        return float("nan")
    chance = float(wrong.mean())
    return (chance - _aurc(scores, wrong)) / (chance - _aurc(wrong.astype(np.float64), wrong))


def _aurc(scores: Floats, wrong: Bools) -> float:
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    ends = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True]) + 1
    kept = np.arange(1, len(scores) + 1)
    counts = np.interp(kept, np.r_[0, ends], np.r_[0, np.cumsum(wrong[order])[ends - 1]])
    return float((counts / kept).mean())


def matched_auroc(scores: Floats, wrong: Bools, lengths: Ints, bins: int = 10) -> float:
    """AUROC over the pairs of a wrong and a right answer of like length: both in one of `bins` quantiles of it."""
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, bins + 1)[1:-1]))
    bin_of = np.searchsorted(edges, lengths, side="right")
    return float(within(scores, wrong, bin_of, np.ones((1, len(scores))))[0])


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
