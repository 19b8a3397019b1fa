"""The Sinq compass as a detector: the drift of a window of attention patterns, as geomcli.compass defines it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from geomcli.compass import DRIFT_WINDOW, drifts
from geomcli.detectors.observations import Floats, Observations
from geomcli.fingerprint import N_BINS


class Window:
    """The last histograms of an answer [window, 16], in a ring; how many came."""

    def __init__(self, size: int) -> None:
        self.ring = np.zeros((size, N_BINS))
        self.count = 0


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
            state.ring[state.count % self.window] = histograms[row]
            state.count += 1
            if state.count >= self.window:
                full.append(row)
                # Oldest first: a sum in another order is another sum.
                windows.append(np.roll(state.ring, -(state.count % self.window), axis=0))
        if full:
            made[full] = drifts(np.stack(windows))
        return made
