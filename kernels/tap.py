"""Logits without reading a key twice: SGLang's Triton decode kernel stores them while it computes its own attention.

The kernel accepts a `score_mod` with one auxiliary tensor (SGLang 0.5.16 and later); `store_logits` writes each logit
there and changes none. The statistics then come from one probe.launch(tapped=True) after the last captured layer. Only
for layers whose positions are absolute: with a sliding window the kernel counts from the window's start.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from geomcli.kernels.buffers import Shape

_FLOAT_BYTES = 4


@triton.jit
def store_logits(qk, q_pos, kv_pos, q_idx, head, mask, Aux0, aux0_stride_t, aux0_stride_h, aux0_len):  # noqa: ARG001
    """SGLang's score_mod interface: Aux0[q_idx, head, kv_pos] = qk."""
    at = Aux0 + q_idx.to(tl.int64) * aux0_stride_t + head * aux0_stride_h + kv_pos
    tl.store(at, qk, mask=mask & (kv_pos < aux0_len))
    return qk


def bytes_of(shape: Shape, *, layers: int, rows: int, max_length: int) -> int:
    """Memory that the logits of `rows` rows of at most `max_length` keys take, in bytes."""
    return layers * rows * shape.heads * max_length * _FLOAT_BYTES


def store_logits_torch(logits: torch.Tensor, lengths: torch.Tensor, tapped: torch.Tensor) -> None:
    """The twin of `store_logits`: logits [rows, H, n] of rows with lengths [rows] into tapped [rows, H, >= n]."""
    for row, length in enumerate(lengths.tolist()):
        tapped[row, :, :length] = logits[row, :, :length].float()
