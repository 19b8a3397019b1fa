"""Alignment: every token once, as many equal ones paired as can be, the same from either side."""

from __future__ import annotations

import random
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geomcli import alignment
from geomcli.alignment import align

sequences = st.lists(st.sampled_from("abc"), max_size=14)


def longest(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence by the textbook's table."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def equal_pairs(a: list[str], b: list[str]) -> int:
    return sum(i is not None and j is not None and a[i] == b[j] for i, j in align(a, b))


@given(sequences, sequences)
def test_every_index_once_and_in_order(a: list[str], b: list[str]) -> None:
    pairs = align(a, b)
    assert [i for i, _ in pairs if i is not None] == list(range(len(a)))
    assert [j for _, j in pairs if j is not None] == list(range(len(b)))
    assert (None, None) not in pairs


@given(sequences, sequences)
def test_as_many_equal_tokens_as_can_be(a: list[str], b: list[str]) -> None:
    assert equal_pairs(a, b) >= longest(a, b)


@given(sequences, sequences)
def test_the_same_from_either_side(a: list[str], b: list[str]) -> None:
    assert align(b, a) == [(j, i) for i, j in align(a, b)]


@given(sequences)
def test_a_sequence_with_itself(a: list[str]) -> None:
    assert align(a, a) == [(i, i) for i in range(len(a))]


def test_what_differs_is_paired_in_its_order() -> None:
    assert align(["the", "cat", "sat"], ["the", "big", "dog", "sat", "down"]) == [
        (0, 0), (1, 1), (None, 2), (2, 3), (None, 4),
    ]  # fmt: skip
    assert align([], ["x"]) == [(None, 0)]


def test_divided_problems_are_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(3)
    cases = [(rng.choices("abcd", k=rng.randint(1, 40)), rng.choices("abcd", k=rng.randint(1, 40))) for _ in range(50)]
    whole = [equal_pairs(a, b) for a, b in cases]
    monkeypatch.setattr(alignment, "_LEAST_BLOCK", 1)
    monkeypatch.setattr(alignment, "_FREQUENT", 5)
    divided = [equal_pairs(a, b) for a, b in cases]
    assert divided == whole
    assert all(found >= longest(a, b) for found, (a, b) in zip(divided, cases, strict=True))
    assert all(found >= longest(a, b) for found, (a, b) in zip(whole, cases, strict=True))


def test_memory_of_a_long_alignment_is_a_few_rows() -> None:
    """20,000 rows of 20,000 bits are 50 MB, and so are as many masks; a few of them are not."""
    rng = random.Random(2)
    for tokens in (range(8), range(20_000)):
        a, b = (rng.choices(tokens, k=20_000) for _ in range(2))
        tracemalloc.start()
        pairs = align(a, b)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(pairs) >= 20_000
        assert most < 20e6


def test_tokens_of_all_kinds() -> None:
    assert align([1, None, "x"], [None, "x", 2]) == [(0, None), (1, 0), (2, 1), (None, 2)]


def test_four_thousand_tokens_without_a_common_pattern_are_quick() -> None:
    rng = random.Random(1)
    a, b = ([int(rng.paretovariate(1)) for _ in range(4000)] for _ in range(2))
    began = time.process_time()
    align(a, b)
    align(["x"] * 4000, ["x", "y"] * 2000)
    assert time.process_time() - began < 2
