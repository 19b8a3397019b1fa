"""Received attention: how much each position of a request has been looked at so far (docs/geometry.md section 6)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from geomcli.kernels.buffers import Buffers
from geomcli.kernels.constants import CONTROL_WORDS
from geomcli.kernels.probe import Rows
from geomcli.kernels.rows import first_key, is_due, text_length

_BLOCK = 256


@triton.jit
def column_kernel(
    means, stride_m_l, stride_m_t, pool, lengths, control_table, layer_ints, sums, stride_s_l, stride_s_t,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    layer = tl.program_id(1).to(tl.int64)
    request = tl.load(pool + row).to(tl.int64)
    control = control_table + request * CONTROL_WORDS
    length = tl.load(lengths + row).to(tl.int32)
    text = text_length(control, length)
    if is_due(control, text, layer):
        first = tl.maximum(first_key(control, text, layer, layer_ints) - (text - length), 0)
        for start in range(first + tl.program_id(2) * BLOCK, length, SPLITS * BLOCK):
            positions = start + tl.arange(0, BLOCK)
            mask = positions < length
            mean = tl.load(means + layer * stride_m_l + row * stride_m_t + positions, mask=mask, other=0.0)
            at = sums + layer * stride_s_l + request * stride_s_t + positions
            tl.store(at, tl.load(at, mask=mask, other=0.0) + mean, mask=mask)


def accumulate(buffers: Buffers, rows: Rows, sums: torch.Tensor) -> None:
    """Add the head-mean probabilities of the launch before to sums [layers, pool_rows, max_length], by request slot.

    Needs buffers with a means_length and a launch with `every_key`. Each request has one row a step, so no two programs
    add to the same place.
    """
    means = buffers.means
    if means is None:
        raise ValueError("column sums need buffers with a means_length")
    layer_ints = buffers.prefill_layer_ints if rows.prefill else buffers.layer_ints
    column_kernel[(rows.n, len(buffers.layers), buffers.mean_splits)](
        means, means.stride(0), means.stride(1), rows.pool, rows.lengths, buffers.control, layer_ints, sums,
        sums.stride(0), sums.stride(1), SPLITS=buffers.mean_splits, BLOCK=_BLOCK,
    )  # fmt: skip


def accumulate_torch(probabilities: torch.Tensor, slot: int, first: int, sums: torch.Tensor) -> None:
    """The twin of `accumulate` for one row and layer: probabilities [n] from `first` on into sums [slots, length]."""
    sums[slot, first : first + probabilities.shape[0]] += probabilities
