"""The records of many rows as arrays, in numpy alone: what reads them need not load torch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from geomcli.kernels import layout

HEAD_STATISTICS = ("entropy", "sink", "prev", "lookback")
NATS_PER_BIT = float(np.log(2.0))


class Decoded(NamedTuple):
    """Records [L, n, RECORD_WORDS] as the statistics that they hold, each [L, n, …]."""

    kept: NDArray[np.int64]  # keys that are there
    heads: NDArray[np.int64]
    lse: NDArray[np.float64]
    entropy_bits: NDArray[np.float64]
    sink_mass: NDArray[np.float64]
    histogram: NDArray[np.float64]  # sums to 1 or is zero
    links: NDArray[np.int64]
    positions: NDArray[np.int64]  # [L, n, most links of any]
    probabilities: NDArray[np.float64]
    profile: NDArray[np.float32]


def decode(records: NDArray[np.int32]) -> Decoded:
    """All records of a step at once."""
    values = records.view(np.float32)
    histogram = values[..., layout.R_HISTOGRAM : layout.R_PROFILE].astype(np.float64)
    mass = histogram.sum(axis=-1, keepdims=True)
    links = records[..., layout.R_LINKS].astype(np.int64)
    most = max(0, min(int(links.max(initial=0)), layout.KEEP))
    return Decoded(
        kept=records[..., layout.R_KEPT].astype(np.int64),
        heads=records[..., layout.R_HEADS].astype(np.int64),
        lse=values[..., layout.R_LSE].astype(np.float64),
        entropy_bits=values[..., layout.R_ENTROPY].astype(np.float64) / NATS_PER_BIT,
        sink_mass=values[..., layout.R_SINK].astype(np.float64),
        histogram=np.divide(histogram, mass, out=np.zeros_like(histogram), where=mass > 0),
        links=links,
        positions=records[..., layout.R_POSITIONS : layout.R_POSITIONS + most].astype(np.int64),
        probabilities=values[..., layout.R_PROBABILITIES : layout.R_PROBABILITIES + most].astype(np.float64),
        profile=values[..., layout.R_PROFILE : layout.R_POSITIONS],
    )


def head_statistics(
    heads: NDArray[np.float32],
    selected: tuple[int, ...] | None,
    first_key: NDArray[np.int64] | int,
    prompt_len: NDArray[np.int64] | int,
    length: NDArray[np.int64] | int,
) -> NDArray[np.float32]:
    """Per-head scalars [..., 4, selected] in the order of HEAD_STATISTICS of rows' sums [..., H, HEAD_WORDS].

    Of each row [...] first_key: first position that counted; length: keys of it. Lookback as in geometry.md: mean mass
    on a prompt key against that on a prompt key and a generated one together.
    """
    if selected is not None:
        heads = heads[..., list(selected), :]
    n_prompt = np.maximum(np.minimum(prompt_len, length) - first_key, 1).astype(np.float32)
    n_generated = np.maximum(length - np.maximum(prompt_len, first_key), 1).astype(np.float32)
    prompt = heads[..., layout.H_PROMPT] / n_prompt[..., None]
    generated = heads[..., layout.H_GENERATED] / n_generated[..., None]
    return np.stack([
        heads[..., layout.H_ENTROPY] / NATS_PER_BIT,
        heads[..., layout.H_SINK],
        heads[..., layout.H_PREVIOUS],
        prompt / np.maximum(prompt + generated, np.finfo(np.float32).tiny),
    ], axis=-2).astype(np.float32)  # fmt: skip
