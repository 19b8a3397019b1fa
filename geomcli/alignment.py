"""Alignment of two token sequences: the longest common subsequence, exact and the same from either side.

Bit-parallel (Hyyrö, "Bit-parallel LCS-length computation revisited", 2004): a row of the dynamic program is one integer
of |b| bits, so 4,000 against 4,000 tokens is a few thousand additions. Knows nothing of traces.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from math import isqrt

import numpy as np

Pair = tuple[int | None, int | None]

_LEAST_BLOCK = 64
_FREQUENT = 16  # places from which a token's mask is kept


def align(a: Sequence[Hashable], b: Sequence[Hashable]) -> list[Pair]:
    """Pairs (index in a, index in b) in order, every index once; None where one side has no counterpart.

    The most tokens possible are paired with an equal one. Between those, what differs is paired in its order and what
    is left over stands alone. align(b, a) is align(a, b) with the pairs turned round.
    """
    # Of several longest subsequences one has to be chosen, and from either side it has to be the same one.
    codes: dict[Hashable, int] = {}
    x = [codes.setdefault(token, len(codes)) for token in a]
    y = [codes.setdefault(token, len(codes)) for token in b]
    if _order(a, b) > 0:
        return [(i, j) for j, i in _pairs(y, x)]
    return _pairs(x, y)


def _order(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """-1, 0 or 1: a total order of sequences of any tokens."""
    if len(a) != len(b):
        return 1 if len(a) > len(b) else -1
    differing = ((repr(s), repr(t)) for s, t in zip(a, b, strict=True) if s != t)
    left, right = next((pair for pair in differing if pair[0] != pair[1]), ("", ""))
    return (left > right) - (left < right)


def _pairs(x: list[int], y: list[int]) -> list[Pair]:
    made: list[Pair] = []
    at_x = at_y = 0
    for i, j in [*_common(x, y), (len(x), len(y))]:
        both = min(i - at_x, j - at_y)
        made += [(at_x + k, at_y + k) for k in range(both)]
        made += [(k, None) for k in range(at_x + both, i)]
        made += [(None, k) for k in range(at_y + both, j)]
        if i < len(x):
            made.append((i, j))
        at_x, at_y = i + 1, j + 1
    return made


def _common(x: list[int], y: list[int]) -> list[tuple[int, int]]:
    """Indices of a longest common subsequence."""
    start = 0
    shorter = min(len(x), len(y))
    while start < shorter and x[start] == y[start]:
        start += 1
    end = 0
    while end < shorter - start and x[-1 - end] == y[-1 - end]:
        end += 1
    head = [(k, k) for k in range(start)]
    tail = [(len(x) - end + k, len(y) - end + k) for k in range(end)]
    inner = _inner(x[start : len(x) - end], y[start : len(y) - end])
    return [*head, *((start + i, start + j) for i, j in inner), *tail]


def _inner(x: list[int], y: list[int]) -> list[tuple[int, int]]:
    """Rows of the program are computed once and only every `block`-th kept; the way back computes a block again."""
    if not x or not y:
        return []
    masks, ones = _Masks(y), (1 << len(y)) - 1
    # Of x, blocks and rows in a block are about as many: memory is 2 sqrt(|x|) rows.
    block = max(_LEAST_BLOCK, isqrt(len(x)))
    kept = []
    row = ones
    for start in range(0, len(x), block):
        kept.append(row)
        row = _after(row, x[start : start + block], masks) & ones
    found: list[tuple[int, int]] = []
    j = len(y)
    for place in range(len(kept) - 1, -1, -1):
        if not j:
            break
        # Bits from j on have no part in what is left, and low bits do not depend on higher ones.
        start, ones = place * block, (1 << j) - 1
        part = x[start : start + block]
        j = _way_back(part, start, _rows(kept[place] & ones, part, masks, ones), j, found)
    return found[::-1]


def _after(row: int, x: list[int], masks: _Masks) -> int:
    """The row behind these tokens; carries out of it stay above its bits and change nothing below."""
    frequent, rare = masks.frequent.get, masks.rare.get
    for token in x:
        if (pair := frequent(token)) is not None:
            row = (row + (row & pair[0])) | (row & pair[1])
        elif (places := rare(token)) is not None:
            matched = row & _mask(places)
            row = (row + matched) | (row - matched)
    return row


def _rows(row: int, x: list[int], masks: _Masks, ones: int) -> list[int]:
    """The row in front of these tokens and the one behind each, right in the bits of `ones`."""
    cut: dict[int, tuple[int, int]] = {}
    made = [row]
    for token in x:
        if (pair := cut.get(token)) is None:
            mask = masks.of(token) & ones
            pair = cut[token] = (mask, ones ^ mask)
        row = (row + (row & pair[0])) | (row & pair[1])
        made.append(row)
    return made


def _way_back(x: list[int], start: int, rows: list[int], j: int, found: list[tuple[int, int]]) -> int:
    """Follow the longest way back through one block; the column it enters the block before at."""
    # A bit of row i that is 0 says: one token more is common with y[..j] than with y[..j-1]. Rows end near bit j, so
    # that little is left of them when they are shifted.
    i = len(x)
    while i and j:
        if rows[i] >> j - 1 & 1:
            j -= 1
        elif not rows[i - 1] >> j - 1 & 1:
            i -= 1
        else:
            i, j = i - 1, j - 1
            found.append((start + i, j))
    return j


class _Masks:
    """Where each token stands in y, as bits. Rare tokens are kept as places: their masks together would be |y|^2 bits.

    frequent: token -> (its mask, all other bits); rare: token -> places.
    """

    def __init__(self, y: list[int]) -> None:
        self.rare: defaultdict[int, list[int]] = defaultdict(list)
        for j, token in enumerate(y):
            self.rare[token].append(j)
        ones = (1 << len(y)) - 1
        self.frequent: dict[int, tuple[int, int]] = {}
        for token in [token for token, places in self.rare.items() if len(places) >= _FREQUENT]:
            bits = np.zeros(len(y), dtype=np.uint8)
            bits[self.rare.pop(token)] = 1
            mask = int.from_bytes(np.packbits(bits, bitorder="little").tobytes(), "little")
            self.frequent[token] = (mask, ones ^ mask)

    def of(self, token: int) -> int:
        pair = self.frequent.get(token)
        return _mask(self.rare.get(token, ())) if pair is None else pair[0]


def _mask(places: Sequence[int]) -> int:
    mask = 0
    for place in places:
        mask |= 1 << place
    return mask
