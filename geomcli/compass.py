"""The Sinq compass: how much attention patterns turn from step to step, and the ripple within them.

`drift` is the spread of the unit vectors sqrt(hist) over the last W steps, i.e. the mean pairwise
(1 - Bhattacharyya coefficient); the angle between two such vectors is half the Fisher-Rao distance of the histograms.
A meter for a change of regime, not a detector of wrong answers: docs/geometry.md has the measurement.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from geomcli.fingerprint import N_BINS

OK, WARN, HALT = "OK", "WARN", "HALT"

DRIFT_WINDOW = 10
WARN_THRESHOLD = 0.3
HALT_THRESHOLD = 0.5
CONSECUTIVE = 2  # steps over a threshold before the status rises

PROFILE_SIZE = 256  # linear distances 0..255
RIPPLE_WINDOW = 64
RIPPLE_MIN_STEPS = 16
RIPPLE_LAGS = (2, 64)


def drifts(windows: NDArray[Any]) -> NDArray[np.float64]:
    """1 - |mean of sqrt(hist)|^2 over axis -2 of [..., W, 16]; 0 for a constant pattern, 1 - 1/W at most."""
    h = np.asarray(windows, dtype=np.float64)
    mean = np.sqrt(h).mean(axis=-2)
    value = np.clip(1.0 - (mean * mean).sum(axis=-1), 0.0, 1.0)
    constant = (h == h[..., :1, :]).all(axis=(-1, -2))
    made: NDArray[np.float64] = np.where(constant, 0.0, value)
    return made


def drift(histograms: NDArray[Any]) -> float:
    """`drifts` of one window [W, 16]."""
    return float(drifts(histograms))


def directions_of(fingerprints: NDArray[Any]) -> NDArray[np.float64]:
    """Unit vectors [m, 16], the roots of the histograms of fingerprints [m, 20]; zeros where a histogram is empty."""
    hist = np.maximum(np.atleast_2d(np.asarray(fingerprints, dtype=np.float64))[:, -N_BINS:], 0.0)
    roots = np.sqrt(hist)
    made: NDArray[np.float64] = roots / np.maximum(np.linalg.norm(roots, axis=1, keepdims=True), 1e-12)
    return made


def bhattacharyya_angle(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Angle in radians between two histograms [16], in [0, pi/2]."""
    u, v = np.sqrt(np.asarray(a, dtype=np.float64)), np.sqrt(np.asarray(b, dtype=np.float64))
    return float(np.arccos(np.clip(u @ v, -1.0, 1.0)))


class Departure(Protocol):
    """How far a direction is from the nearest cluster of a discovery: the angle to its medoid, and the one that its
    windows keep, in radians; `inside`: on the manifold.
    """

    @property
    def cluster(self) -> int: ...
    @property
    def angle(self) -> float: ...
    @property
    def radius(self) -> float: ...
    @property
    def inside(self) -> bool: ...


class Manifold(Protocol):
    """What directions [16] are measured against: a `geomcli.discovery.classification.Classifier`."""

    def off_manifold(self, direction: NDArray[Any]) -> Departure: ...


class Alarm:
    """Scores against two thresholds, with hysteresis; a HALT is never taken back."""

    def __init__(self, warn: float, halt: float, consecutive: int = CONSECUTIVE) -> None:
        if not warn <= halt:
            raise ValueError(f"need warn <= halt, got warn={warn}, halt={halt}")
        if consecutive < 1:
            raise ValueError(f"consecutive must be >= 1, got {consecutive}")
        self.warn, self.halt, self.consecutive = warn, halt, consecutive
        self.status = OK
        self._over_warn = self._over_halt = 0

    def judge(self, value: float) -> str:
        """Take one score: the status after it."""
        self._over_warn = self._over_warn + 1 if value >= self.warn else 0
        self._over_halt = self._over_halt + 1 if value >= self.halt else 0
        if self.status != HALT:
            if self._over_halt >= self.consecutive:
                self.status = HALT
            elif self._over_warn >= self.consecutive:
                self.status = WARN
            elif self._over_warn == 0:
                self.status = OK
        return self.status


