"""Content and position scores of the links in a step's records; the twin is derotation.link_scores.

Launched behind a step, outside its CUDA graph, for the rows that ask: nobody else's step has a launch more. It reads
the finished records, the kept queries, and of the keys only those that a link points to. Allocates, but does not wait.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from geomcli.kernels.buffers import Buffers
from geomcli.kernels.constants import (
    C_STAMP,
    CONTROL_WORDS,
    D_CONTENT,
    D_POSITION,
    D_WEIGHT,
    DEROTATED_WORDS,
    H_LSE,
    HEAD_WORDS,
    KEEP,
    L_KEYS,
    L_SCALE,
    LAYER_WORDS,
    R_LENGTH,
    R_LINKS,
    R_POSITIONS,
    R_STAMP,
)
from geomcli.kernels.derotation import Rope
from geomcli.kernels.layout import DEROTATED_WORDS as _WORDS
from geomcli.kernels.rows import query_tile, selected, soft_capped

_BLOCK_H = 16  # the least that a tensor core takes
_BLOCK_K = 16  # links of a program: few enough for wide heads, and one program's for the default top-k
_WARPS = 8


@triton.jit
def key_tile(at, columns, mask, there):
    """Of the keys that begin at `at` [n] some columns: [columns, n] in float32."""
    return tl.load(at[None, :] + columns[:, None], mask=mask[:, None] & there[None, :], other=0.0).to(tl.float32)


@triton.jit
def exact_product(q, k):
    return tl.dot(q.to(tl.float32), k, input_precision="ieee")


@triton.jit(do_not_specialize=["stride_r_l", "asked"])
def derotation_kernel(
    queries, keys, stride_k_t, stride_k_h, slots, stride_slots, table, stride_c, places, chosen, pool, control_table,
    layer_floats, layer_ints, per_head, rows, records, stride_r_l, stride_r_t, out, asked,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr, INTERLEAVED: tl.constexpr, HAS_CAP: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCKS_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Heads come one block after the other; their weights are an online softmax over heads of s - LSE = log p."""
    number = tl.program_id(0)
    layer = tl.load(places + tl.program_id(1)).to(tl.int64)
    row = tl.load(chosen + number).to(tl.int64)
    request = tl.load(pool + row).to(tl.int64)
    control = control_table + request * CONTROL_WORDS
    record = records + layer * stride_r_l + row * stride_r_t
    rank = tl.program_id(2) * BLOCK_K + tl.arange(0, BLOCK_K)
    links = tl.where(tl.load(record + R_STAMP) == tl.load(control + C_STAMP), tl.load(record + R_LINKS), 0)
    if tl.program_id(2) * BLOCK_K < links:
        there = rank < links
        at_query = tl.load(record + R_LENGTH) - 1
        positions = tl.load(record + R_POSITIONS + rank, mask=there, other=0)
        slot = tl.load(slots + request * stride_slots + positions, mask=there, other=0).to(tl.int64)
        first_key = keys + tl.multiple_of(tl.load(layer_ints + layer * LAYER_WORDS + L_KEYS), 16) + slot * stride_k_t
        scale = tl.load(layer_floats + layer * LAYER_WORDS + L_SCALE)

        pairs = tl.arange(0, BLOCK_HALF)
        known = pairs < HALF
        if INTERLEAVED:
            one, two = 2 * pairs, 2 * pairs + 1
        else:
            one, two = pairs, pairs + HALF
        q_cos = tl.load(table + at_query * stride_c + pairs, mask=known, other=1.0).to(tl.float32)
        q_sin = tl.load(table + at_query * stride_c + HALF + pairs, mask=known, other=0.0).to(tl.float32)
        # A table may carry a factor (YaRN), and in 16 bits it is not quite on the unit circle.
        q_length = tl.rsqrt(q_cos * q_cos + q_sin * q_sin)
        q_cos, q_sin = (q_cos * q_length)[None, :], (q_sin * q_length)[None, :]
        at_keys = table + positions[None, :] * stride_c + pairs[:, None]
        wanted_keys = known[:, None] & there[None, :]
        k_cos = tl.load(at_keys, mask=wanted_keys, other=1.0).to(tl.float32)
        k_sin = tl.load(at_keys + HALF, mask=wanted_keys, other=0.0).to(tl.float32)
        k_length = tl.rsqrt(k_cos * k_cos + k_sin * k_sin)
        k_cos, k_sin = k_cos * k_length, k_sin * k_length

        top = tl.full([BLOCK_K], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_K], tl.float32)
        content = tl.zeros([BLOCK_K], tl.float32)
        position = tl.zeros([BLOCK_K], tl.float32)
        for block in range(HEADS // GROUP * BLOCKS_H):
            key_head = block // BLOCKS_H
            in_group = block % BLOCKS_H * BLOCK_H + tl.arange(0, BLOCK_H)
            heads = key_head * GROUP + in_group
            wanted = (in_group < GROUP) & selected(control, heads, HEADS)
            key = first_key + key_head * stride_k_h
            # Columns beyond the pairs would be read from the part that passes, where they do not belong.
            q_one = query_tile(queries, layer, row, rows, heads, wanted, tl.where(known, one, D), HEADS, D)
            q_two = query_tile(queries, layer, row, rows, heads, wanted, tl.where(known, two, D), HEADS, D)
            q_one, q_two = q_one.to(tl.float32), q_two.to(tl.float32)
            k_one, k_two = key_tile(key, one, known, there), key_tile(key, two, known, there)
            s = exact_product(q_one, k_one) + exact_product(q_two, k_two)
            c = exact_product(q_one * q_cos + q_two * q_sin, k_one * k_cos + k_two * k_sin)
            c += exact_product(q_two * q_cos - q_one * q_sin, k_two * k_cos - k_one * k_sin)
            if BLOCK_REST > 0:
                rest = 2 * HALF + tl.arange(0, BLOCK_REST)
                q_rest = query_tile(queries, layer, row, rows, heads, wanted, rest, HEADS, D)
                passed = exact_product(q_rest, key_tile(key, rest, rest < D, there))
                s += passed
                c += passed
            s, c = s * scale, c * scale
            if HAS_CAP:
                s, c = soft_capped(s, layer, layer_floats), soft_capped(c, layer, layer_floats)
            of_heads = per_head + ((layer * rows + row) * HEADS + heads) * HEAD_WORDS
            lse = tl.load(of_heads + H_LSE, mask=wanted, other=0.0)
            log_p = tl.where(wanted[:, None] & there[None, :], s - lse[:, None], float("-inf"))
            new_top = tl.maximum(tl.maximum(top, tl.max(log_p, axis=0)), -3.0e38)
            shrink = tl.exp(top - new_top)
            weight = tl.exp(log_p - new_top[None, :])
            total = total * shrink + tl.sum(weight, axis=0)
            content = content * shrink + tl.sum(weight * c, axis=0)
            position = position * shrink + tl.sum(weight * (s - c), axis=0)
            top = new_top
        some = tl.where(total > 0, total, 1.0)
        at = out + (layer * asked + number) * DEROTATED_WORDS * KEEP + rank
        tl.store(at + D_CONTENT * KEEP, content / some)
        tl.store(at + D_POSITION * KEEP, position / some)
        tl.store(at + D_WEIGHT * KEEP, tl.where(total > 0, top + tl.log(some), float("-inf")))


def launch(
    buffers: Buffers,
    records: torch.Tensor,
    *,
    ropes: list[tuple[Rope, torch.Tensor]],
    chosen: torch.Tensor,
    pool: torch.Tensor,
    slots: torch.Tensor,
) -> torch.Tensor:
    """Scores of the links in records [layers, n, words]: float32 [layers, m, 3, KEEP], for the rows chosen [m].

    The three are content, position, and the logarithm of the summed p of this rank's heads; content and position are 0
    where there is no link, or none of the request's heads on this rank. `ropes`: each embedding with the places (int64,
    on the device) of the layers that it rotates. pool [n] and slots [pool_rows, max_length] as in probe.Rows. The
    queries of all layers must have been kept. ValueError for buffers without per-head export or keys.
    """
    if buffers.heads is None or buffers.keys is None:
        raise ValueError("links can only be de-rotated in buffers with per-head export that know the keys")
    shape, keys, m = buffers.shape, buffers.keys, chosen.shape[0]
    out = torch.zeros(len(buffers.layers), m, _WORDS, KEEP.value, device=records.device)
    for rope, places in ropes:
        half, rest = rope.dim // 2, shape.dim - rope.dim
        derotation_kernel[(m, places.shape[0], KEEP.value // _BLOCK_K)](
            buffers.queries, keys, keys.stride(0), keys.stride(1), slots, slots.stride(0), rope.table,
            rope.table.stride(0), places, chosen, pool, buffers.control, buffers.layer_floats, buffers.layer_ints,
            buffers.heads, buffers.rows, records, records.stride(0), records.stride(1), out, m,
            HEADS=shape.heads, GROUP=shape.group, D=shape.dim, HALF=half,
            BLOCK_HALF=max(16, triton.next_power_of_2(half)),
            BLOCK_REST=max(16, triton.next_power_of_2(rest)) if rest else 0,
            INTERLEAVED=rope.interleaved, HAS_CAP=any(layer.logit_cap > 0 for layer in buffers.layers),
            BLOCK_H=_BLOCK_H, BLOCKS_H=triton.cdiv(shape.group, _BLOCK_H), BLOCK_K=_BLOCK_K,
            num_warps=_WARPS,
        )  # fmt: skip
    return out
