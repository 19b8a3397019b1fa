"""How sure a model was of a token, of logits that are read once: log-probability, entropy, margin of the two largest.

Two launches: `read` goes through the vocabulary in splits and keeps the logits, which a sampler changes in place;
`finish` puts the splits together for the token that was chosen.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

BLOCK = 4096
SPLIT = 16_384  # logits of one program
_SPLIT_WORDS = 4  # largest, second largest, sum of exp(x - largest), sum of exp(x - largest) (x - largest)
_NUMBERS = 3
_LN2 = tl.constexpr(0.6931471805599453)


class Read(NamedTuple):
    """rows [m]; kept [m, V], in the logits' type; splits float32 [m, S, 4]."""

    rows: torch.Tensor
    kept: torch.Tensor
    splits: torch.Tensor


def read(logits: torch.Tensor, rows: torch.Tensor) -> Read:
    """logits [B, V] of any float type, rows of them int64 [m]; nothing waits for the device."""
    m, vocabulary = len(rows), logits.shape[1]
    kept = torch.empty((m, vocabulary), dtype=logits.dtype, device=logits.device)
    count = triton.cdiv(vocabulary, SPLIT)
    splits = torch.empty((m, count, _SPLIT_WORDS), dtype=torch.float32, device=logits.device)
    read_kernel[(m, count)](
        logits,
        logits.stride(0),
        logits.stride(1),
        rows,
        kept,
        splits,
        vocabulary,
        SPLIT=SPLIT,
        BLOCK=BLOCK,
        num_warps=8,
    )
    return Read(rows, kept, splits)


def finish(found: Read, tokens: torch.Tensor) -> torch.Tensor:
    """float32 [B, 3]: log-probability (nats) of tokens [B], entropy (bits), margin; nan in the rows that were not read.

    A row without a distribution (a logit that is nan or infinite) has the log-probability nan.
    """
    made = torch.full((len(tokens), _NUMBERS), torch.nan, device=tokens.device)
    m, count, _ = found.splits.shape
    chosen_kernel[(m,)](
        found.rows, found.kept, found.splits, tokens, made, found.kept.shape[1], count,
        SPLITS=triton.next_power_of_2(count), num_warps=1,
    )  # fmt: skip
    return made


@triton.jit
def read_kernel(logits, row_stride, stride, rows, kept, splits, vocabulary, SPLIT: tl.constexpr, BLOCK: tl.constexpr):
    place, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    source = logits + tl.load(rows + place) * row_stride
    column = tl.arange(0, BLOCK)
    largest, second, total, weighted = -float("inf"), -float("inf"), 0.0, 0.0
    for start in range(0, SPLIT, BLOCK):
        at = split * SPLIT + start + column
        inside = at < vocabulary
        given = tl.load(source + at.to(tl.int64) * stride, mask=inside, other=-float("inf"))
        tl.store(kept + place * vocabulary + at, given, mask=inside)
        x = given.to(tl.float32)
        top = tl.max(x, 0)
        # Of several that are the largest, one alone is left out.
        first = tl.min(tl.where(x == top, column, BLOCK), 0)
        below = tl.max(tl.where(column == first, -float("inf"), x), 0)
        second = tl.maximum(tl.minimum(largest, top), tl.maximum(second, below))
        new = tl.maximum(largest, top)
        base = tl.where(new == -float("inf"), 0.0, new)
        shift = tl.where(largest == -float("inf"), 0.0, largest - base)
        factor = tl.where(largest == -float("inf"), 0.0, tl.exp(shift))
        share = tl.exp(x - base)
        weighted = factor * (weighted + total * shift) + tl.sum(tl.where(share > 0, share * (x - base), 0.0), 0)
        total = factor * total + tl.sum(share, 0)
        largest = new
    target = splits + (place * tl.num_programs(1) + split) * 4
    tl.store(target, largest)
    tl.store(target + 1, second)
    tl.store(target + 2, total)
    tl.store(target + 3, weighted)


@triton.jit
def chosen_kernel(rows, kept, splits, tokens, made, vocabulary, count, SPLITS: tl.constexpr):
    place = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + place)
    split = tl.arange(0, SPLITS)
    inside = split < count
    source = splits + (place * count + split) * 4
    tops = tl.load(source, mask=inside, other=-float("inf"))
    largest = tl.max(tops, 0)
    first = tl.min(tl.where(tops == largest, split, SPLITS), 0)
    others = tl.max(tl.where(split == first, -float("inf"), tops), 0)
    second = tl.maximum(others, tl.max(tl.load(source + 1, mask=inside, other=-float("inf")), 0))
    base = tl.where(largest == -float("inf"), 0.0, largest)
    shift = tl.where(tops == -float("inf"), 0.0, tops - base)
    factor = tl.where(tops == -float("inf"), 0.0, tl.exp(shift))
    totals = tl.load(source + 2, mask=inside, other=0.0)
    total = tl.sum(factor * totals, 0)
    weighted = tl.sum(factor * (tl.load(source + 3, mask=inside, other=0.0) + totals * shift), 0)
    token = tl.load(tokens + row).to(tl.int64)
    known = (token >= 0) & (token < vocabulary)
    chosen = tl.load(kept + place * vocabulary + token, mask=known, other=float("nan")).to(tl.float32)
    entropy = (tl.log(total) - weighted / total) / _LN2
    target = made + row * 3
    tl.store(target, chosen - largest - tl.log(total))
    tl.store(target + 1, tl.where(entropy < 0, 0.0, entropy))
    tl.store(target + 2, largest - second)
