"""The captured rows of one step as arrays, whatever computed them: what entries are built from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geomcli.compass import PROFILE_SIZE
from geomcli.fingerprint import N_BINS
from geomcli.kernels.reference import HeadStatistics, RowStatistics
from geomcli.server_patch.request_state import RequestState


class Due(NamedTuple):
    """One output token that is about to be committed and whose step is to be captured."""

    row: int
    request: Any
    state: RequestState
    output_index: int

    @property
    def prompt_len(self) -> int:
        return len(self.request.origin_input_ids)

    @property
    def query_position(self) -> int:
        return self.prompt_len + self.output_index - 1


@dataclass
class StepNumbers:
    """Statistics [L layers, n rows, …] of a step's due tokens; a row that `failed` has none that may be published."""

    layers: tuple[int, ...]
    wanted: NDArray[np.bool_]  # [L, n]: the layer is one of the row's options
    failed: NDArray[np.bool_]  # [n]
    heads: NDArray[np.int64]  # [L, n]: averaged over
    lse: NDArray[np.float64]
    entropy_bits: NDArray[np.float64]
    sink_mass: NDArray[np.float64]
    histogram: NDArray[np.float64]  # [L, n, 16]: sums to 1 or is zero
    links: NDArray[np.int64]  # [L, n]: how many there are
    positions: NDArray[np.int64]  # [L, n, K]
    probabilities: NDArray[np.float64]  # [L, n, K]
    profile: NDArray[np.float32]  # [L, n, <= 256]
    head_statistics: list[dict[int, HeadStatistics]]  # of each row, by layer
    flags: tuple[str, ...] = field(default=())  # raised on every entry

    def check(self) -> None:
        """Mark rows with a number that is not finite as failed."""
        sums = self.lse + self.entropy_bits + self.sink_mass + self.histogram.sum(axis=-1)
        self.failed |= (~np.isfinite(sums) & self.wanted).any(axis=0)


def wanted_by(due: Sequence[Due], layers: tuple[int, ...]) -> NDArray[np.bool_]:
    """[L, n]; KeyError for a row that wants a layer that is not captured."""
    wanted = np.zeros((len(layers), len(due)), dtype=np.bool_)
    place = {layer: i for i, layer in enumerate(layers)}
    for n, one in enumerate(due):
        for layer in one.state.options.layers:
            wanted[place[layer], n] = True
    return wanted


def numbers_from_rows(
    due: Sequence[Due], layers: tuple[int, ...], rows: Sequence[Mapping[int, RowStatistics] | None]
) -> StepNumbers:
    """Of statistics that were computed row by row: for each due token a row for every layer that it wants, or None."""
    n, most = len(due), max((s.positions.shape[0] for r in rows if r for s in r.values()), default=0)
    size = (len(layers), n)
    made = StepNumbers(
        layers=layers,
        wanted=wanted_by(due, layers),
        failed=np.array([row is None for row in rows], dtype=np.bool_),
        heads=np.zeros(size, dtype=np.int64),
        lse=np.zeros(size),
        entropy_bits=np.zeros(size),
        sink_mass=np.zeros(size),
        histogram=np.zeros((*size, N_BINS)),
        links=np.zeros(size, dtype=np.int64),
        positions=np.zeros((*size, most), dtype=np.int64),
        probabilities=np.zeros((*size, most)),
        profile=np.zeros((*size, PROFILE_SIZE), dtype=np.float32),
        head_statistics=[{} for _ in due],
    )
    for i, row in enumerate(rows):
        for at, layer in enumerate(layers):
            if row is None or not made.wanted[at, i]:
                continue
            if layer not in row:
                made.failed[i] = True
                continue
            s = row[layer]
            made.heads[at, i], made.lse[at, i], made.sink_mass[at, i] = s.heads, s.lse, s.sink_mass
            made.entropy_bits[at, i], made.histogram[at, i] = s.entropy_bits, s.histogram.cpu().numpy()
            k = s.positions.shape[0]
            made.links[at, i], made.positions[at, i, :k] = k, s.positions.cpu().numpy()
            made.probabilities[at, i, :k] = s.probabilities.cpu().numpy()
            made.profile[at, i, : s.profile.shape[0]] = s.profile.cpu().numpy()
            if s.head_statistics is not None:
                made.head_statistics[i][layer] = s.head_statistics
    made.check()
    return made
