"""Numbers of a token, and their causal summary: mean, exponentially weighted mean and maximum over an answer so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from geomcli.detectors.observations import Floats, Observations

SUMMARIES = ("mean", "recent", "max")
WINDOW = 8  # tokens: of the recent mean


class Features(Protocol):
    """Numbers of the newest token of each of many answers; those that rest on tokens before it keep a state."""

    needs: frozenset[str]
    names: tuple[str, ...]

    def start(self) -> Any: ...
    def update(self, states: Sequence[Any], seen: Observations) -> Floats:
        """[n, len(names)]; a row of nan where the token was not captured, nan where a number is not defined."""
        ...


class Summary:
    """Of one answer: the state of its features, and of each feature [F] how often it was seen and its SUMMARIES."""

    def __init__(self, features: Any, size: int) -> None:
        self.features = features
        self.seen = np.zeros(size)
        self.numbers = np.zeros((len(SUMMARIES), size))


class Summarised:
    """Summaries [n, 3 F] of features, in the order of `names`; nan for a feature of which nothing was seen yet, and a
    row of nan where the token was not captured: the summary stays as it is.
    """

    def __init__(self, features: Features, window: int = WINDOW) -> None:
        if window < 1:
            raise ValueError(f"window must be >= 1 tokens, got {window}")
        self.features, self.window = features, window
        self.names = tuple(f"{summary} {name}" for summary in SUMMARIES for name in features.names)

    def start(self) -> Summary:
        return Summary(self.features.start(), len(self.features.names))

    def update(self, states: Sequence[Summary], seen: Observations) -> Floats:
        values = self.features.update([state.features for state in states], seen)
        made = np.full((len(states), len(self.names)), np.nan)
        here = np.isfinite(values)
        rows = np.flatnonzero(here.any(axis=1)).tolist()
        if not rows:
            return made
        x, known = values[rows], here[rows]
        count = np.stack([states[row].seen for row in rows])
        numbers = np.stack([states[row].numbers for row in rows])
        if known.all():
            count += 1
            self._take(numbers, count, x)
        else:
            before = numbers.copy()
            count += known
            self._take(numbers, np.maximum(count, 1), np.where(known, x, 0.0))
            numbers = np.where(known[:, None], numbers, before)
        for at, row in enumerate(rows):
            states[row].seen, states[row].numbers = count[at], numbers[at]
        shown = numbers if (count > 0).all() else np.where(count[:, None] > 0, numbers, np.nan)
        made[rows] = shown.reshape(len(rows), -1)
        return made

    def _take(self, numbers: Floats, count: Floats, x: Floats) -> None:
        """numbers [n, 3, F] with x [n, F], the count-th of each, in place."""
        first = count <= 1
        change = x[:, None] - numbers[:, :2]
        change[:, 0] /= count
        change[:, 1] *= np.where(first, 1.0, 1 / self.window)
        numbers[:, :2] += change
        np.maximum(numbers[:, 2], x, out=numbers[:, 2])
        numbers[:, 2][first] = x[first]
