"""Received attention: how much each position of a request has been looked at so far (docs/geometry.md section 6)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from geomcli.kernels.buffers import Buffers
from geomcli.kernels.layout import CONTROL_WORDS
from geomcli.kernels.probe import Layer, Rows
from geomcli.kernels.rows import first_key, is_due

_BLOCK = 256


@triton.jit
def column_kernel(
    means, stride_means, pool, lengths, control_table, sums, stride_sums, layer_bit, sliding_window,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    request = tl.load(pool + row).to(tl.int64)
    control = control_table + request * CONTROL_WORDS
    length = tl.load(lengths + row).to(tl.int32)
    if is_due(control, length, layer_bit):
        first = first_key(control, length, sliding_window)
        for start in range(first + tl.program_id(1) * BLOCK, length, SPLITS * BLOCK):
            positions = start + tl.arange(0, BLOCK)
            mask = positions < length
            mean = tl.load(means + row * stride_means + positions, mask=mask, other=0.0)
            at = sums + request * stride_sums + positions
            tl.store(at, tl.load(at, mask=mask, other=0.0) + mean, mask=mask)


def accumulate(buffers: Buffers, layer: Layer, rows: Rows, sums: torch.Tensor) -> None:
    """Add the head-mean probabilities of the launch before to sums [pool_rows, max_length], row by request slot.

    Needs buffers with a means_length. Each request has one row a step, so no two programs add to the same place.
    """
    if buffers.means is None:
        raise ValueError("column sums need buffers with a means_length")
    column_kernel[(rows.n, buffers.mean_splits)](
        buffers.means, buffers.means.stride(0), rows.pool, rows.lengths, buffers.control, sums, sums.stride(0),
        layer.index, layer.sliding_window, SPLITS=buffers.mean_splits, BLOCK=_BLOCK,
    )  # fmt: skip


def accumulate_torch(probabilities: torch.Tensor, slot: int, first: int, sums: torch.Tensor) -> None:
    """The twin of `accumulate` for one row: probabilities [n] of the keys first .. first + n - 1."""
    sums[slot, first : first + probabilities.shape[0]] += probabilities
