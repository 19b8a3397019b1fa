"""Logits without reading a key twice: SGLang's Triton decode kernel stores them while it computes its own attention.

The kernel accepts a `score_mod` with one auxiliary tensor (SGLang 0.5.16 and later); `store_logits` writes each logit
there and changes none. The statistics then come from one probe.launch(tapped=True) after the last captured layer. Only
for layers whose positions are absolute: with a sliding window the kernel counts from the window's start.

Storing slows the attention kernel down, so rows that did not ask are not stored: `open_rows` leaves a flag behind the
last logit of each row's first head, before the first captured layer.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from geomcli.kernels.buffers import Buffers, Shape
from geomcli.kernels.constants import CONTROL_WORDS
from geomcli.kernels.rows import is_due, text_length

_FLOAT_BYTES = 4


@triton.jit
def store_logits(qk, q_pos, kv_pos, q_idx, head, mask, Aux0, aux0_stride_t, aux0_stride_h, aux0_len):  # noqa: ARG001
    """SGLang's score_mod interface: Aux0[q_idx, head, kv_pos] = qk if Aux0[q_idx, 0, -1] is not 0."""
    row = Aux0 + q_idx.to(tl.int64) * aux0_stride_t
    stored = tl.where(tl.load(row + aux0_len - 1) > 0, aux0_len - 1, 0)
    # Kept in the L2 cache for the statistics: where a layer's logits fit, that is what most of the store costs.
    tl.store(row + head * aux0_stride_h + kv_pos, qk, mask=mask & (kv_pos < stored), eviction_policy="evict_last")
    return qk


@triton.jit
def open_kernel(tapped, stride_a_l, stride_a_t, flag, pool, lengths, control_table):
    row = tl.program_id(0).to(tl.int64)
    layer = tl.program_id(1).to(tl.int64)
    control = control_table + tl.load(pool + row).to(tl.int64) * CONTROL_WORDS
    due = is_due(control, text_length(control, tl.load(lengths + row).to(tl.int32)), layer)
    tl.store(tapped + layer * stride_a_l + row * stride_a_t + flag, due.to(tl.float32))


def open_rows(buffers: Buffers, n: int, pool: torch.Tensor, lengths: torch.Tensor) -> None:
    """Flag the layers of the first n rows whose logits are wanted; pool and lengths [n] as in probe.Rows.

    ValueError for buffers without a tap.
    """
    tapped = buffers.tap
    if tapped is None:
        raise ValueError("logits can only be tapped into buffers with a tap_length")
    open_kernel[(n, len(buffers.layers))](
        tapped, tapped.stride(0), tapped.stride(1), tapped.shape[-1] - 1, pool, lengths, buffers.control, num_warps=1
    )


def bytes_of(shape: Shape, *, layers: int, rows: int, max_length: int) -> int:
    """Memory that the logits of `rows` rows of at most `max_length` keys take, in bytes."""
    return layers * rows * shape.heads * max_length * _FLOAT_BYTES


def store_logits_torch(logits: torch.Tensor, lengths: torch.Tensor, tapped: torch.Tensor) -> None:
    """The twin of `store_logits`: logits [rows, H, n] of rows with lengths [rows] into tapped [rows, H, >= n]."""
    for row, length in enumerate(lengths.tolist()):
        tapped[row, :, :length] = logits[row, :, :length].float()
