"""Features of the trained detector `received`: how much the most looked-at positions receive (key side of attention).

SinkProbe (arXiv 2604.10697): c_i / s_i, what the rows behind position i give it, on average. LapEigvals (Binkowski et
al., 2025, arXiv 2502.17598): c_i / s_i - p_ii, the eigenvalues of the graph Laplacian of causal attention, which is
triangular. Here c_i adds up the STRONGEST links of each of the answer's rows: it is a lower bound, of the mean over
heads, and the prompt's rows are not in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from geomcli.detectors.observations import LINKS, Floats, Observations

TOP = 5
STRONGEST = 16  # links of a row that are looked at


class Received:
    """Of one answer: the positions of its rows, and of each position that was looked at its mass and its own."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.slots: dict[int, int] = {}
        self.positions = np.zeros(0, dtype=np.int64)
        self.mass, self.own = np.zeros(0), np.zeros(0)

    def take(self, query: int, positions: list[int], masses: list[float]) -> None:
        self.rows.append(query)
        new = [position for position in positions if position >= 0 and position not in self.slots]
        if new:
            for position in new:
                self.slots[position] = len(self.slots)
            self.positions = np.concatenate([self.positions, np.array(new, dtype=np.int64)])
            self.mass, self.own = (np.concatenate([old, np.zeros(len(new))]) for old in (self.mass, self.own))
        for position, mass in zip(positions, masses, strict=True):
            if position >= 0:
                slot = self.slots[position]
                self.mass[slot] += mass
                if position == query:
                    self.own[slot] = mass

    def largest(self, top: int) -> Floats:
        """[2 top]: the largest c_i / s_i, then c_i / s_i - p_ii, each descending, 0 where there are none."""
        since = len(self.rows) - np.searchsorted(self.rows, self.positions)
        mean = self.mass / np.maximum(since, 1)
        made = np.zeros((2, top))
        for row, values in enumerate((mean, mean - self.own)):
            most = np.partition(values, -top)[-top:] if len(values) > top else values
            some = np.sort(most)[::-1]
            made[row, : len(some)] = some
        return made.ravel()


class ReceivedFeatures:
    """2 top numbers of one layer, the last that was selected."""

    needs = frozenset({LINKS})

    def __init__(self, top: int = TOP) -> None:
        if top < 1:
            raise ValueError(f"top must be >= 1, got {top}")
        self.top = top
        self.names = tuple(f"{kind} {rank}" for kind in ("received", "laplacian") for rank in range(1, top + 1))

    def start(self) -> Received:
        return Received()

    def update(self, states: Sequence[Received], seen: Observations) -> Floats:
        made = np.full((len(states), len(self.names)), np.nan)
        links = seen.links
        if links is None:
            return made
        links = links.strongest(STRONGEST)
        rows = zip(states, links.query.tolist(), links.positions.tolist(), links.masses.tolist(), strict=True)
        for row, (state, query, positions, masses) in enumerate(rows):
            if query >= 0:
                state.take(query, positions, masses)
                made[row] = state.largest(self.top)
        return made
