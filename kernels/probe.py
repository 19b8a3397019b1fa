"""Statistics of query rows from the paged keys, for any attention backend whose keys lie in the engine's pool.

`launch` only launches: no allocation, no copy to the host, no branch on a tensor's value, so a CUDA graph can hold it.
Its twin is reference.row_statistics over reference.attention_logits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from geomcli.kernels.buffers import Buffers, Shape
from geomcli.kernels.rows import finish_kernel, mean_kernel, partial_kernel

_BLOCK_H = 16  # the least that a tensor core takes
_BLOCK_N = 64
_TAP_BLOCK_H = 4
_TAP_BLOCK_N = 256


@dataclass(frozen=True)
class Rows:
    """The rows of a step: everything of shape [n], on the device.

    pool: slot of each row's request, int32 or int64. lengths: keys of each row. `slots` holds the key slot of every
    position: flat with `starts` [n], where row i begins (kv_indices and kv_indptr), or [pool_rows, max_length] indexed
    by `pool` when `starts` is None (req_to_token). `tokens` [n] says where in the query tensor each row is; None: row i
    is token i.
    """

    n: int
    pool: torch.Tensor
    lengths: torch.Tensor
    slots: torch.Tensor
    starts: torch.Tensor | None = None
    tokens: torch.Tensor | None = None


@dataclass(frozen=True)
class Layer:
    """What the logits of one layer depend on besides query and keys; `index` counts the captured layers."""

    index: int
    scale: float
    logit_cap: float = 0.0
    sliding_window: int = -1
    learned_sinks: torch.Tensor | None = None  # [H]


def launch(
    buffers: Buffers,
    layer: Layer,
    rows: Rows,
    query: torch.Tensor | None = None,
    keys: torch.Tensor | None = None,
    *,
    block_n: int = 0,
) -> None:
    """Write the records of `layer` for all rows whose control asks for them.

    query [tokens, H, D], keys [slots, H_kv, D] in fp32, fp16, bf16 or (keys only) fp8, last dimensions contiguous. With
    both None the logits come from `buffers.tap` (see tap.py). `block_n`: keys that a program takes at a time, 0: as
    many as suit the source.
    """
    shape = buffers.shape
    tapped = query is None or keys is None
    if tapped and buffers.tap is None:
        raise ValueError("logits can only be tapped into buffers with a tap_length")
    if rows.n > buffers.rows:
        raise ValueError(f"{rows.n} rows do not fit into buffers of {buffers.rows}")
    blank = buffers.partial
    q, k = (blank, blank) if query is None or keys is None else (query, keys)
    tap = blank if buffers.tap is None else buffers.tap
    main, tail = _widths(shape)
    # Stored logits know nothing of groups: any heads make a block.
    key_heads, group = (1, shape.heads) if tapped else (shape.key_heads, shape.group)
    block_h = _TAP_BLOCK_H if tapped else _BLOCK_H
    mean_block_h = min(32, triton.next_power_of_2(shape.heads)) if tapped else _BLOCK_H
    records = buffers.records[layer.index]
    source = (
        q, q.stride(0), q.stride(1), rows.pool if rows.tokens is None else rows.tokens, k, k.stride(0), k.stride(1),
        rows.slots, rows.pool if rows.starts is None else rows.starts, rows.slots.stride(0), tap, tap.stride(0),
        tap.stride(1), rows.pool, rows.lengths, buffers.control, buffers.partial,
    )  # fmt: skip
    how = {
        "HEADS": shape.heads, "GROUP": group, "D": shape.dim, "D_MAIN": main, "D_TAIL": max(tail, 16),
        "HAS_TAIL": tail > 0, "HAS_CAP": layer.logit_cap > 0, "TAP": tapped, "FLAT": rows.starts is not None,
        "HAS_TOKENS": rows.tokens is not None,
        # The interpreter multiplies the bits of a bf16 as if they were an integer.
        "WIDEN": bool(triton.knobs.runtime.interpret),
    }  # fmt: skip
    sinks = layer.learned_sinks
    scalars = (layer.index, layer.scale, layer.logit_cap, layer.sliding_window)
    blocks_h = triton.cdiv(group, block_h)
    partial_kernel[(rows.n, key_heads * blocks_h, buffers.splits)](
        *source, *scalars, SPLITS=buffers.splits, BLOCK_H=block_h, BLOCKS_H=blocks_h,
        BLOCK_N=block_n or (_TAP_BLOCK_N if tapped else _BLOCK_N), **how,
    )  # fmt: skip
    mean_kernel[(rows.n, buffers.mean_splits)](
        *source, blank if sinks is None else sinks, blank if buffers.means is None else buffers.means,
        0 if buffers.means is None else buffers.means.stride(0), buffers.candidates, records, *scalars,
        HAS_SINKS=sinks is not None, HAS_MEANS=buffers.means is not None, SPLITS=buffers.mean_splits,
        PARTIAL_SPLITS=buffers.splits, BLOCK_H=mean_block_h, BLOCKS_H=triton.cdiv(group, mean_block_h), **how,
    )  # fmt: skip
    finish_kernel[(rows.n,)](
        rows.pool, rows.lengths, buffers.control, buffers.partial, blank if sinks is None else sinks,
        buffers.candidates, records, blank if buffers.heads is None else buffers.heads[layer.index], layer.index,
        layer.sliding_window, HEADS=shape.heads, HAS_SINKS=sinks is not None, HAS_HEADS=buffers.heads is not None,
        SPLITS=buffers.splits, MEAN_SPLITS=buffers.mean_splits, BLOCK_H=_BLOCK_H,
    )  # fmt: skip


def _widths(shape: Shape) -> tuple[int, int]:
    """A key's width as a power of two and the power of two that holds the rest: 576 is 512 + 64, 128 is 128 + 0."""
    main = 1 << (shape.dim.bit_length() - 1)
    rest = shape.dim - main
    return main, 0 if rest == 0 else max(16, triton.next_power_of_2(rest))
