"""The Sinq compass as a detector: the drift of a window of attention patterns, as geomcli.compass defines it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from geomcli.compass import DRIFT_WINDOW, drifts
from geomcli.detectors.observations import Floats, Observations
from geomcli.fingerprint import N_BINS


class Window:
    """The last `size` histograms of an answer, and how many came.

    In a ring that each is written to twice, so that those of a window lie one behind the other, the oldest first: a sum
    in another order is another sum.
    """

    def __init__(self, size: int) -> None:
        self.size, self.count = size, 0
        self._ring = np.zeros((2 * size, N_BINS))

    def take(self, histogram: Floats) -> None:
        at = self.count % self.size
        self._ring[at] = self._ring[at + self.size] = histogram
        self.count += 1

    @property
    def newest(self) -> Floats:
        """[size, 16]"""
        at = self.count % self.size
        return self._ring[at : at + self.size]


class CompassDetector:
    """Drift in [0, 1 - 1/window]; nan until a window is full, and where attention is empty."""

    name = "compass"
    needs: frozenset[str] = frozenset()

    def __init__(self, window: int = DRIFT_WINDOW) -> None:
        if window < 2:
            raise ValueError(f"window must be >= 2 steps, got {window}")
        self.window = window

    def start(self) -> Window:
        return Window(self.window)

    def update(self, states: Sequence[Window], seen: Observations) -> Floats:
        histograms = seen.histogram
        made = np.full(len(states), np.nan)
        full, windows = [], []
        for row, (state, some) in enumerate(zip(states, np.nansum(histograms, axis=1) > 0, strict=True)):
            if not some:
                continue
            state.take(histograms[row])
            if state.count >= self.window:
                full.append(row)
                windows.append(state.newest)
        if full:
            made[full] = drifts(np.stack(windows))
        return made
