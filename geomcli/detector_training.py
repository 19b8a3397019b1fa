"""Training of a detector's weights, with scikit-learn: logistic regression on summaries, then Platt's calibration.

Answers are labelled, tokens are not: each token has its answer's label, and each answer the same weight.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomcli.detectors.calibration import Stack
from geomcli.detectors.observations import Floats, replay
from geomcli.detectors.summary import WINDOW, Features, Summarised
from geomcli.detectors.trained import margins
from geomcli.errors import GeomError
from geomcli.labelled_answers import Answer

_TOKENS = 16  # of an answer, evenly spaced: neighbours say nearly the same
_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # C, the inverse of the penalty
_FOLDS = 3
_ITERATIONS = 1000
_SMALLEST_SCALE = 1e-6


class _Tokens:
    """Summaries x [n, 3 F] of tokens, labels y [n], weights w [n] that are 1 in sum for each answer, groups [n]."""

    def __init__(self, summarised: Summarised, answers: Sequence[Answer]) -> None:
        parts: list[Floats] = []
        labels: list[bool] = []
        counts: list[int] = []
        groups: list[str] = []
        for answer in answers:
            rows = replay(summarised, answer.seen)
            known = np.flatnonzero(np.isfinite(rows).any(axis=-1))
            if not len(known):
                continue
            chosen = np.unique(np.linspace(0, len(known) - 1, min(len(known), _TOKENS)).round().astype(np.int64))
            parts.append(rows[known[chosen]])
            labels.append(bool(answer.wrong))
            counts.append(len(chosen))
            groups.append(answer.group)
        self.x = np.concatenate(parts) if parts else np.zeros((0, len(summarised.names)))
        self.y = np.repeat(np.array(labels, dtype=bool), counts)
        self.w = np.repeat(1 / np.array(counts, dtype=np.float64), counts)
        self.groups = np.repeat(np.array(groups), counts)
        self.wrong, self.right = sum(labels), len(labels) - sum(labels)


def fit(features: Features, train: Sequence[Answer], calibrate: Sequence[Answer]) -> Stack:
    """Weights from the labelled answers of `train`, Platt's two numbers and the prior from those of `calibrate`.

    GeomError where a part lacks wrong or right answers, or scikit-learn is missing.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GroupKFold
    except ImportError:
        raise GeomError("training needs scikit-learn.", "pip install 'geomcli[calibrate]'") from None
    summarised = Summarised(features)
    here, there = _Tokens(summarised, train), _Tokens(summarised, calibrate)
    for name, part in (("train", here), ("calibrate", there)):
        if not part.wrong or not part.right:
            raise GeomError(
                f"the part `{name}` has {part.wrong} wrong and {part.right} right answers; both are needed.",
                "more labelled answers of more groups, or another --seed",
            )
    mean, scale = _standard(here)
    z = np.nan_to_num((here.x - mean) / scale)

    def regression(strength: float, rows: Any = slice(None)) -> Any:
        made = LogisticRegression(C=strength, max_iter=_ITERATIONS)
        return made.fit(z[rows], here.y[rows], sample_weight=here.w[rows])

    def loss(strength: float) -> float:
        total = 0.0
        for inner, outer in folds:
            if len(np.unique(here.y[inner])) < 2:
                return np.inf
            p = regression(strength, inner).predict_proba(z[outer])[:, 1]
            said = np.clip(np.where(here.y[outer], p, 1 - p), 1e-12, None)
            total -= float((here.w[outer] * np.log(said)).sum())
        return total

    groups = len(np.unique(here.groups))
    folds = list(GroupKFold(min(_FOLDS, groups)).split(z, here.y, here.groups)) if groups > 1 else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one that has not converged is judged like the others
        best = regression(min(_STRENGTHS, key=loss) if folds else _STRENGTHS[0])
        prior = (there.wrong + 1) / (there.wrong + there.right + 2)
        raw = Stack(summarised.names, mean, scale, best.coef_[0], float(best.intercept_[0]), 1.0, 0.0, prior, WINDOW)
        slope, offset = _platt(margins(there.x, raw), there)
    return Stack(summarised.names, mean, scale, raw.weights, raw.bias, slope, offset, prior, WINDOW)


def _standard(tokens: _Tokens) -> tuple[Floats, Floats]:
    """Weighted mean and standard deviation of each summary, over the tokens that have it; 0 and 1 where none has."""
    known = np.isfinite(tokens.x)
    w = tokens.w[:, None] * known
    total = np.maximum(w.sum(axis=0), 1e-12)
    x = np.where(known, tokens.x, 0.0)
    mean = (w * x).sum(axis=0) / total
    scale = np.sqrt((w * (x - mean) ** 2).sum(axis=0) / total)
    return mean, np.where(scale > _SMALLEST_SCALE, scale, 1.0)


def _platt(margin: NDArray[np.float64], tokens: _Tokens) -> tuple[float, float]:
    """(slope, offset) of p = 1 / (1 + exp(-(slope margin + offset))), with Platt's targets instead of 0 and 1."""
    from sklearn.linear_model import LogisticRegression

    target = np.where(tokens.y, (tokens.wrong + 1) / (tokens.wrong + 2), 1 / (tokens.right + 2))
    n = len(margin)
    fitted = LogisticRegression(C=1e6, max_iter=_ITERATIONS).fit(
        np.tile(margin[:, None], (2, 1)), np.repeat([True, False], n),
        sample_weight=np.concatenate([tokens.w * target, tokens.w * (1 - target)]),
    )  # fmt: skip
    return float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
