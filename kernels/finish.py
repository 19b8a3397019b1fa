"""Second and third launch of a step: head-mean probabilities and links, then the record; see rows.py.

The twin is reference.row_statistics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from geomcli.kernels.constants import (
    BINS,
    C_SINK_TOKENS,
    C_STAMP,
    C_TOP_K,
    CONTROL_WORDS,
    H_ENTROPY,
    H_GENERATED,
    H_LSE,
    H_PREVIOUS,
    H_PROMPT,
    H_SELF,
    H_SINK,
    HEAD_WORDS,
    KEEP,
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
    R_ENTROPY,
    R_HEADS,
    R_HISTOGRAM,
    R_KEPT,
    R_LENGTH,
    R_LINKS,
    R_LSE,
    R_POSITIONS,
    R_PROBABILITIES,
    R_PROFILE,
    R_SINK,
    R_STAMP,
    RECORD_WORDS,
)
from geomcli.kernels.rows import (
    aligned,
    first_key,
    is_due,
    logits_tile,
    merged,
    places_of,
    query_tile,
    selected,
    text_length,
)


@triton.jit
def ranked(probability, positions, valid):
    """A 64-bit key whose order is that of the probability, earlier positions first among equals; -1 where invalid."""
    bits = probability.to(tl.int32, bitcast=True).to(tl.int64)
    return tl.where(valid, (bits << 32) | (0x7FFFFFFF - positions).to(tl.int64), -1)


@triton.jit
def strongest(kept, fresh):
    """The largest of two lists of KEEP ranked links, descending."""
    both = tl.sort(tl.cat(kept, fresh, can_reorder=True), descending=True)
    return tl.max(tl.where(tl.arange(0, 2)[:, None] == 0, tl.reshape(both, [2, KEEP]), -1), axis=0)


@triton.jit
def mean_kernel(
    queries, keys, stride_k_t, stride_k_h, slots, slot_starts, stride_slots, tapped, stride_a_l, stride_a_t, stride_a_h,
    pool, lengths, control_table, layer_floats, layer_ints, places, stride_places, partial, rows, records,
    learned_sinks, means, stride_m_l, stride_m_t, candidates,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, HAS_CAP: tl.constexpr,
    TAP: tl.constexpr, WIDEN: tl.constexpr, FLAT: tl.constexpr, EVICTS: tl.constexpr,
    HAS_SINKS: tl.constexpr, HAS_MEANS: tl.constexpr, EVERY: tl.constexpr, SPLITS: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCKS_H: tl.constexpr, PARTIAL_SPLITS: tl.constexpr,
):  # fmt: skip
    """Visits every key of rows that ask for links, and with EVERY of all rows; else the last ones, for the profile."""
    row = tl.program_id(0).to(tl.int64)
    layer = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    request = tl.load(pool + row).to(tl.int64)
    control = control_table + request * CONTROL_WORDS
    length = tl.load(lengths + row).to(tl.int32)
    text = text_length(control, length)
    if is_due(control, text, layer):
        own_places = places + request * stride_places
        first = first_key(control, text, layer, layer_ints)
        n_sink = tl.load(control + C_SINK_TOKENS)
        top_k = tl.load(control + C_TOP_K)
        visit_all = EVERY or top_k > 0
        begin_at = tl.maximum(first - (text - length), 0)
        base = aligned(tl.where(visit_all, begin_at, tl.maximum(begin_at, length - PROFILE)), TAP)
        per_split = tl.cdiv(tl.cdiv(length - base, SPLITS), KEEP) * KEEP
        begin = base + split * per_split
        end = tl.minimum(begin + per_split, length)
        slot_base = tl.load(slot_starts + row).to(tl.int64) if FLAT else request * stride_slots
        record = records + (layer * rows + row) * RECORD_WORDS
        kept = tl.full([KEEP], -1, tl.int64)
        for start in range(begin, end, KEEP):
            positions = start + tl.arange(0, KEEP)
            key_mask = positions < end
            at_text = places_of(control, own_places, positions, EVICTS)
            if TAP or EVICTS:
                key_mask = key_mask & (at_text >= first)
            mean = tl.zeros([KEEP], tl.float32)
            count = tl.zeros([1], tl.int32)
            for block in range(HEADS // GROUP * BLOCKS_H):
                key_head = block // BLOCKS_H
                in_group = block % BLOCKS_H * BLOCK_H + tl.arange(0, BLOCK_H)
                heads = key_head * GROUP + in_group
                wanted = (in_group < GROUP) & selected(control, heads, HEADS)
                if TAP:
                    q = tl.zeros([BLOCK_H, BLOCK_D], tl.float32)
                else:
                    q = query_tile(queries, layer, row, rows, heads, wanted, tl.arange(0, BLOCK_D), HEADS, D)
                s = logits_tile(
                    q, queries, rows, keys, stride_k_t, stride_k_h, key_head, slots, slot_base, tapped, stride_a_l,
                    stride_a_t, stride_a_h, row, layer, heads, wanted, positions, key_mask, layer_floats, layer_ints,
                    HEADS, D, BLOCK_D, HAS_CAP, TAP, WIDEN,
                )  # fmt: skip
                top, total = merged(
                    partial, learned_sinks, layer, row, rows, heads, wanted, HEADS, PARTIAL_SPLITS, HAS_SINKS
                )
                p = tl.where(wanted[:, None], tl.exp(s - top[:, None]) / total[:, None], 0.0)
                mean += tl.sum(p, axis=0)
                count += tl.sum(wanted.to(tl.int32), axis=0)
            # A rank of several may hold none of the heads that the request selected.
            mean = mean / tl.maximum(count, 1).to(tl.float32)
            if HAS_MEANS:
                tl.store(means + layer * stride_m_l + row * stride_m_t + positions, mean, mask=key_mask)
            distance = text - 1 - at_text
            tl.store(
                record + R_PROFILE + distance,
                tl.where(at_text >= n_sink, mean, 0.0).to(tl.int32, bitcast=True),
                mask=key_mask & (distance < PROFILE),
            )
            if top_k > 0:
                fresh = ranked(mean, at_text, key_mask)
                if tl.max(fresh, axis=0) > tl.min(kept, axis=0):
                    kept = strongest(kept, fresh)
        at = candidates + ((layer * rows + row) * SPLITS + split) * KEEP
        tl.store(at + tl.arange(0, KEEP), kept)


@triton.jit
def finish_kernel(
    pool, lengths, control_table, layer_ints, partial, rows, learned_sinks, candidates, records, per_head,
    HEADS: tl.constexpr, HAS_SINKS: tl.constexpr, HAS_HEADS: tl.constexpr, SPLITS: tl.constexpr,
    MEAN_SPLITS: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    layer = tl.program_id(1).to(tl.int64)
    request = tl.load(pool + row).to(tl.int64)
    control = control_table + request * CONTROL_WORDS
    length = tl.load(lengths + row).to(tl.int32)
    text = text_length(control, length)
    if is_due(control, text, layer):
        record = records + (layer * rows + row) * RECORD_WORDS
        first = first_key(control, text, layer, layer_ints)
        columns = tl.arange(0, BINS)
        splits = tl.arange(0, SPLITS)
        histogram = tl.zeros([BINS], tl.float32)
        count = 0
        lse = 0.0
        entropy = 0.0
        sink = 0.0
        for start in range(0, HEADS, BLOCK_H):
            heads = start + tl.arange(0, BLOCK_H)
            head_mask = heads < HEADS
            wanted = head_mask & selected(control, heads, HEADS)
            top, total = merged(partial, learned_sinks, layer, row, rows, heads, head_mask, HEADS, SPLITS, HAS_SINKS)
            # All splits of all heads at once: one after the other, their loads would wait for each other.
            at = partial + (((layer * rows + row) * HEADS + heads[:, None]) * SPLITS + splits[None, :]) * PARTIAL_WORDS
            there = head_mask[:, None]
            local_top = tl.load(at + P_MAX, mask=there, other=float("-inf"))
            local_sum = tl.load(at + P_SUM, mask=there, other=0.0)
            weight = tl.where(local_sum > 0, tl.exp(local_top - top[:, None]) / total[:, None], 0.0)
            shift = tl.where(local_sum > 0, local_top - top[:, None], 0.0)
            surprise = tl.sum(weight * (tl.load(at + P_SURPRISE, mask=there, other=0.0) + shift * local_sum), axis=1)
            mass = tl.sum(weight * local_sum, axis=1)
            h_sink = tl.sum(weight * tl.load(at + P_SINK, mask=there, other=0.0), axis=1)
            h_previous = tl.sum(weight * tl.load(at + P_PREVIOUS, mask=there, other=0.0), axis=1)
            h_own = tl.sum(weight * tl.load(at + P_SELF, mask=there, other=0.0), axis=1)
            h_prompt = tl.sum(weight * tl.load(at + P_PROMPT, mask=there, other=0.0), axis=1)
            flat = tl.reshape(at, [BLOCK_H * SPLITS])
            counted = tl.reshape(tl.where(wanted[:, None], weight, 0.0), [BLOCK_H * SPLITS])
            known = tl.reshape(tl.broadcast_to(there, [BLOCK_H, SPLITS]), [BLOCK_H * SPLITS])
            local = tl.load(flat[:, None] + P_HISTOGRAM + columns[None, :], mask=known[:, None], other=0.0)
            histogram += tl.sum(counted[:, None] * local, axis=0)
            # H = sum p (LSE - s) with s = top + centred: exact also when a learned sink takes part of the mass.
            log_total = tl.where(total > 0, tl.log(tl.where(total > 0, total, 1.0)), 0.0)
            h_lse = tl.where((total > 0) & (text > first), top + log_total, 0.0)
            h_entropy = tl.maximum(log_total * mass - surprise, 0.0)
            count += tl.sum(wanted.to(tl.int32), axis=0)
            lse += tl.sum(tl.where(wanted, h_lse, 0.0), axis=0)
            entropy += tl.sum(tl.where(wanted, h_entropy, 0.0), axis=0)
            sink += tl.sum(tl.where(wanted, h_sink, 0.0), axis=0)
            if HAS_HEADS:
                out = per_head + ((layer * rows + row) * HEADS + heads) * HEAD_WORDS
                tl.store(out + H_LSE, h_lse, mask=head_mask)
                tl.store(out + H_ENTROPY, h_entropy, mask=head_mask)
                tl.store(out + H_SINK, h_sink, mask=head_mask)
                tl.store(out + H_PREVIOUS, h_previous, mask=head_mask)
                tl.store(out + H_SELF, h_own, mask=head_mask)
                tl.store(out + H_PROMPT, h_prompt, mask=head_mask)
                tl.store(out + H_GENERATED, mass - h_prompt, mask=head_mask)
        n = tl.maximum(count, 1).to(tl.float32)
        tl.store(record + R_HISTOGRAM + columns, (histogram / n).to(tl.int32, bitcast=True))
        tl.store(record + R_LSE, (lse / n).to(tl.int32, bitcast=True))
        tl.store(record + R_ENTROPY, (entropy / n).to(tl.int32, bitcast=True))
        tl.store(record + R_SINK, (sink / n).to(tl.int32, bitcast=True))
        distances = tl.arange(0, PROFILE)
        tl.store(record + R_PROFILE + distances, 0, mask=distances >= text - first)
        top_k = tl.load(control + C_TOP_K)
        links = 0
        if top_k > 0:
            at = candidates + (layer * rows + row) * MEAN_SPLITS * KEEP
            every = tl.load(at + tl.arange(0, MEAN_SPLITS * KEEP))
            grid = tl.reshape(tl.sort(every, descending=True), [MEAN_SPLITS, KEEP])
            best = tl.max(tl.where(tl.arange(0, MEAN_SPLITS)[:, None] == 0, grid, -1), axis=0)
            rank = tl.arange(0, KEEP)
            found = (best >= 0) & (rank < top_k)
            tl.store(record + R_POSITIONS + rank, (0x7FFFFFFF - (best & 0x7FFFFFFF)).to(tl.int32), mask=found)
            tl.store(record + R_PROBABILITIES + rank, (best >> 32).to(tl.int32), mask=found)
            links = tl.sum(found.to(tl.int32), axis=0)
        tl.store(record + R_LINKS, links)
        tl.store(record + R_HEADS, count)
        tl.store(record + R_LENGTH, text)
        tl.store(record + R_KEPT, length)
        tl.store(record + R_STAMP, tl.load(control + C_STAMP))
