"""Compass and ripple of many requests at once: the histories of `geomcli.compass` in arrays, one numpy pass a step.

A server takes a step of dozens of requests between two tokens; one by one that costs more than the step. Drift equals
`Compass.update` bit for bit; the profile's mean is a running sum and so equals `RippleTracker.update` but for rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geomcli.compass import (
    DRIFT_WINDOW,
    PROFILE_SIZE,
    RIPPLE_MIN_STEPS,
    RIPPLE_WINDOW,
    drifts,
    ripples,
    seen_lengths,
)
from geomcli.fingerprint import N_BINS

_FIRST_SIZE = 64


class Moved(NamedTuple):
    """Of each request [n]: drift and ripple, nan until their windows are there."""

    drift: NDArray[np.float64]
    ripple: NDArray[np.float64]


class Trackers:
    """Histories by slot; `open` gives one, `close` takes it back. Grows as needed, never shrinks."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self._histograms = np.zeros((0, DRIFT_WINDOW, N_BINS))
        self._profiles = np.zeros((0, RIPPLE_WINDOW, PROFILE_SIZE), dtype=np.float32)
        self._sums = np.zeros((0, PROFILE_SIZE))
        self._nonzero = np.zeros((0, PROFILE_SIZE), dtype=np.int16)  # steps in the window with mass at a distance
        self._histogram_count = np.zeros(0, dtype=np.int64)
        self._profile_count = np.zeros(0, dtype=np.int64)

    def open(self) -> int:
        """A slot with no history."""
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self._sums[slot], self._profiles[slot], self._nonzero[slot] = 0, 0, 0
        self._histogram_count[slot] = self._profile_count[slot] = 0
        return slot

    def close(self, slot: int) -> None:
        self._free.append(slot)

    def _grow(self) -> None:
        old = self._sums.shape[0]
        new = max(_FIRST_SIZE, 2 * old)
        for name in ("_histograms", "_profiles", "_sums", "_nonzero", "_histogram_count", "_profile_count"):
            array = getattr(self, name)
            larger = np.zeros((new, *array.shape[1:]), dtype=array.dtype)
            larger[:old] = array
            setattr(self, name, larger)
        self._free.extend(range(new - 1, old - 1, -1))

    def update(self, slots: Sequence[int], histograms: NDArray[Any], profiles: NDArray[Any]) -> Moved:
        """One step of the requests in `slots`, each once: histograms [n, 16], profiles [n, <= 256] of mean mass.

        An empty histogram moves no compass, as in `Compass.update`.
        """
        at = np.asarray(slots, dtype=np.int64)
        return Moved(self._drift(at, np.asarray(histograms, dtype=np.float64)), self._ripple(at, profiles))

    def _drift(self, at: NDArray[np.int64], histograms: NDArray[np.float64]) -> NDArray[np.float64]:
        some = histograms.sum(axis=1) > 0
        moved = at[some]
        self._histograms[moved, self._histogram_count[moved] % DRIFT_WINDOW] = histograms[some]
        self._histogram_count[moved] += 1
        full = some & (self._histogram_count[at] >= DRIFT_WINDOW)
        value = np.full(at.shape, np.nan)
        # Oldest first: a sum in another order is another sum.
        order = (self._histogram_count[at[full], None] + np.arange(DRIFT_WINDOW)) % DRIFT_WINDOW
        value[full] = drifts(self._histograms[at[full, None], order])
        return value

    def _ripple(self, at: NDArray[np.int64], profiles: NDArray[Any]) -> NDArray[np.float64]:
        row = np.zeros((at.shape[0], PROFILE_SIZE), dtype=np.float32)
        row[:, : profiles.shape[1]] = profiles
        place = self._profile_count[at] % RIPPLE_WINDOW
        gone = self._profiles[at, place]
        self._sums[at] += row.astype(np.float64) - gone
        self._nonzero[at] += (row > 0).astype(np.int16) - (gone > 0)
        self._profiles[at, place] = row
        self._profile_count[at] += 1
        count = self._profile_count[at]
        value = np.full(at.shape, np.nan)
        there = count >= RIPPLE_MIN_STEPS
        if there.any():
            mean = self._sums[at[there]] / np.minimum(count[there], RIPPLE_WINDOW)[:, None]
            # A running sum leaves a rest where all mass has gone.
            mean[self._nonzero[at[there]] == 0] = 0.0
            value[there] = ripples(mean, seen_lengths(mean))
        return value
