"""The record of one row as the statistics that it holds, and back."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from geomcli.kernels import layout
from geomcli.kernels.records import HEAD_STATISTICS, NATS_PER_BIT, head_statistics
from geomcli.kernels.reference import HeadStatistics, RowStatistics


class Stamp(NamedTuple):
    """Which request and length a record was written for: what must hold before it is believed."""

    request: int
    length: int


def stamp_of(record: NDArray[np.int32]) -> Stamp:
    return Stamp(int(record[layout.R_STAMP]), int(record[layout.R_LENGTH]))


def statistics_of(
    record: NDArray[np.int32],
    *,
    first_key: int,
    prompt_len: int,
    sink_tokens: int,
    heads: NDArray[np.float32] | None = None,
    selected: tuple[int, ...] | None = None,
) -> RowStatistics:
    """The statistics in record [RECORD_WORDS], and in heads [H, HEAD_WORDS] of its `selected` heads where given."""
    values = record.view(np.float32)
    length, links = int(record[layout.R_LENGTH]), int(record[layout.R_LINKS])
    histogram = values[layout.R_HISTOGRAM : layout.R_PROFILE].astype(np.float64)
    mass = histogram.sum()
    seen = max(0, min(length - max(first_key, sink_tokens), layout.PROFILE))
    return RowStatistics(
        heads=int(record[layout.R_HEADS]),
        lse=float(values[layout.R_LSE]),
        entropy_bits=float(values[layout.R_ENTROPY]) / NATS_PER_BIT,
        sink_mass=float(values[layout.R_SINK]),
        histogram=_tensor(histogram / mass if mass > 0 else histogram),
        positions=_tensor(record[layout.R_POSITIONS : layout.R_POSITIONS + links], torch.int64),
        probabilities=_tensor(values[layout.R_PROBABILITIES : layout.R_PROBABILITIES + links]),
        profile=_tensor(values[layout.R_PROFILE : layout.R_PROFILE + seen]),
        head_statistics=None if heads is None else heads_of(heads, selected, first_key, prompt_len, length),
    )


def heads_of(
    heads: NDArray[np.float32], selected: tuple[int, ...] | None, first_key: int, prompt_len: int, length: int
) -> HeadStatistics:
    """Per-head scalars of the `selected` heads of one row: heads [H, HEAD_WORDS], its first key and its lengths."""
    return HeadStatistics(*map(_tensor, head_statistics(heads, selected, first_key, prompt_len, length)))


def heads_array(statistics: HeadStatistics) -> NDArray[np.float32]:
    """float32 [4, H] in the order of HEAD_STATISTICS."""
    return np.stack([getattr(statistics, name).cpu().numpy() for name in HEAD_STATISTICS]).astype(np.float32)


def encode(statistics: RowStatistics, *, stamp: int, length: int, kept: int | None = None) -> NDArray[np.int32]:
    """The record [RECORD_WORDS] that a kernel would have written of these statistics; kept: keys that are there, all
    without it."""
    record = np.zeros(layout.RECORD_WORDS, dtype=np.int32)
    values, k = record.view(np.float32), statistics.positions.shape[0]
    record[layout.R_STAMP], record[layout.R_LENGTH] = stamp, length
    record[layout.R_HEADS], record[layout.R_LINKS] = statistics.heads, k
    record[layout.R_KEPT] = length if kept is None else kept
    values[layout.R_LSE], values[layout.R_SINK] = statistics.lse, statistics.sink_mass
    values[layout.R_ENTROPY] = statistics.entropy_bits * NATS_PER_BIT
    for at, part in (
        (values[layout.R_HISTOGRAM :], statistics.histogram),
        (values[layout.R_PROFILE :], statistics.profile),
        (record[layout.R_POSITIONS :], statistics.positions),
        (values[layout.R_PROBABILITIES :], statistics.probabilities),
    ):  # fmt: skip
        at[: part.shape[0]] = part.cpu().numpy()
    return record


def _tensor(values: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(np.array(values)).to(dtype)
