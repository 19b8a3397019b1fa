"""Logistic regression on a family, its strength and variant chosen on groups that it was not fitted on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geomcli.evaluation.features import Family
from geomcli.evaluation.metrics import auroc
from geomcli.evaluation.splits import folds

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Scorer = Callable[[Ints], Floats]

STRENGTHS = (0.003, 0.03, 0.3)
_TEXT_STRENGTHS = (1.0, 10.0)
_MIDDLE = 0.03
_FARTHEST = 8.0  # standard deviations that a feature counts
_FREE = 0.01  # of the penalty of others
_NEWTON_STEPS, _ENOUGH = 50, 1e-5
_INNER = 4  # a quarter of the training groups, to choose on


@dataclass(frozen=True)
class Choice:
    """variant: of the family's; strength: C of the regression, larger is freer."""

    variant: str
    strength: float


def logistic(x: Floats, wrong: Bools, strength: float, free: int = 0) -> Callable[[Floats], Floats]:
    """Fit on x [m, d]: log-odds of other rows. Standardised; what is not there is the mean. free: of the first columns,
    hardly penalised: what repeats them then adds nothing, where it would loosen a full penalty.
    """
    with np.errstate(invalid="ignore"):
        count = np.maximum(np.isfinite(x).sum(axis=0), 1)
        mean = np.where(np.isfinite(x), x, 0.0).sum(axis=0) / count
        spread = np.sqrt((np.where(np.isfinite(x), x - mean, 0.0) ** 2).sum(axis=0) / count)
    spread = np.where(spread > 1e-9 * (1 + np.abs(mean)), spread, np.inf)

    def prepared(rows: Floats) -> Floats:
        with np.errstate(invalid="ignore"):
            made = np.clip(np.where(np.isfinite(rows), (rows - mean) / spread, 0.0), -_FARTHEST, _FARTHEST)
        return np.hstack([made, np.ones((len(rows), 1))])

    penalty = np.ones(x.shape[1] + 1)
    penalty[:free] = _FREE
    penalty[-1] = 1e-6  # so that classes that can be told apart have finite weights
    weights = newton(prepared(x), wrong.astype(np.float64), strength, penalty)

    def scores(rows: Floats) -> Floats:
        made: Floats = prepared(rows) @ weights
        return made

    return scores


def newton(x: Floats, y: Floats, strength: float, penalty: Floats) -> Floats:
    """Weights [d] that minimise strength * sum of log-losses + sum of penalty * w^2 / 2."""

    def loss(weights: Floats) -> float:
        odds = x @ weights
        return float(strength * (np.logaddexp(0.0, odds) - y * odds).sum() + (penalty * weights**2).sum() / 2)

    weights = np.zeros(x.shape[1])
    value = loss(weights)
    for _ in range(_NEWTON_STEPS):
        p = 1.0 / (1.0 + np.exp(-np.clip(x @ weights, -50, 50)))
        gradient = strength * (x.T @ (p - y)) + penalty * weights
        scaled = x * np.sqrt(strength * p * (1 - p))[:, None]
        curvature = scaled.T @ scaled  # of one matrix with itself: half the work
        curvature[np.diag_indices_from(curvature)] += penalty
        step = np.linalg.solve(curvature, gradient)
        decrease = float(gradient @ step)
        if decrease < _ENOUGH:
            break
        size = 1.0
        while (tried := loss(weights - size * step)) > value - size * decrease / 4 and size > 1e-6:
            size /= 2
        weights, value = weights - size * step, tried
    return weights


def fit(family: Family, choice: Choice, rows: Ints, wrong: Bools, base: Family | None = None) -> Scorer:
    """Fit on `rows` of all answers: log-odds of any rows. base: whose features stand before the family's."""
    if family.text is not None:
        return _text(family.text, rows, wrong, choice.strength)
    x = family.variants[choice.variant]
    whole = x if base is None else np.hstack([base.variants[""], x])
    model = logistic(whole[rows], wrong[rows], choice.strength, (base or family).free)
    return lambda wanted: model(whole[wanted])


def choose(
    family: Family, train: Ints, val: Ints, wrong: Bools, base: Family | None = None, variant: str | None = None
) -> Choice:
    """By AUROC on `val` of fits on `train`: the variant first, unless it is given, then the strength."""
    strengths = STRENGTHS if family.text is None else _TEXT_STRENGTHS
    if not _both(wrong[train]) or not _both(wrong[val]):
        return Choice(variant or next(iter(family.variants), ""), strengths[0])

    @functools.cache
    def value(choice: Choice) -> float:
        return auroc(fit(family, choice, train, wrong, base)(val), wrong[val])

    if variant is None:
        names = list(family.variants) or [""]
        variant = names[0] if len(names) == 1 else max(names, key=lambda name: value(Choice(name, _MIDDLE)))
    return max((Choice(variant, strength) for strength in strengths), key=value)


def inner(rows: Ints, groups: NDArray[np.str_], domains: NDArray[np.str_], seed: int) -> tuple[Ints, Ints]:
    """Rows to fit on and rows to choose on, by group."""
    fold = folds(groups[rows], domains[rows], seed, _INNER)
    return rows[fold != 0], rows[fold == 0]


def platt(scores: Floats, wrong: Bools) -> Callable[[Floats], Floats]:
    """Platt's scaling: probabilities of being wrong from log-odds."""
    model = logistic(scores[:, None], wrong, 1e4)

    def probabilities(others: Floats) -> Floats:
        made: Floats = 1.0 / (1.0 + np.exp(-np.clip(model(others[:, None]), -50, 50)))
        return made

    return probabilities


def _both(wrong: Bools) -> bool:
    return bool(wrong.any() and not wrong.all())


def _text(texts: tuple[str, ...], rows: Ints, wrong: Bools, strength: float) -> Scorer:
    """Question and answer alone: n-grams of 2 to 4 characters, weighted by how rare they are."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    words = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), min_df=2, max_features=20_000, sublinear_tf=True)
    x = words.fit_transform([texts[row] for row in rows])
    model = LogisticRegression(C=strength, max_iter=300).fit(x, wrong[rows])

    def scores(wanted: Ints) -> Floats:
        made: Floats = model.decision_function(words.transform([texts[row] for row in wanted]))
        return made

    return scores