class Compass(Alarm):
    """Drift over a sliding window and its status.

    `off_manifold`: how far the window's mean direction is from `manifold`, after the last step; None without one, and
    where there is no drift.
    """

    def __init__(
        self,
        window: int = DRIFT_WINDOW,
        *,
        warn: float = WARN_THRESHOLD,
        halt: float = HALT_THRESHOLD,
        consecutive: int = CONSECUTIVE,
        manifold: Manifold | None = None,
    ) -> None:
        if window < 2:
            raise ValueError(f"window must be >= 2 steps, got {window}")
        if not 0 < warn <= halt <= 1:
            raise ValueError(f"need 0 < warn <= halt <= 1, got warn={warn}, halt={halt}")
        super().__init__(warn, halt, consecutive)
        self.window = window
        self.manifold = manifold
        self.off_manifold: Departure | None = None
        self._histograms: deque[NDArray[np.float64]] = deque(maxlen=window)

    def update(self, histogram: NDArray[Any]) -> float | None:
        """Take one step's histogram [16], unless it is empty; the drift, or None until the window is full."""
        h = np.asarray(histogram, dtype=np.float64)
        if h.shape != (N_BINS,):
            raise ValueError(f"histogram must have shape ({N_BINS},), got {h.shape}")
        self.off_manifold = None
        if h.sum() <= 0:
            return None
        self._histograms.append(h)
        if len(self._histograms) < self.window:
            return None
        window = np.stack(self._histograms)
        value = drift(window)
        self.judge(value)
        if self.manifold is not None:
            self.off_manifold = self.manifold.off_manifold(np.sqrt(window).mean(axis=0))
        return value


def ripples(profiles: NDArray[Any], lengths: NDArray[Any]) -> NDArray[np.float64]:
    """Strength in [0, 1] of a periodic pattern in each mean attention profile over linear distance [n, D].

    Only the first lengths [n] distances of a profile count. The highest *local maximum* of the autocorrelation over
    lags 2..64: a profile that only decays has a large autocorrelation at small lags but no local maximum, and is not
    periodic.
    """
    x, length = np.asarray(profiles, dtype=np.float64), np.asarray(lengths)
    low, high = RIPPLE_LAGS
    inside = np.arange(x.shape[1]) < length[:, None]
    mean = np.where(inside, x, 0.0).sum(axis=1) / np.maximum(length, 1)
    x = np.where(inside, x - mean[:, None], 0.0)
    power = (x * x).sum(axis=1)
    # Zero-padded to twice the length, the circular correlation is the linear one.
    size = 2 * max(x.shape[1], high + 2)
    spectrum = np.fft.rfft(x, size)
    r = np.fft.irfft(spectrum * spectrum.conj(), size)[:, low - 1 : high + 2]
    r = np.divide(r, power[:, None], out=np.zeros_like(r), where=power[:, None] > 0)
    inner = r[:, 1:-1]
    lags = np.arange(low, high + 1)
    reach = np.minimum(high, length // 2)
    peak = (inner > r[:, :-2]) & (inner >= r[:, 2:]) & (lags <= reach[:, None]) & (reach > low)[:, None]
    made: NDArray[np.float64] = np.clip(np.where(peak, inner, 0.0).max(axis=1), 0.0, 1.0)
    return made


def ripple(profile: NDArray[Any]) -> float:
    """`ripples` of one profile [D]."""
    x = np.asarray(profile, dtype=np.float64)
    return float(ripples(x[None], np.array([x.shape[0]]))[0]) if x.shape[0] else 0.0


def seen_lengths(profiles: NDArray[Any]) -> NDArray[np.int64]:
    """Distances up to the last one with any mass, of profiles [n, D]."""
    some = np.asarray(profiles) > 0
    last = some.shape[1] - np.argmax(some[:, ::-1], axis=1)
    made: NDArray[np.int64] = np.where(some.any(axis=1), last, 0)
    return made


class RippleTracker:
    """Mean linear-distance profile of the last 64 steps; None until 16 of them are there."""

    def __init__(self) -> None:
        self._profiles: deque[NDArray[np.float64]] = deque(maxlen=RIPPLE_WINDOW)

    def update(self, profile: NDArray[Any]) -> float | None:
        """Take one step's profile: mass at distance 0, 1, …, at most 256 of them."""
        row = np.zeros(PROFILE_SIZE)
        p = np.asarray(profile, dtype=np.float64)[:PROFILE_SIZE]
        row[: p.shape[0]] = p
        self._profiles.append(row)
        if len(self._profiles) < RIPPLE_MIN_STEPS:
            return None
        mean = np.mean(self._profiles, axis=0)[None]
        return float(ripples(mean, seen_lengths(mean))[0])
