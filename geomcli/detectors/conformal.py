"""Thresholds for a stated rate of false alarms, from answers in which nothing was wrong.

An answer is alarmed at when `consecutive` of its scores in a row are at or above the threshold. Both rates hold for a
new clean answer that is exchangeable with those given, on average over draws of them; not for traffic of another kind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from geomcli.detectors.observations import Floats
from geomcli.errors import GeomError

NEVER = -math.inf  # the level of an answer that no threshold alarms at


def level(scores: Floats, consecutive: int = 1) -> float:
    """The highest threshold that an answer with these scores [T] is alarmed at; nan scores are passed over."""
    known = scores[np.isfinite(scores)]
    if consecutive < 1:
        raise ValueError(f"consecutive must be >= 1, got {consecutive}")
    if len(known) < consecutive:
        return NEVER
    return float(sliding_window_view(known, consecutive).min(axis=1).max())


def answers_needed(rate: float) -> int:
    """The fewest clean answers that a threshold for this rate per answer can rest on."""
    _check(rate)
    n = math.ceil(round((1 - rate) / rate, 9))
    return max(n, 1)


def per_answer(levels: Sequence[float], rate: float) -> float:
    """Threshold for at most `rate` false alarms an answer, from the levels [n] of clean answers.

    Split conformal prediction (Vovk et al., "Algorithmic learning in a random world", 2005; Lei et al., 2018,
    doi:10.1080/01621459.2017.1307116): just above the level of rank ceil((n + 1)(1 - rate)). GeomError where n is too
    small for the rate.
    """
    n, needed = len(levels), answers_needed(rate)
    if n < needed:
        raise GeomError(
            f"a false-alarm rate of {rate:g} an answer needs {needed} clean answers, and there are {n}.",
            f"--false-alarms {_up(1 / (n + 1)):g}, or more clean answers" if n else "more clean answers",
        )
    # Rounded first: 100 * (1 - .01) is a little more than 99.
    return _above(levels, math.ceil(round((n + 1) * (1 - rate), 9)))


def per_thousand(levels: Sequence[float], tokens: Sequence[int], rate: float) -> float:
    """Threshold for at most `rate` false alarms in 1,000 tokens of clean answers, from levels [n] and lengths [n].

    An answer is alarmed at once at most. Conformal risk control (Angelopoulos et al., 2022, arXiv 2208.02814) of the
    loss alarm - rate * tokens / 1000, which is at most 1: k + 1 <= rate * sum(tokens) / 1000 for k alarmed among those
    given. GeomError where there are too few tokens for the rate, or where it allows every answer to be alarmed at.
    """
    if not 0 < rate < math.inf:
        raise ValueError(f"rate must be above 0, got {rate}")
    total, n = sum(tokens), len(levels)
    alarmed = math.floor(round(rate * total / 1000, 9)) - 1
    if alarmed < 0:
        raise GeomError(
            f"{rate:g} false alarms in 1,000 tokens need {math.ceil(1000 / rate)} tokens of clean answers, and there "
            f"are {total}.",
            "a higher rate, or more clean answers",
        )
    if alarmed >= n:
        raise GeomError(
            f"{rate:g} false alarms in 1,000 tokens are one in each of the {n} clean answers or more.",
            "a lower rate, or --false-alarms",
        )
    return _above(levels, n - alarmed)


def _above(levels: Sequence[float], rank: int) -> float:
    """The smallest number above the level of this rank, from 1: at that level itself there is no alarm."""
    chosen = sorted(levels)[rank - 1]
    if not math.isfinite(chosen):
        raise GeomError(
            "too many clean answers have no score: they are too short, or what the detector needs was not captured.",
            "docs/geometry.md, Detectors, says what each needs",
        )
    return float(np.nextafter(chosen, np.inf))


def _check(rate: float) -> None:
    if not 0 < rate < 1:
        raise ValueError(f"rate must be above 0 and below 1, got {rate}")


def _up(value: float) -> float:
    """With two significant digits, rounded up: a rate that is enough stays enough."""
    digits = 1 - math.floor(math.log10(value))
    return float(math.ceil(value * 10.0**digits - 1e-9) / 10.0**digits)
