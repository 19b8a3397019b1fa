"""Statistics of a step's query rows, for any attention backend whose keys lie in the engine's pool.

Each captured layer leaves its queries behind (or its logits, see tap.py); after the last of them one `launch` does all
layers. Both only launch: no allocation, no copy to the host, no branch on a tensor's value, so a CUDA graph can hold
them. The twin is reference.row_statistics over reference.attention_logits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from geomcli.kernels.buffers import Buffers
from geomcli.kernels.finish import finish_kernel, mean_kernel
from geomcli.kernels.partial import partial_kernel

_BLOCK_H = 16  # the least that a tensor core takes
_BLOCK_N = 64
_BLOCK_D = 128
_TAP_BLOCK_H = 8
_TAP_BLOCK_N = 128
_TAP_WARPS = 2
_TAP_STAGES = 3  # tiles of stored logits in flight
# Programs that a launch aims at: enough for every multiprocessor of a large GPU, few enough to leave at once when no
# row asks.
_PROGRAMS = 512
_CHUNKED_LENGTH = 16384
_FINISHED_AT_ONCE = 256  # splits of all heads that the last kernel keeps in registers


@dataclass(frozen=True)
class Rows:
    """The rows of a step: everything of shape [n], on the device.

    pool: slot of each row's request, int32 or int64. lengths: keys of each row. `slots` holds the key slot of every
    position: flat with `starts` [n], where row i begins (kv_indices and kv_indptr), or [pool_rows, max_length] indexed
    by `pool` when `starts` is None (req_to_token). `prefill`: the layers' windows are those of a prefill.
    """

    n: int
    pool: torch.Tensor
    lengths: torch.Tensor
    slots: torch.Tensor
    starts: torch.Tensor | None = None
    prefill: bool = False


def keep_queries(buffers: Buffers, index: int, query: torch.Tensor, tokens: torch.Tensor | None = None) -> None:
    """Leave the queries of the index-th captured layer behind for `launch`.

    query [tokens, H, D]; `tokens` [n] says where each row is in it (a prefill, which no graph holds), None: row i is
    token i. ValueError when they do not fit the buffers.
    """
    n = query.shape[0] if tokens is None else tokens.shape[0]
    _check_rows(buffers, n)
    if tuple(query.shape[1:]) != (buffers.shape.heads, buffers.shape.dim):
        raise ValueError(f"queries have shape {list(query.shape[1:])}, not that of the captured layers' heads")
    buffers.queries[index, :n].copy_(query if tokens is None else query[tokens])


def launch(
    buffers: Buffers,
    rows: Rows,
    *,
    tapped: bool = False,
    learned_sinks: bool = False,
    every_key: bool = False,
    block_n: int = 0,
    splits: int = 0,
) -> None:
    """Write the records of all captured layers for all rows whose control asks for them.

    Logits come from the kept queries and `buffers.keys`, or with `tapped` from `buffers.tap`. `learned_sinks`: the
    layers' sinks lie in `buffers.learned_sinks` and take part in the normaliser. `every_key`: the means of rows without
    links are complete too. `block_n`, `splits`: keys that a program takes at a time and parts that a row is cut into,
    0: what suits the source and the number of rows.
    """
    shape, n_layers = buffers.shape, len(buffers.layers)
    if tapped and buffers.tap is None:
        raise ValueError("logits can only be tapped into buffers with a tap_length")
    if not tapped and buffers.keys is None:
        raise ValueError("logits can only be computed from buffers that know the keys")
    _check_rows(buffers, rows.n)
    blank = buffers.partial
    keys = blank if tapped or buffers.keys is None else buffers.keys
    tap = blank if buffers.tap is None else buffers.tap
    means = blank if buffers.means is None else buffers.means
    places = blank if buffers.places is None else buffers.places
    # Stored logits know nothing of groups: any heads make a block.
    key_heads, group = (1, shape.heads) if tapped else (shape.key_heads, shape.group)
    block_h = _TAP_BLOCK_H if tapped else _BLOCK_H
    mean_block_h = min(32, triton.next_power_of_2(shape.heads)) if tapped else _BLOCK_H
    blocks_h = triton.cdiv(group, block_h)
    # With half the warps a wide key, or one of 32 bits, does not stay in registers (benchmarks/kernel_resources.py).
    warps = 8 if shape.dim > _BLOCK_D or keys.element_size() > 2 else 4
    warps = _TAP_WARPS if tapped else warps
    splits = splits or _splits(buffers.splits, rows.n * n_layers * key_heads * blocks_h)
    mean_splits = buffers.mean_splits
    layer_ints = buffers.prefill_layer_ints if rows.prefill else buffers.layer_ints
    source = (
        buffers.queries, keys, keys.stride(0), keys.stride(1), rows.slots,
        rows.pool if rows.starts is None else rows.starts, rows.slots.stride(0), tap, tap.stride(0), tap.stride(1),
        tap.stride(2), rows.pool, rows.lengths, buffers.control, buffers.layer_floats, layer_ints,
        places, places.stride(0), buffers.partial, buffers.rows, buffers.records,
    )  # fmt: skip
    how = {
        "HEADS": shape.heads, "GROUP": group, "D": shape.dim,
        "BLOCK_D": max(16, min(_BLOCK_D, triton.next_power_of_2(shape.dim))),
        "HAS_CAP": any(layer.logit_cap > 0 for layer in buffers.layers), "TAP": tapped,
        "FLAT": rows.starts is not None, "EVICTS": buffers.places is not None,
        # The interpreter multiplies the bits of a bf16 as if they were an integer.
        "WIDEN": bool(triton.knobs.runtime.interpret),
    }  # fmt: skip
    partial_kernel[(rows.n, n_layers * key_heads * blocks_h, splits)](
        *source, SPLITS=splits, BLOCK_H=block_h, BLOCKS_H=blocks_h,
        BLOCK_N=block_n or (_TAP_BLOCK_N if tapped else _BLOCK_N), STAGES=_TAP_STAGES if tapped else None,
        num_warps=warps, **how,
    )  # fmt: skip
    mean_kernel[(rows.n, n_layers, mean_splits)](
        *source, buffers.learned_sinks, means, means.stride(0), means.stride(1), buffers.candidates,
        HAS_SINKS=learned_sinks, HAS_MEANS=buffers.means is not None, EVERY=every_key, SPLITS=mean_splits,
        PARTIAL_SPLITS=splits, BLOCK_H=mean_block_h, BLOCKS_H=triton.cdiv(group, mean_block_h),
        num_warps=4 if tapped else 8, **how,
    )  # fmt: skip
    finish_kernel[(rows.n, n_layers)](
        rows.pool, rows.lengths, buffers.control, layer_ints, buffers.partial, buffers.rows,
        buffers.learned_sinks, buffers.candidates, buffers.records, blank if buffers.heads is None else buffers.heads,
        HEADS=shape.heads, HAS_SINKS=learned_sinks, HAS_HEADS=buffers.heads is not None, SPLITS=splits,
        MEAN_SPLITS=mean_splits,
        BLOCK_H=min(32, triton.next_power_of_2(shape.heads), max(1, _FINISHED_AT_ONCE // splits)),
    )  # fmt: skip


def splits_for(chunk: int) -> int:
    """The most parts a row is cut into so that one of 16,384 keys has parts of at most `chunk`; a power of two.

    The grid of a recorded launch cannot follow the length, so longer rows have longer parts.
    """
    return int(triton.next_power_of_2(triton.cdiv(_CHUNKED_LENGTH, chunk)))


def _check_rows(buffers: Buffers, n: int) -> None:
    if n > buffers.rows:
        raise ValueError(f"{n} rows do not fit into buffers of {buffers.rows}")


def _splits(most: int, programs: int) -> int:
    """Parts to cut a row into, a power of two of at most `most`, so that about _PROGRAMS programs start."""
    wanted: int = triton.next_power_of_2(triton.cdiv(_PROGRAMS, programs))
    return max(1, min(most, wanted))
