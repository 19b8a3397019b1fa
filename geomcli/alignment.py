"""Alignment of two token sequences: the longest common subsequence, exact and the same from either side.

Bit-parallel (Hyyrö, "Bit-parallel LCS-length computation revisited", 2004): a row of the dynamic program is one integer
of |b| bits, so 4,000 against 4,000 tokens is a few thousand additions. Knows nothing of traces.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

Pair = tuple[int | None, int | None]

_MOST_BITS = 1 << 29  # rows kept for the way back: 64 MB
_KEPT_CARRIES = 64  # carries out of a row, which change nothing inside it, before they are cut off


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
    left, right = (len(a), [repr(t) for t in a]), (len(b), [repr(t) for t in b])
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
    if not x or not y:
        return []
    if len(x) * len(y) <= _MOST_BITS or len(x) == 1:
        return _traced(x, y)
    # Hirschberg: where the best way crosses the middle row, both halves are problems of their own.
    middle = len(x) // 2
    before = _lengths(x[:middle], y)
    behind = _lengths(x[: middle - 1 : -1], y[::-1])[::-1]
    cut = int(np.argmax(before + behind))
    second = _common(x[middle:], y[cut:])
    return [*_common(x[:middle], y[:cut]), *((middle + i, cut + j) for i, j in second)]


def _masks(y: list[int]) -> dict[int, int]:
    places: defaultdict[int, list[int]] = defaultdict(list)
    for j, token in enumerate(y):
        places[token].append(j)
    masks = {}
    for token, found in places.items():
        bits = np.zeros(len(y), dtype=np.uint8)
        bits[found] = 1
        masks[token] = int.from_bytes(np.packbits(bits, bitorder="little").tobytes(), "little")
    return masks


def _traced(x: list[int], y: list[int]) -> list[tuple[int, int]]:
    masks, ones = _masks(y), (1 << len(y)) - 1
    size = (len(y) + 7) // 8
    row = ones
    rows = [row.to_bytes(size, "little")]
    for token in x:
        matched = row & masks.get(token, 0)
        row = ((row + matched) | (row - matched)) & ones
        rows.append(row.to_bytes(size, "little"))
    # A bit of row i that is 0 says: one token more is common with y[..j] than with y[..j-1].
    found = []
    i, j = len(x), len(y)
    while i and j:
        if _bit(rows[i], j - 1):
            j -= 1
        elif not _bit(rows[i - 1], j - 1):
            i -= 1
        else:
            i, j = i - 1, j - 1
            found.append((i, j))
    return found[::-1]


def _bit(row: bytes, place: int) -> int:
    return row[place >> 3] >> (place & 7) & 1


def _lengths(x: list[int], y: list[int]) -> NDArray[np.int64]:
    """Length of the longest common subsequence of x and each prefix of y: [len(y) + 1]."""
    masks, ones = _masks(y), (1 << len(y)) - 1
    row = ones
    for place, token in enumerate(x):
        matched = row & masks.get(token, 0)
        row = (row + matched) | (row - matched)
        if not place % _KEPT_CARRIES:
            row &= ones
    row &= ones
    raw = np.frombuffer(row.to_bytes((len(y) + 7) // 8, "little"), dtype=np.uint8)
    bits = np.unpackbits(raw, count=len(y), bitorder="little")
    return np.concatenate([[0], np.cumsum(1 - bits.astype(np.int64))])
