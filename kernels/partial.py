"""First launch of a step: each split of each head alone, by an online softmax; the twin is reference.row_statistics."""

from __future__ import annotations

import triton
import triton.language as tl

from geomcli.kernels.constants import (
    BINS,
    C_PROMPT_LEN,
    C_SINK_TOKENS,
    CONTROL_WORDS,
    P_HISTOGRAM,
    P_MAX,
    P_PREVIOUS,
    P_PROMPT,
    P_SELF,
    P_SINK,
    P_SUM,
    P_SURPRISE,
    PARTIAL_WORDS,
    PROFILE,
    R_PROFILE,
    RECORD_WORDS,
)
from geomcli.kernels.rows import (
    aligned,
    distance_bin,
    first_key,
    is_due,
    logits_tile,
    places_of,
    query_tile,
    text_length,
)


@triton.jit
def partial_kernel(
    queries, keys, stride_k_t, stride_k_h, slots, slot_starts, stride_slots, tapped, stride_a_l, stride_a_t, stride_a_h,
    pool, lengths, control_table, layer_floats, layer_ints, places, stride_places, partial, rows, records,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, HAS_CAP: tl.constexpr,
    TAP: tl.constexpr, WIDEN: tl.constexpr, FLAT: tl.constexpr, EVICTS: tl.constexpr,
    SPLITS: tl.constexpr, BLOCK_H: tl.constexpr, BLOCKS_H: tl.constexpr, BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    blocks: tl.constexpr = HEADS // GROUP * BLOCKS_H
    layer = (tl.program_id(1) // blocks).to(tl.int64)
    block = tl.program_id(1) % blocks
    split = tl.program_id(2)
    request = tl.load(pool + row).to(tl.int64)
    control = control_table + request * CONTROL_WORDS
    length = tl.load(lengths + row).to(tl.int32)
    text = text_length(control, length)
    if is_due(control, text, layer):
        own_places = places + request * stride_places
        key_head = block // BLOCKS_H
        in_group = block % BLOCKS_H * BLOCK_H + tl.arange(0, BLOCK_H)
        heads = key_head * GROUP + in_group
        head_mask = in_group < GROUP
        first = first_key(control, text, layer, layer_ints)
        n_sink = tl.load(control + C_SINK_TOKENS)
        prompt_len = tl.load(control + C_PROMPT_LEN)
        # A key stands no further back in the pool than keys have left before it.
        base = aligned(tl.maximum(first - (text - length), 0), TAP)
        per_split = tl.cdiv(tl.cdiv(length - base, SPLITS), BLOCK_N) * BLOCK_N
        begin = base + split * per_split
        end = tl.minimum(begin + per_split, length)
        # What the profile says of keys that have left, nobody else writes.
        if EVICTS and (block == 0) & (split == 0):
            profile = records + (layer * rows + row) * RECORD_WORDS + R_PROFILE + tl.arange(0, PROFILE)
            tl.store(profile, tl.zeros([PROFILE], tl.int32))
        slot_base = tl.load(slot_starts + row).to(tl.int64) if FLAT else request * stride_slots
        if TAP:
            q = tl.zeros([BLOCK_H, BLOCK_D], tl.float32)
        else:
            q = query_tile(queries, layer, row, rows, heads, head_mask, tl.arange(0, BLOCK_D), HEADS, D)
        top = tl.full([BLOCK_H], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_H], tl.float32)
        surprise = tl.zeros([BLOCK_H], tl.float32)
        sink = tl.zeros([BLOCK_H], tl.float32)
        previous = tl.zeros([BLOCK_H], tl.float32)
        own = tl.zeros([BLOCK_H], tl.float32)
        prompt = tl.zeros([BLOCK_H], tl.float32)
        columns = tl.arange(0, BINS)
        histogram = tl.zeros([BLOCK_H, BINS], tl.float32)
        for start in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
            positions = start + tl.arange(0, BLOCK_N)
            key_mask = positions < end
            at = places_of(control, own_places, positions, EVICTS)
            if TAP or EVICTS:
                key_mask = key_mask & (at >= first)
            newest_at = places_of(control, own_places, tl.minimum(start + BLOCK_N, end) - 1, EVICTS)
            oldest_at = places_of(control, own_places, start, EVICTS)
            s = logits_tile(
                q, queries, rows, keys, stride_k_t, stride_k_h, key_head, slots, slot_base, tapped, stride_a_l,
                stride_a_t, stride_a_h, row, layer, heads, head_mask, positions, key_mask, layer_floats, layer_ints,
                HEADS, D, BLOCK_D, HAS_CAP, TAP, WIDEN,
            )  # fmt: skip
            # Rows of padding heads are all -inf; a finite maximum keeps them free of nan.
            new_top = tl.maximum(tl.maximum(top, tl.max(s, axis=1)), -3.0e38)
            shrink = tl.exp(top - new_top)
            centred = s - new_top[:, None]
            p = tl.exp(centred)
            mass = tl.sum(p, axis=1)
            surprise = shrink * (surprise + tl.where(total > 0, total * (top - new_top), 0.0))
            surprise += tl.sum(tl.where(p > 0, p * centred, 0.0), axis=1)
            total = total * shrink + mass
            sink = sink * shrink
            prompt = prompt * shrink
            own = own * shrink
            previous = previous * shrink
            histogram = histogram * shrink[:, None]
            # A sum over a tile is dear. Most tiles hold neither a sink nor the newest keys, and lie in one distance bin
            # and on one side of the prompt's end, so the tile's own mass serves.
            if start < n_sink:
                sink += tl.sum(tl.where(at[None, :] < n_sink, p, 0.0), axis=1)
            if start + BLOCK_N > length - 2:
                own += tl.sum(tl.where(positions[None, :] == length - 1, p, 0.0), axis=1)
                previous += tl.sum(tl.where(positions[None, :] == length - 2, p, 0.0), axis=1)
            if newest_at < prompt_len:
                prompt += mass
            elif oldest_at < prompt_len:
                prompt += tl.sum(tl.where(at[None, :] < prompt_len, p, 0.0), axis=1)
            nearest = distance_bin(text - 1 - newest_at)
            farthest = distance_bin(text - 1 - oldest_at)
            if (oldest_at >= n_sink) & (nearest == farthest):
                histogram += tl.where(columns[None, :] == farthest, mass[:, None], 0.0)
            else:
                bins = tl.where(key_mask & (at >= n_sink), distance_bin(text - 1 - at), -1)
                for b in range(nearest, farthest + 1):
                    part = tl.sum(tl.where(bins[None, :] == b, p, 0.0), axis=1)
                    histogram += tl.where(columns[None, :] == b, part[:, None], 0.0)
            top = new_top
        out = partial + (((layer * rows + row) * HEADS + heads) * SPLITS + split) * PARTIAL_WORDS
        tl.store(out + P_MAX, top, mask=head_mask)
        tl.store(out + P_SUM, total, mask=head_mask)
        tl.store(out + P_SURPRISE, surprise, mask=head_mask)
        tl.store(out + P_SINK, sink, mask=head_mask)
        tl.store(out + P_PREVIOUS, previous, mask=head_mask)
        tl.store(out + P_SELF, own, mask=head_mask)
        tl.store(out + P_PROMPT, prompt, mask=head_mask)
        tl.store(out[:, None] + P_HISTOGRAM + columns[None, :], histogram, mask=head_mask[:, None])
