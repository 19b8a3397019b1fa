"""What a node of the prefix cache is worth: the attention that its tokens received, blended with recency.

Knows no engine. Positions are tokens of one request; time is counted in requests that ended, so that every rank of
tensor parallelism has the same, whatever its clock says.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LOCAL = 8  # nearer keys are looked at for their place: the fingerprint's local band
DEFAULT_WEIGHT = 0.7
_HALVING = 0.5  # horizons; longer keeps what is popular, shorter drops sooner what is over (docs/eviction.md)
_MEMORY = 16  # requests that means are taken over
_TIMES = 1 << 17  # ends of requests that are told apart
Key = tuple[float, float]


class Received:
    """How much one request looked at each of its positions, over the rows that were captured."""

    def __init__(self) -> None:
        self._sums = np.zeros(0)
        self._steps = np.zeros(1)  # of the number of rows that could see a position

    def observe(
        self,
        links: Iterable[tuple[NDArray[np.integer], NDArray[np.floating]]],
        *,
        query_position: int,
        first: int,
    ) -> None:
        """One row: positions and head-mean probabilities of each captured layer's links.

        Keys before `first` (sinks, masked ones) and nearer than LOCAL do not count. Each probability is taken relative
        to an even share of the keys that do: 1 is what a key gets from a row that looks at all alike.
        """
        end = query_position - LOCAL + 1
        of_layers = list(links)
        if end <= first or not of_layers:
            return
        if query_position >= len(self._sums):
            # Twice as much as is needed: an answer grows row by row.
            self._sums = _grown(self._sums, 2 * (query_position + 1))
            self._steps = _grown(self._steps, 2 * (query_position + 1) + 1)
        for positions, probabilities in of_layers:
            counted = (positions >= first) & (positions < end)
            self._sums[positions[counted]] += probabilities[counted].astype(np.float64) * (
                (end - first) / len(of_layers)
            )
        self._steps[first] += 1
        self._steps[end] -= 1

    def per_token(self, length: int) -> NDArray[np.float64]:
        """[length]: the mean over the rows that could see a position, NaN where none could."""
        made = np.full(length, np.nan)
        n = min(length, len(self._sums))
        rows = np.cumsum(self._steps)[:n]
        np.divide(self._sums[:n], rows, out=made[:n], where=rows > 0)
        return made


@dataclass
class Held:
    """What a node's tokens [n] received, as it was at `time`."""

    received: NDArray[np.float64]
    time: int

    def split(self, n: int) -> tuple[Held, Held]:
        """The first n tokens and the rest."""
        return Held(self.received[:n], self.time), Held(self.received[n:], self.time)


class Ranking:
    """Keys of nodes, the lowest to be evicted first.

    key = (1 - weight) · last + weight · horizon · v, then the time of the last access itself.
    last: requests that had ended at the node's last access. v in [0, 1): s / (s + m), with s what a token of the node
    received, summed over the requests that found it in the cache and halved twice a horizon, and m what a token
    receives of one such request; 0 for a node of which nothing was captured. horizon: requests that the pool holds.
    With weight 0, and among nodes without data, the order is LRU's.
    """

    def __init__(self, weight: float, capacity: int) -> None:
        """weight: 0..1; capacity: tokens of the pool. ValueError outside."""
        if not 0 <= weight <= 1:
            raise ValueError(f"weight must be 0..1, got {weight}")
        if capacity < 1:
            raise ValueError(f"capacity must be 1 or more tokens, got {capacity}")
        self.weight, self.capacity = weight, capacity
        self.time = 0
        self.mean = 0.0
        self._tokens = 0.0
        self._ends: list[float] = []

    @property
    def horizon(self) -> float:
        """Requests that the pool holds, by what they add to it."""
        return self.capacity / self._tokens if self._tokens else 1.0

    def end(self, at: float, added: int) -> None:
        """A request has ended at `at` of the engine's clock and put `added` tokens into the pool."""
        self._ends.append(max(at, self._ends[-1]) if self._ends else at)
        if len(self._ends) > _TIMES:
            del self._ends[: _TIMES // 2]
        self.time += 1
        self._tokens = _moved(self._tokens, float(max(added, 1)))

    def learn(self, per_token: NDArray[np.float64]) -> None:
        """What the tokens of a request received; NaN does not count."""
        if (known := per_token[~np.isnan(per_token)]).size:
            self.mean = _moved(self.mean, float(known.mean()))

    def add(self, held: Held | None, per_token: NDArray[np.float64]) -> Held | None:
        """With what a request's look at the node's tokens adds; tokens that it could not see get the others' mean."""
        unknown = np.isnan(per_token)
        if unknown.all():
            return held
        per_token = np.where(unknown, per_token[~unknown].mean(), per_token)
        return self.merge(held, Held(per_token, self.time))

    def merge(self, held: Held | None, other: Held) -> Held:
        """Both together, of the same tokens."""
        if held is None:
            return other
        time = max(held.time, other.time)
        return Held(self.decayed(held, time) + self.decayed(other, time), time)

    def decayed(self, held: Held, time: int) -> NDArray[np.float64]:
        """[n]: what is left of it at `time`."""
        if time <= held.time:
            return held.received
        factor: float = 0.5 ** ((time - held.time) / (_HALVING * self.horizon))
        return held.received * factor

    def value(self, held: Held | None) -> float:
        """v of the formula."""
        if held is None or not held.received.size:
            return 0.0
        s = float(self.decayed(held, self.time).mean())
        return s / (s + self.mean) if s > 0 else 0.0

    def key(self, last_access: float, held: Held | None) -> Key:
        """Of a node that was last accessed at `last_access` of the engine's clock."""
        last = self.time - len(self._ends) + bisect_right(self._ends, last_access)
        attention = self.weight * self.horizon * self.value(held) if self.weight else 0.0
        return (1 - self.weight) * last + attention, last_access


def _grown(array: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    made = np.zeros(length)
    made[: len(array)] = array
    return made


def _moved(mean: float, value: float) -> float:
    return value if mean == 0 else mean + (value - mean) / _MEMORY
