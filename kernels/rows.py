"""Triton kernels that turn the attention of one query row into a record; the twin is reference.row_statistics.

Three launches for each captured layer, all over a fixed grid, so that a CUDA graph can replay them:

  partial  (row, key head, split)  K or stored logits -> per-head sums of a split, online softmax
  mean     (row, split)            the same once more, now with the whole row's LSE -> head-mean probabilities, links
  finish   (row)                   splits together -> the record

`mean` visits every key only for rows that ask for links or column sums, otherwise the last 256 for the profile. Rows
whose control says no leave at once. Logits come from one of two sources: PROBE computes them from the paged keys, TAP
reads those that the engine's own kernel stored.
"""

from __future__ import annotations

import triton
import triton.language as tl

from geomcli.kernels.layout import (
    BINS,
    C_ENABLED,
    C_HEADS,
    C_LAYERS,
    C_LIMIT,
    C_MASK_PREFIX,
    C_PROMPT_LEN,
    C_SINK_TOKENS,
    C_STAMP,
    C_STRIDE,
    C_TOP_K,
    C_WINDOW,
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


@triton.jit
def is_due(control, length, layer_bit):
    """Whether this step and layer of the row are captured."""
    index = length - tl.load(control + C_PROMPT_LEN)
    stride = tl.maximum(tl.load(control + C_STRIDE), 1)
    limit = tl.load(control + C_LIMIT)
    due = (tl.load(control + C_ENABLED) != 0) & (index >= 0) & (index % stride == 0)
    due = due & ((limit == 0) | (index // stride < limit))
    return due & ((tl.load(control + C_LAYERS) >> layer_bit & 1) != 0)


@triton.jit
def first_key(control, length, sliding_window):
    """First position that counts: behind the mask, inside the request's and the layer's window."""
    first = tl.load(control + C_MASK_PREFIX)
    window = tl.load(control + C_WINDOW)
    first = tl.where(window > 0, tl.maximum(first, length - window), first)
    first = tl.where(sliding_window > -1, tl.maximum(first, length - 1 - sliding_window), first)
    return tl.minimum(first, length)


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
def query_tile(q, stride_q_t, stride_q_h, token, heads, head_mask, D: tl.constexpr, D_MAIN: tl.constexpr,
               D_TAIL: tl.constexpr):  # fmt: skip
    main = tl.arange(0, D_MAIN)
    at = q + token * stride_q_t + heads[:, None] * stride_q_h
    tile = tl.load(at + main[None, :], mask=head_mask[:, None], other=0.0)
    tail = tl.load(
        at + D_MAIN + tl.arange(0, D_TAIL)[None, :],
        mask=head_mask[:, None] & (D_MAIN + tl.arange(0, D_TAIL)[None, :] < D),
        other=0.0,
    )
    return tile, tail


@triton.jit
def logits_tile(
    q_main, q_tail, k, stride_k_t, stride_k_h, key_head, slots, slot_base, tapped, stride_a_t, stride_a_h, row, heads,
    head_mask, positions, key_mask, scale, cap, D: tl.constexpr, D_MAIN: tl.constexpr, D_TAIL: tl.constexpr,
    HAS_TAIL: tl.constexpr, HAS_CAP: tl.constexpr, TAP: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Logits [heads, keys] in float32; what is outside the masks is -inf."""
    mask = head_mask[:, None] & key_mask[None, :]
    if TAP:
        at = tapped + row * stride_a_t + heads[:, None] * stride_a_h + positions[None, :]
        s = tl.load(at, mask=mask, other=float("-inf"))
    else:
        slot = tl.load(slots + slot_base + positions, mask=key_mask, other=0).to(tl.int64)
        at = k + slot[None, :] * stride_k_t + key_head * stride_k_h
        main = tl.arange(0, D_MAIN)
        keys = tl.load(at + main[:, None], mask=key_mask[None, :], other=0.0)
        # In the query's type: bf16 and fp16 stay on the tensor cores, fp8 keys are widened to it.
        if WIDEN:
            s = tl.dot(q_main.to(tl.float32), keys.to(tl.float32), input_precision="ieee")
        else:
            s = tl.dot(q_main, keys.to(q_main.dtype), input_precision="ieee")
        if HAS_TAIL:
            tail = D_MAIN + tl.arange(0, D_TAIL)
            rest = tl.load(at + tail[:, None], mask=(tail[:, None] < D) & key_mask[None, :], other=0.0)
            if WIDEN:
                s += tl.dot(q_tail.to(tl.float32), rest.to(tl.float32), input_precision="ieee")
            else:
                s += tl.dot(q_tail, rest.to(q_tail.dtype), input_precision="ieee")
        s = s * scale
        if HAS_CAP:
            # tanh by exp(-2|x|), which cannot overflow.
            x = s / cap
            e = tl.exp(-2 * tl.abs(x))
            s = cap * tl.where(x < 0, -1.0, 1.0) * (1 - e) / (1 + e)
        s = tl.where(mask, s, float("-inf"))
    return s


@triton.jit
def partial_kernel(
    q, stride_q_t, stride_q_h, tokens, k, stride_k_t, stride_k_h, slots, slot_starts, stride_slots, tapped, stride_a_t,
    stride_a_h, pool, lengths, control_table, partial, layer_bit, scale, cap, sliding_window,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, D_MAIN: tl.constexpr, D_TAIL: tl.constexpr,
    HAS_TAIL: tl.constexpr, HAS_CAP: tl.constexpr, TAP: tl.constexpr, WIDEN: tl.constexpr, FLAT: tl.constexpr,
    HAS_TOKENS: tl.constexpr,
    SPLITS: tl.constexpr, BLOCK_H: tl.constexpr, BLOCKS_H: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    key_head = tl.program_id(1) // BLOCKS_H
    split = tl.program_id(2)
    request = tl.load(pool + row).to(tl.int64)
    control = control_table + request * CONTROL_WORDS
    length = tl.load(lengths + row).to(tl.int32)
    if is_due(control, length, layer_bit):
        in_group = tl.program_id(1) % BLOCKS_H * BLOCK_H + tl.arange(0, BLOCK_H)
        heads = key_head * GROUP + in_group
        head_mask = in_group < GROUP
        first = first_key(control, length, sliding_window)
        n_sink = tl.load(control + C_SINK_TOKENS)
        prompt_len = tl.load(control + C_PROMPT_LEN)
        per_split = tl.cdiv(tl.cdiv(length - first, SPLITS), BLOCK_N) * BLOCK_N
        begin = first + split * per_split
        end = tl.minimum(begin + per_split, length)
        token = tl.load(tokens + row).to(tl.int64) if HAS_TOKENS else row
        slot_base = tl.load(slot_starts + row).to(tl.int64) if FLAT else request * stride_slots
        if TAP:
            q_main = tl.zeros([BLOCK_H, D_MAIN], tl.float32)
            q_tail = tl.zeros([BLOCK_H, D_TAIL], tl.float32)
        else:
            q_main, q_tail = query_tile(q, stride_q_t, stride_q_h, token, heads, head_mask, D, D_MAIN, D_TAIL)
        top = tl.full([BLOCK_H], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_H], tl.float32)
        surprise = tl.zeros([BLOCK_H], tl.float32)
        sink = tl.zeros([BLOCK_H], tl.float32)
        previous = tl.zeros([BLOCK_H], tl.float32)
        own = tl.zeros([BLOCK_H], tl.float32)
        prompt = tl.zeros([BLOCK_H], tl.float32)
        columns = tl.arange(0, BINS)
        histogram = tl.zeros([BLOCK_H, BINS], tl.float32)
        for start in range(begin, end, BLOCK_N):
            positions = start + tl.arange(0, BLOCK_N)
            key_mask = positions < end
            s = logits_tile(
                q_main, q_tail, k, stride_k_t, stride_k_h, key_head, slots, slot_base, tapped, stride_a_t, stride_a_h,
                row, heads, head_mask, positions, key_mask, scale, cap, D, D_MAIN, D_TAIL, HAS_TAIL, HAS_CAP, TAP,
                WIDEN,
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
                sink += tl.sum(tl.where(positions[None, :] < n_sink, p, 0.0), axis=1)
            if start + BLOCK_N > length - 2:
                own += tl.sum(tl.where(positions[None, :] == length - 1, p, 0.0), axis=1)
                previous += tl.sum(tl.where(positions[None, :] == length - 2, p, 0.0), axis=1)
            if start + BLOCK_N <= prompt_len:
                prompt += mass
            elif start < prompt_len:
                prompt += tl.sum(tl.where(positions[None, :] < prompt_len, p, 0.0), axis=1)
            nearest = distance_bin(length - tl.minimum(start + BLOCK_N, end))
            farthest = distance_bin(length - 1 - start)
            if (start >= n_sink) & (nearest == farthest):
                histogram += tl.where(columns[None, :] == farthest, mass[:, None], 0.0)
            else:
                bins = tl.where(key_mask & (positions >= n_sink), distance_bin(length - 1 - positions), -1)
                for b in range(nearest, farthest + 1):
                    part = tl.sum(tl.where(bins[None, :] == b, p, 0.0), axis=1)
                    histogram += tl.where(columns[None, :] == b, part[:, None], 0.0)
            top = new_top
        out = partial + ((row * HEADS + heads) * SPLITS + split) * PARTIAL_WORDS
        tl.store(out + P_MAX, top, mask=head_mask)
        tl.store(out + P_SUM, total, mask=head_mask)
        tl.store(out + P_SURPRISE, surprise, mask=head_mask)
        tl.store(out + P_SINK, sink, mask=head_mask)
        tl.store(out + P_PREVIOUS, previous, mask=head_mask)
        tl.store(out + P_SELF, own, mask=head_mask)
        tl.store(out + P_PROMPT, prompt, mask=head_mask)
        tl.store(out[:, None] + P_HISTOGRAM + columns[None, :], histogram, mask=head_mask[:, None])


@triton.jit
def merged(partial, row, heads, head_mask, learned_sinks, HEADS: tl.constexpr, SPLITS: tl.constexpr,
           HAS_SINKS: tl.constexpr):  # fmt: skip
    """(maximum, sum) [heads] of whole rows; the logsumexp is maximum + log(sum)."""
    at = partial + ((row * HEADS + heads[:, None]) * SPLITS + tl.arange(0, SPLITS)[None, :]) * PARTIAL_WORDS
    tops = tl.load(at + P_MAX, mask=head_mask[:, None], other=float("-inf"))
    sums = tl.load(at + P_SUM, mask=head_mask[:, None], other=0.0)
    top = tl.max(tops, axis=1)
    if HAS_SINKS:
        learned = tl.load(learned_sinks + heads, mask=head_mask, other=float("-inf")).to(tl.float32)
        top = tl.maximum(tl.maximum(top, learned), -3.0e38)
        return top, tl.sum(sums * tl.exp(tops - top[:, None]), axis=1) + tl.exp(learned - top)
    top = tl.maximum(top, -3.0e38)
    return top, tl.sum(sums * tl.exp(tops - top[:, None]), axis=1)


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
    q, stride_q_t, stride_q_h, tokens, k, stride_k_t, stride_k_h, slots, slot_starts, stride_slots, tapped, stride_a_t,
    stride_a_h, pool, lengths, control_table, partial, learned_sinks, means, stride_means, candidates, records,
    layer_bit, scale, cap, sliding_window,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, D_MAIN: tl.constexpr, D_TAIL: tl.constexpr,
    HAS_TAIL: tl.constexpr, HAS_CAP: tl.constexpr, TAP: tl.constexpr, WIDEN: tl.constexpr, FLAT: tl.constexpr,
    HAS_TOKENS: tl.constexpr,
    HAS_SINKS: tl.constexpr, HAS_MEANS: tl.constexpr, SPLITS: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCKS_H: tl.constexpr, PARTIAL_SPLITS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    request = tl.load(pool + row).to(tl.int64)
    control = control_table + request * CONTROL_WORDS
    length = tl.load(lengths + row).to(tl.int32)
    if is_due(control, length, layer_bit):
        first = first_key(control, length, sliding_window)
        n_sink = tl.load(control + C_SINK_TOKENS)
        top_k = tl.load(control + C_TOP_K)
        every = HAS_MEANS or top_k > 0
        first = tl.where(every, first, tl.maximum(first, length - PROFILE))
        per_split = tl.cdiv(tl.cdiv(length - first, SPLITS), KEEP) * KEEP
        begin = first + split * per_split
        end = tl.minimum(begin + per_split, length)
        token = tl.load(tokens + row).to(tl.int64) if HAS_TOKENS else row
        slot_base = tl.load(slot_starts + row).to(tl.int64) if FLAT else request * stride_slots
        kept = tl.full([KEEP], -1, tl.int64)
        for start in range(begin, end, KEEP):
            positions = start + tl.arange(0, KEEP)
            key_mask = positions < end
            mean = tl.zeros([KEEP], tl.float32)
            count = tl.zeros([1], tl.int32)
            for block in range(HEADS // GROUP * BLOCKS_H):
                key_head = block // BLOCKS_H
                in_group = block % BLOCKS_H * BLOCK_H + tl.arange(0, BLOCK_H)
                heads = key_head * GROUP + in_group
                wanted = (in_group < GROUP) & selected(control, heads, HEADS)
                if TAP:
                    q_main = tl.zeros([BLOCK_H, D_MAIN], tl.float32)
                    q_tail = tl.zeros([BLOCK_H, D_TAIL], tl.float32)
                else:
                    q_main, q_tail = query_tile(q, stride_q_t, stride_q_h, token, heads, wanted, D, D_MAIN, D_TAIL)
                s = logits_tile(
                    q_main, q_tail, k, stride_k_t, stride_k_h, key_head, slots, slot_base, tapped, stride_a_t,
                    stride_a_h, row, heads, wanted, positions, key_mask, scale, cap, D, D_MAIN, D_TAIL, HAS_TAIL,
                    HAS_CAP, TAP, WIDEN,
                )  # fmt: skip
                top, total = merged(partial, row, heads, wanted, learned_sinks, HEADS, PARTIAL_SPLITS, HAS_SINKS)
                p = tl.where(wanted[:, None], tl.exp(s - top[:, None]) / total[:, None], 0.0)
                mean += tl.sum(p, axis=0)
                count += tl.sum(wanted.to(tl.int32), axis=0)
            mean = mean / count.to(tl.float32)
            if HAS_MEANS:
                tl.store(means + row * stride_means + positions, mean, mask=key_mask)
            distance = length - 1 - positions
            tl.store(
                records + row * RECORD_WORDS + R_PROFILE + distance,
                tl.where(positions >= n_sink, mean, 0.0).to(tl.int32, bitcast=True),
                mask=key_mask & (distance < PROFILE),
            )
            if top_k > 0:
                fresh = ranked(mean, positions, key_mask)
                if tl.max(fresh, axis=0) > tl.min(kept, axis=0):
                    kept = strongest(kept, fresh)
        tl.store(candidates + (row * SPLITS + split) * KEEP + tl.arange(0, KEEP), kept)


@triton.jit
def finish_kernel(
    pool, lengths, control_table, partial, learned_sinks, candidates, records, per_head, layer_bit, sliding_window,
    HEADS: tl.constexpr, HAS_SINKS: tl.constexpr, HAS_HEADS: tl.constexpr, SPLITS: tl.constexpr,
    MEAN_SPLITS: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    request = tl.load(pool + row).to(tl.int64)
    control = control_table + request * CONTROL_WORDS
    length = tl.load(lengths + row).to(tl.int32)
    if is_due(control, length, layer_bit):
        record = records + row * RECORD_WORDS
        first = first_key(control, length, sliding_window)
        columns = tl.arange(0, BINS)
        histogram = tl.zeros([BINS], tl.float32)
        count = 0
        lse = 0.0
        entropy = 0.0
        sink = 0.0
        for start in range(0, HEADS, BLOCK_H):
            heads = start + tl.arange(0, BLOCK_H)
            head_mask = heads < HEADS
            wanted = head_mask & selected(control, heads, HEADS)
            top, total = merged(partial, row, heads, head_mask, learned_sinks, HEADS, SPLITS, HAS_SINKS)
            surprise = tl.zeros([BLOCK_H], tl.float32)
            mass = tl.zeros([BLOCK_H], tl.float32)
            h_sink = tl.zeros([BLOCK_H], tl.float32)
            h_previous = tl.zeros([BLOCK_H], tl.float32)
            h_own = tl.zeros([BLOCK_H], tl.float32)
            h_prompt = tl.zeros([BLOCK_H], tl.float32)
            for split in range(SPLITS):
                at = partial + ((row * HEADS + heads) * SPLITS + split) * PARTIAL_WORDS
                local_top = tl.load(at + P_MAX, mask=head_mask, other=float("-inf"))
                local_sum = tl.load(at + P_SUM, mask=head_mask, other=0.0)
                weight = tl.where(local_sum > 0, tl.exp(local_top - top) / total, 0.0)
                shift = tl.where(local_sum > 0, local_top - top, 0.0)
                surprise += weight * (tl.load(at + P_SURPRISE, mask=head_mask, other=0.0) + shift * local_sum)
                mass += weight * local_sum
                h_sink += weight * tl.load(at + P_SINK, mask=head_mask, other=0.0)
                h_previous += weight * tl.load(at + P_PREVIOUS, mask=head_mask, other=0.0)
                h_own += weight * tl.load(at + P_SELF, mask=head_mask, other=0.0)
                h_prompt += weight * tl.load(at + P_PROMPT, mask=head_mask, other=0.0)
                local = tl.load(at[:, None] + P_HISTOGRAM + columns[None, :], mask=head_mask[:, None], other=0.0)
                histogram += tl.sum(tl.where(wanted[:, None], weight[:, None] * local, 0.0), axis=0)
            # H = sum p (LSE - s) with s = top + centred: exact also when a learned sink takes part of the mass.
            log_total = tl.where(total > 0, tl.log(tl.where(total > 0, total, 1.0)), 0.0)
            h_lse = tl.where((total > 0) & (length > first), top + log_total, 0.0)
            h_entropy = tl.maximum(log_total * mass - surprise, 0.0)
            count += tl.sum(wanted.to(tl.int32), axis=0)
            lse += tl.sum(tl.where(wanted, h_lse, 0.0), axis=0)
            entropy += tl.sum(tl.where(wanted, h_entropy, 0.0), axis=0)
            sink += tl.sum(tl.where(wanted, h_sink, 0.0), axis=0)
            if HAS_HEADS:
                out = per_head + (row * HEADS + heads) * HEAD_WORDS
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
        tl.store(record + R_PROFILE + distances, 0, mask=distances >= length - first)
        top_k = tl.load(control + C_TOP_K)
        if top_k > 0:
            every = tl.load(candidates + row * MEAN_SPLITS * KEEP + tl.arange(0, MEAN_SPLITS * KEEP))
            grid = tl.reshape(tl.sort(every, descending=True), [MEAN_SPLITS, KEEP])
            best = tl.max(tl.where(tl.arange(0, MEAN_SPLITS)[:, None] == 0, grid, -1), axis=0)
            rank = tl.arange(0, KEEP)
            found = (best >= 0) & (rank < top_k)
            tl.store(record + R_POSITIONS + rank, (0x7FFFFFFF - (best & 0x7FFFFFFF)).to(tl.int32), mask=found)
            tl.store(record + R_PROBABILITIES + rank, (best >> 32).to(tl.int32), mask=found)
        tl.store(record + R_LINKS, tl.minimum(top_k, length - first))
        tl.store(record + R_HEADS, count)
        tl.store(record + R_LENGTH, length)
        tl.store(record + R_STAMP, tl.load(control + C_STAMP))
