"""What the capture kernels share: which rows are due, where their logits come from, how splits come together.

A step has three launches, whatever the number of captured layers, all over a grid that its CUDA graph can replay:

  partial  (row, layer and heads, split)  K or stored logits -> per-head sums of a split, online softmax
  mean     (row, layer, split)            the same once more, now with the row's LSE -> head-mean probabilities, links
  finish   (row, layer)                   splits together -> the record

Rows whose control says no leave at once. Logits come from one of two sources: PROBE computes them from the paged keys
and the queries that each layer left behind, TAP reads those that the engine's own kernel stored.
"""

from __future__ import annotations

import triton
import triton.language as tl

from geomcli.kernels.constants import (
    ALIGNMENT,
    C_ENABLED,
    C_GONE,
    C_HEADS,
    C_KEPT,
    C_LAYERS,
    C_LIMIT,
    C_MASK_PREFIX,
    C_PROMPT_LEN,
    C_STRIDE,
    C_WINDOW,
    L_CAP,
    L_KEYS,
    L_SCALE,
    L_WINDOW,
    LAYER_WORDS,
    P_MAX,
    P_SUM,
    PARTIAL_WORDS,
)


@triton.jit
def is_due(control, length, layer):
    """Whether this step and layer of the row are captured; length: of its text."""
    index = length - tl.load(control + C_PROMPT_LEN)
    stride = tl.maximum(tl.load(control + C_STRIDE), 1)
    limit = tl.load(control + C_LIMIT)
    due = (tl.load(control + C_ENABLED) != 0) & (index >= 0) & (index % stride == 0)
    due = due & ((limit == 0) | (index // stride < limit))
    return due & ((tl.load(control + C_LAYERS) >> layer & 1) != 0)


@triton.jit
def first_key(control, length, layer, layer_ints):
    """First place that counts in a text: behind the mask, inside the request's and the layer's window."""
    first = tl.load(control + C_MASK_PREFIX)
    window = tl.load(control + C_WINDOW)
    first = tl.where(window > 0, tl.maximum(first, length - window), first)
    sliding = tl.load(layer_ints + layer * LAYER_WORDS + L_WINDOW).to(tl.int32)
    first = tl.where(sliding > -1, tl.maximum(first, length - 1 - sliding), first)
    return tl.minimum(first, length)


@triton.jit
def text_length(control, length):
    """Of the text that a row of this many keys belongs to."""
    return length + tl.load(control + C_GONE)


@triton.jit
def places_of(control, places, at, EVICTS: tl.constexpr):
    """Where in the text the keys `at` of a row stand; places: the row's own list of those that others have left."""
    if EVICTS:
        kept = tl.load(control + C_KEPT)
        listed = tl.load(places + at, mask=at < kept, other=0)
        at = tl.where(at < kept, listed, at + tl.load(control + C_GONE))
    return at


@triton.jit
def aligned(first, TAP: tl.constexpr):
    """Where a walk over the keys begins: stored logits are read in wide loads, which start at multiples of 16."""
    if TAP:
        first = first // ALIGNMENT * ALIGNMENT
    return first


@triton.jit
def selected(control, heads, HEADS: tl.constexpr):
    word = tl.load(control + C_HEADS + heads // 32, mask=heads < HEADS, other=0)
    return (word >> (heads % 32) & 1) != 0


@triton.jit
def distance_bin(distance):
    """floor(log2(distance)), 0 for distance 0, at most 15: by comparing, since a float log2 would miss exact powers."""
    bins = distance * 0
    for b in tl.static_range(1, 16):
        bins += (distance >= (1 << b)).to(tl.int32)
    return bins


@triton.jit
def query_tile(queries, layer, row, rows, heads, head_mask, columns, HEADS: tl.constexpr, D: tl.constexpr):
    """Of queries [layers, rows, HEADS, D] the columns [n] of some heads: [heads, n]."""
    at = queries + ((layer * rows + row) * HEADS + heads[:, None]) * D + columns[None, :]
    return tl.load(at, mask=head_mask[:, None] & (columns[None, :] < D), other=0.0)


@triton.jit
def product(q, k, WIDEN: tl.constexpr):
    """In the query's type: bf16 and fp16 stay on the tensor cores, fp8 keys are widened to it."""
    if WIDEN:
        return tl.dot(q.to(tl.float32), k.to(tl.float32), input_precision="ieee")
    return tl.dot(q, k.to(q.dtype), input_precision="ieee")


@triton.jit
def soft_capped(s, layer, layer_floats):
    """Logits through the layer's tanh; a layer without a cap has 0."""
    cap = tl.load(layer_floats + layer * LAYER_WORDS + L_CAP)
    # tanh by exp(-2|x|), which cannot overflow.
    x = s / tl.where(cap > 0, cap, 1.0)
    e = tl.exp(-2 * tl.abs(x))
    return tl.where(cap > 0, cap * tl.where(x < 0, -1.0, 1.0) * (1 - e) / (1 + e), s)


@triton.jit
def logits_tile(
    q_first, queries, rows, keys, stride_k_t, stride_k_h, key_head, slots, slot_base, tapped, stride_a_l, stride_a_t,
    stride_a_h, row, layer, heads, head_mask, positions, key_mask, layer_floats, layer_ints, HEADS: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, HAS_CAP: tl.constexpr, TAP: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Logits [heads, keys] in float32; what is outside the masks is -inf. `q_first` holds the first BLOCK_D columns."""
    mask = head_mask[:, None] & key_mask[None, :]
    if TAP:
        # A mask would keep these loads from being wide; what lies beyond a row is memory of the buffer too.
        known = tl.minimum(heads, HEADS - 1)
        s = tl.load(tapped + layer * stride_a_l + row * stride_a_t + known[:, None] * stride_a_h + positions[None, :])
    else:
        slot = tl.load(slots + slot_base + positions, mask=key_mask, other=0).to(tl.int64)
        # Each layer has a key tensor of its own; the distance to the first one's is a multiple of a 16-byte load.
        base = keys + tl.multiple_of(tl.load(layer_ints + layer * LAYER_WORDS + L_KEYS), 16)
        at = base + slot[None, :] * stride_k_t + key_head * stride_k_h
        columns = tl.arange(0, BLOCK_D)
        k = tl.load(at + columns[:, None], mask=(columns[:, None] < D) & key_mask[None, :], other=0.0)
        s = product(q_first, k, WIDEN)
        # A latent key is wide: piece by piece it stays in registers.
        for start in tl.range(BLOCK_D, D, BLOCK_D, num_stages=1):
            columns = start + tl.arange(0, BLOCK_D)
            q = query_tile(queries, layer, row, rows, heads, head_mask, columns, HEADS, D)
            k = tl.load(at + columns[:, None], mask=(columns[:, None] < D) & key_mask[None, :], other=0.0)
            s += product(q, k, WIDEN)
        s = s * tl.load(layer_floats + layer * LAYER_WORDS + L_SCALE)
        if HAS_CAP:
            s = soft_capped(s, layer, layer_floats)
    return tl.where(mask, s, float("-inf"))


@triton.jit
def merged(partial, learned_sinks, layer, row, rows, heads, head_mask, HEADS: tl.constexpr, SPLITS: tl.constexpr,
           HAS_SINKS: tl.constexpr):  # fmt: skip
    """(maximum, sum) [heads] of whole rows; the logsumexp is maximum + log(sum)."""
    first = ((layer * rows + row) * HEADS + heads[:, None]) * SPLITS
    at = partial + (first + tl.arange(0, SPLITS)[None, :]) * PARTIAL_WORDS
    tops = tl.load(at + P_MAX, mask=head_mask[:, None], other=float("-inf"))
    sums = tl.load(at + P_SUM, mask=head_mask[:, None], other=0.0)
    top = tl.max(tops, axis=1)
    if HAS_SINKS:
        learned = tl.load(learned_sinks + layer * HEADS + heads, mask=head_mask, other=float("-inf"))
        top = tl.maximum(tl.maximum(top, learned), -3.0e38)
        return top, tl.sum(sums * tl.exp(tops - top[:, None]), axis=1) + tl.exp(learned - top)
    top = tl.maximum(top, -3.0e38)
    return top, tl.sum(sums * tl.exp(tops - top[:, None]), axis=1)
