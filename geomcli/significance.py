"""Whether a difference between two series of steps is larger than the noise of the steps: block bootstrap.

Neighbouring steps of an answer are alike, so they are drawn in blocks. docs/geometry.md, "Significance", holds the
method and what it does not say. Knows nothing of traces.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Verdict = Literal["clear", "noise", "untested"]

REPLICATES = 1000
CONFIDENCE = 0.95
SEED = 0
MIN_STEPS = 20  # values below which nothing is tested
MIN_EFFECTIVE = 8.0  # the same, in steps that would say as much if no two of them were alike
_MOST_BLOCKS = 250  # blocks drawn for a replicate; a longer series is cut into longer blocks
_MOST_CORRELATED = 0.98
_ROUNDING = 1e-9  # a difference of means below this is none


class Significance(msgspec.Struct, frozen=True):
    """How the differences of a comparison were tested.

    block_a, block_b: steps of a block; tested, clear: how many differences were tested, and are larger than the noise.
    The intervals hold all at once with `confidence`: one false alarm in twenty comparisons, not in twenty numbers.
    """

    method: str
    confidence: float
    replicates: int
    seed: int
    block_a: int | None
    block_b: int | None
    tested: int
    clear: int


class Tested(NamedTuple):
    """intervals: name -> (low, high) of the difference of means, B - A; blocks: their lengths in steps."""

    intervals: dict[str, tuple[float, float]]
    block_a: int | None
    block_b: int | None


def verdict(delta: float | None, interval: tuple[float, float] | None) -> Verdict:
    """Whether an interval keeps clear of 0; "untested" without one."""
    if delta is None or interval is None:
        return "untested"
    return "clear" if interval[0] > _ROUNDING or interval[1] < -_ROUNDING else "noise"


def differences_of_means(
    a: Mapping[str, NDArray[Any]], b: Mapping[str, NDArray[Any]], *, replicates: int = REPLICATES, seed: int = SEED
) -> Tested:
    """Simultaneous intervals of mean(b) - mean(a) for every series that both sides have.

    a, b: name -> values [n] of the steps in their order, nan where a step has none; all of a side have one n. A series
    with fewer than MIN_STEPS values or MIN_EFFECTIVE `effective_steps` on a side is left out. With the sides exchanged
    the signs are.
    """
    effective = [{name: _testable(side[name]) for name in a if name in b} for side in (a, b)]
    names = [name for name in effective[0] if effective[0][name] and effective[1][name]]
    if not names:
        return Tested({}, None, None)
    sides = [np.stack([np.asarray(side[name], dtype=np.float64) for name in names], axis=1) for side in (a, b)]
    made = [
        _resampled(side, np.array([steps[name] for name in names]), replicates, seed)
        for side, steps in zip(sides, effective, strict=True)
    ]
    means = [np.nanmean(side, axis=0) for side in sides]
    delta = means[1] - means[0]
    moved = (made[1].means - means[1]) - (made[0].means - means[0])
    half = _half_widths(moved, np.sqrt(made[0].least + made[1].least), min(made[0].freedom, made[1].freedom))
    intervals = {
        name: (float(d - h), float(d + h)) for name, d, h in zip(names, delta.tolist(), half.tolist(), strict=True)
    }
    return Tested(intervals, made[0].block, made[1].block)


def agreement_interval(
    a: NDArray[np.int64], b: NDArray[np.int64], *, replicates: int = REPLICATES, seed: int = SEED
) -> tuple[float, float] | None:
    """Interval of `kappa` of two sequences of labels [n] that stand side by side; None below MIN_STEPS pairs.

    Pairs are drawn in blocks whose length comes from the sequence of agreements.
    """
    n = a.shape[0]
    if n < MIN_STEPS:
        return None
    same = (a == b).astype(np.float64)
    labels = np.union1d(a, b)
    columns = np.stack([same, *[(side == label).astype(np.float64) for side in (a, b) for label in labels]], axis=1)
    block = max(block_length(same), -(-n // _MOST_BLOCKS))
    # A stream that does not know which side is which: exchanged sides have the same interval.
    shares = _block_sums(columns, block, replicates, np.random.default_rng(seed)) / (block * -(-n // block))
    size = labels.shape[0]
    chance = (shares[:, 1 : 1 + size] * shares[:, 1 + size :]).sum(axis=1)
    values = np.divide(shares[:, 0] - chance, 1 - chance, out=np.ones(replicates), where=chance < 1 - _ROUNDING)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def kappa(a: NDArray[np.int64], b: NDArray[np.int64]) -> tuple[float, float, float | None]:
    """(agreement, chance, kappa) of two sequences of labels [n], n > 0.

    Cohen, "A coefficient of agreement for nominal scales" (1960): chance = sum over labels of the product of their
    shares, kappa = (agreement - chance) / (1 - chance); None where both sides have one label only, the same.
    """
    agreement = float((a == b).mean())
    chance = float(sum((a == label).mean() * (b == label).mean() for label in np.union1d(a, b)))
    return agreement, chance, (agreement - chance) / (1 - chance) if chance < 1 - _ROUNDING else None


def block_length(series: NDArray[Any]) -> int:
    """Block length for a circular block bootstrap of the mean of a series [n], from its autocorrelation; at least 1.

    Politis and White, "Automatic block-length selection for the dependent bootstrap" (2004), with the correction of
    Patton, Politis and White (2009): b = (2 G^2 / D)^(1/3) n^(1/3), D = 4/3 g(0)^2, where g(0) = sum lambda(k/M) R(k)
    and G = sum lambda(k/M) |k| R(k) with the flat-top window lambda. At most min(3 sqrt(n), n/3).
    """
    x = np.asarray(series, dtype=np.float64)
    n = x.shape[0]
    x = x - x.mean()
    if n < 4 or float((x * x).sum()) <= n * _ROUNDING**2:
        return 1
    nearby = max(5, int(np.ceil(np.sqrt(np.log10(n)))))
    largest = min(int(np.ceil(np.sqrt(n))) + nearby, n - 1)
    size = _transformed(n + largest)
    spectrum = np.fft.rfft(x, size)
    covariance = np.fft.irfft(spectrum * spectrum.conj(), size)[: largest + 1] / n
    correlated = np.abs(covariance / covariance[0]) >= 2 * np.sqrt(np.log10(n) / n)
    last = 0  # the lag behind which `nearby` lags in a row are not correlated
    for lag in range(1, largest + 1):
        if correlated[lag]:
            last = lag
        elif lag - last >= nearby:
            break
    window = min(2 * max(last, 1), largest)
    lags = np.arange(1, window + 1)
    weighted = np.clip(2 * (1 - lags / window), 0, 1) * covariance[1 : window + 1]
    at_zero = covariance[0] + 2 * weighted.sum()
    slope = 2 * (lags * weighted).sum()
    if at_zero <= 0:
        return 1
    best = (2 * slope**2 / (4 / 3 * at_zero**2)) ** (1 / 3) * n ** (1 / 3)
    return int(np.clip(np.ceil(best), 1, max(1, min(3 * np.sqrt(n), n / 3))))


def _transformed(least: int) -> int:
    """A length of at least `least` that is quick to transform: a power of two, or one of these times it."""
    return min(factor << max(0, (-(-least // factor) - 1).bit_length()) for factor in (1, 3, 5, 9, 15))


def effective_steps(series: NDArray[Any]) -> float:
    """Steps without correlation that would know the mean as well as the finite values of this series [n].

    n (1 - r) / (1 + r) with the lag-1 correlation r, its bias of -(1 + 3 r) / n undone (Marriott and Pope, 1954).
    """
    x = _finite(series)
    n: int = x.shape[0]
    x = x - x.mean() if n else x
    power = float((x * x).sum())
    if n < 4 or power <= n * _ROUNDING**2:
        return float(n)
    r = (float((x[1:] * x[:-1]).sum()) / power + 1 / n) / (1 - 3 / n)
    r = float(min(max(r, 0.0), _MOST_CORRELATED))
    return n * (1 - r) / (1 + r)


class _Resampled(NamedTuple):
    """means [replicates, m]; least [m]: squared standard errors that are not undercut; freedom: degrees of it."""

    means: Floats
    block: int
    least: Floats
    freedom: float


def _resampled(values: Floats, effective: Floats, replicates: int, seed: int) -> _Resampled:
    """Means of columns [n, m], of `effective` steps [m], over drawn blocks; nan counts as no value.

    One block length for all columns.
    """
    n, there = values.shape[0], np.isfinite(values)
    mean = np.nanmean(values, axis=0)
    centred = np.where(there, values - mean, 0.0)
    block = max(block_length(centred[:, column]) for column in range(values.shape[1]))
    block = max(block, -(-n // _MOST_BLOCKS))
    # Each side has its own stream, which stays with it when the sides are exchanged.
    key = int.from_bytes(hashlib.blake2b(np.ascontiguousarray(values).tobytes(), digest_size=8).digest(), "little")
    rng = np.random.default_rng([seed, key])
    whole = bool(there.all())
    columns = centred if whole else np.concatenate([centred, there.astype(np.float64)], axis=1)
    sums = _block_sums(columns, block, replicates, rng)
    total = sums[:, : values.shape[1]]
    count = np.full_like(total, block * -(-n // block)) if whole else sums[:, values.shape[1] :]
    moved = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
    return _Resampled(mean + moved, block, np.nanvar(values, axis=0) / effective, float(effective.min()) - 1)


def _block_sums(columns: Floats, block: int, replicates: int, rng: np.random.Generator) -> Floats:
    """Sums of columns [n, m] over ceil(n / block) blocks drawn from the closed ring of rows: [replicates, m]."""
    n = columns.shape[0]
    ring = np.concatenate([np.zeros((1, columns.shape[1])), columns, columns[: block - 1]]).cumsum(axis=0)
    of_block = ring[block:] - ring[:-block]  # [n, m]
    blocks = -(-n // block)
    made = np.empty((replicates, columns.shape[1]))
    for at in range(replicates):
        made[at] = of_block[rng.integers(0, n, blocks)].sum(axis=0)
    return made


def _half_widths(moved: Floats, least: Floats, freedom: float) -> Floats:
    """Half widths [m] of intervals that hold for all columns at once, from deviations [replicates, m].

    Few blocks of steps that are alike vary too little: the errors are not taken below `least` [m], and the quantile is
    widened as Student's t is against the normal distribution (Cornish and Fisher's expansion).
    """
    error = np.maximum(moved.std(axis=0), least)
    some = error > _ROUNDING
    if not some.any():
        return np.zeros(moved.shape[1])
    drawn = np.maximum(moved[:, some].std(axis=0), _ROUNDING)
    z = float(np.quantile((np.abs(moved[:, some]) / drawn).max(axis=1), CONFIDENCE))
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    made: Floats = np.where(some, t * error, 0.0)
    return made


def _testable(series: NDArray[Any]) -> float:
    """`effective_steps` of a series, 0 where they or its values are too few."""
    x = _finite(series)
    effective = effective_steps(x) if x.shape[0] >= MIN_STEPS else 0.0
    return effective if effective >= MIN_EFFECTIVE else 0.0


def _finite(series: NDArray[Any]) -> Floats:
    x = np.asarray(series, dtype=np.float64)
    made: Floats = x[np.isfinite(x)]
    return made
