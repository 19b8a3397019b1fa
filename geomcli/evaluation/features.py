"""Families of signals as features of an answer: what each detector sees, without its weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from geomcli.compass import DRIFT_WINDOW, drifts
from geomcli.detectors.observations import HEAD_SCALARS
from geomcli.detectors.rauq import RauqDetector
from geomcli.evaluation.dataset import Dataset, Floats, Ints
from geomcli.fingerprint import N_BINS

LOGITS, SERIES, TEXT, RANDOM = "logits + length", "logit series", "text", "random"
KIND, KINDS = "kind", "logits + length + kind"
BASELINES = (LOGITS, SERIES, KINDS)
WINDOW = 4
_RANDOM_FEATURES = 16


@dataclass(frozen=True)
class Family:
    """variants: what is chosen among by validation (layers, window), each [n, d]; none for the text, which is read.
    free: of the first columns, those whose weights are hardly penalised.
    """

    name: str
    variants: dict[str, Floats]
    text: tuple[str, ...] | None = None
    free: int = 0


def families(data: Dataset, seed: int) -> list[Family]:
    """Every family that can be made of what was captured, the baselines first."""
    numbers = logit_numbers(data)
    length = np.log(data.length)[:, None]
    names = [name for name, _ in _NUMBERS]
    column = {name: numbers[:, [place]] for place, name in enumerate(names)}
    series = logit_series(data)
    question = np.array([[np.log1p(len(q)), np.log1p(len(q.split()))] for q in data.question])
    generator = np.random.default_rng([seed, 3])
    text = tuple(f"{q} \x1f {t}" for q, t in zip(data.question, data.text, strict=True))
    drift = causal_drift(data)
    kind = (data.kind[:, None] == np.unique(data.kind)).astype(np.float64)
    made = [
        Family(LOGITS, {"": np.hstack([numbers, length])}),
        Family(SERIES, {"": np.hstack([series, length])}),
        Family(KINDS, {"": np.hstack([kind, numbers, length])}, free=kind.shape[1]),
        Family(KIND, {"": kind}, free=kind.shape[1]),
        Family("length", {"": length}),
        Family("question length", {"": question}),
        Family("logprob, mean", {"": column["logprob mean"]}),
        Family("logprob, min", {"": column["logprob min"]}),
        Family("entropy, mean", {"": column["entropy mean"]}),
        Family("entropy, max", {"": column["entropy max"]}),
        Family("margin", {"": np.hstack([column["margin mean"], column["margin min"]])}),
        Family(TEXT, {}, text),
        Family(RANDOM, {"": generator.normal(size=(len(data), _RANDOM_FEATURES))}),
        Family("compass, mean", {"": means(drift, data.starts)[:, None]}),
        Family("compass, max", {"": maxima(drift, data.starts)[:, None]}),
        Family("fingerprint", _windows(data.fingerprint, data.starts)),
        Family("sink mass", _windows(data.sink_mass[:, None], data.starts)),
    ]
    made += _of_heads(data, series)
    if data.received is not None:
        made.append(Family("received", _layered(data.received, data)))
    return [family for family in made if family.text or any(np.isfinite(x).any() for x in family.variants.values())]


def _of_heads(data: Dataset, series: Floats) -> Iterator[Family]:
    if data.heads is None:
        return
    for place, name in enumerate(HEAD_SCALARS):
        title = {"entropy": "entropy of heads", "sink": "sink of heads", "prev": "previous token"}.get(name, name)
        yield Family(title, _layered(data.heads[:, :, place], data))
    heads = _layered(data.heads.reshape(len(data.heads), len(data.layers), -1), data)
    yield Family("heads", heads)
    yield Family("heads + logits", {label: np.hstack([x, series]) for label, x in heads.items()})
    yield Family("RAUQ", {"": rauq(data)[:, None]})


def _layered(values: Floats, data: Dataset) -> dict[str, Floats]:
    """values [T, L, k]: the windows of all layers together, and of each alone where there are several."""
    made = {f"all layers, {w}": x for w, x in _windows(values.reshape(len(values), -1), data.starts).items()}
    if len(data.layers) > 1:
        for place, layer in enumerate(data.layers):
            made |= {f"layer {layer}, {w}": x for w, x in _windows(values[:, place], data.starts).items()}
    return made


def _windows(values: Floats, starts: Ints) -> dict[str, Floats]:
    """values [T, d]: means over the answer, and these with the means over its last tokens."""
    whole = means(values, starts)
    ends = np.concatenate([np.arange(max(a, b - WINDOW), b) for a, b in itertools.pairwise(starts)])
    cut = np.concatenate([[0], np.cumsum(np.minimum(np.diff(starts), WINDOW))])
    return {"mean": whole, f"mean and last {WINDOW}": np.hstack([whole, means(values[ends], cut)])}


def means(values: Floats, starts: Ints) -> Floats:
    """Means of the finite values of each answer, [n, …]; nan where there is none."""
    finite = np.isfinite(values)
    total = np.add.reduceat(np.where(finite, values, 0.0), starts[:-1], axis=0)
    count = np.add.reduceat(finite.astype(np.float64), starts[:-1], axis=0)
    made: Floats = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return made


def maxima(values: Floats, starts: Ints) -> Floats:
    """Largest finite value of each answer; nan where there is none."""
    made = np.maximum.reduceat(np.where(np.isfinite(values), values, -np.inf), starts[:-1], axis=0)
    return np.where(np.isfinite(made), made, np.nan)


def of_each(data: Dataset, values: Floats) -> Iterator[Floats]:
    """The finite rows of `values` [T, …] of each answer; one row of nan where there is none."""
    for a, b in zip(data.starts[:-1], data.starts[1:], strict=True):
        rows = values[a:b]
        sound = rows[np.isfinite(rows).reshape(len(rows), -1).all(axis=1)]
        yield sound if len(sound) else np.full((1, *values.shape[1:]), np.nan)


def rolling(values: Floats, window: int) -> Floats:
    """Means of up to `window` rows that end with each row of values [t, …]."""
    sums = np.cumsum(values, axis=0)
    sums[window:] = sums[window:] - sums[:-window]
    counts = np.minimum(np.arange(1, len(values) + 1), window)
    made: Floats = sums / counts.reshape(-1, *[1] * (values.ndim - 1))
    return made


_NUMBERS: tuple[tuple[str, Callable[[Floats], float]], ...] = (
    ("logprob mean", lambda x: x[:, 0].mean()),
    ("logprob min", lambda x: x[:, 0].min()),
    ("logprob first", lambda x: x[0, 0]),
    ("perplexity", lambda x: np.exp(min(50.0, -x[:, 0].mean()))),
    ("probability mean", lambda x: np.exp(x[:, 0]).mean()),
    ("entropy mean", lambda x: x[:, 1].mean()),
    ("entropy max", lambda x: x[:, 1].max()),
    ("entropy first", lambda x: x[0, 1]),
    ("entropy window max", lambda x: rolling(x[:, 1], WINDOW).max()),
    ("margin mean", lambda x: x[:, 2].mean()),
    ("margin min", lambda x: x[:, 2].min()),
)


def logit_numbers(data: Dataset) -> Floats:
    """[n, 11]"""
    return np.array([[number(x) for _, number in _NUMBERS] for x in of_each(data, data.logits)], dtype=np.float64)


def logit_series(data: Dataset) -> Floats:
    """[n, 33]: of log-probability, entropy and margin each: mean, deviation, extremes, ends, thirds, largest and
    smallest window means.
    """
    return np.array([_series(x) for x in of_each(data, data.logits)], dtype=np.float64)


def _series(x: Floats) -> Floats:
    thirds = [part.mean(axis=0) if len(part) else x.mean(axis=0) for part in np.array_split(x, 3)]
    smooth = rolling(x, WINDOW)
    return np.concatenate([x.mean(axis=0), x.std(axis=0), x.min(axis=0), x.max(axis=0), x[0], x[-1], *thirds,
                           smooth.max(axis=0), smooth.min(axis=0)])  # fmt: skip


def causal_drift(data: Dataset) -> Floats:
    """[T]: the compass's drift of the up to 10 tokens that end with each; nan before the second."""
    made = np.full(len(data.drift), np.nan)
    histograms = data.fingerprint[:, -N_BINS:]
    sound = np.isfinite(histograms).all(axis=1) & (np.nan_to_num(histograms).sum(axis=1) > 0)
    for a, b in zip(data.starts[:-1], data.starts[1:], strict=True):
        rows = a + np.flatnonzero(sound[a:b])
        for size in range(2, min(len(rows), DRIFT_WINDOW - 1) + 1):
            made[rows[size - 1]] = drifts(histograms[rows[:size]])
        if len(rows) >= DRIFT_WINDOW:
            windows = np.lib.stride_tricks.sliding_window_view(histograms[rows], DRIFT_WINDOW, axis=0)
            made[rows[DRIFT_WINDOW - 1 :]] = drifts(windows.swapaxes(1, 2))
    return made


def rauq(data: Dataset) -> Floats:
    """[n]: what the detector says of all tokens but the last one, whose own row is in no entry."""
    scores = data.replayed(RauqDetector(least=1))
    made = np.full(len(data), np.nan)
    for row, (start, end) in enumerate(itertools.pairwise(data.starts)):
        known = np.flatnonzero(np.isfinite(scores[start:end]))
        if len(known):
            made[row] = scores[start + known[-1]]
    return made
