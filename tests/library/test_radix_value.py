"""Laws of what a node of the prefix cache is worth, whatever was looked at."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from geomcli.eviction.radix_value import LOCAL, Held, Ranking, Received

Row = tuple[int, int, NDArray[np.int64], NDArray[np.float64]]
WEIGHTS = st.floats(0, 1)
MASSES = st.lists(st.floats(0, 100), min_size=2, max_size=40).map(np.array)


@st.composite
def rows(draw: st.DrawFn) -> Row:
    query = draw(st.integers(0, 60))
    first = draw(st.integers(0, 8))
    positions = draw(st.lists(st.integers(0, query), unique=True, max_size=20))
    weights = draw(st.lists(st.floats(0.01, 1), min_size=len(positions), max_size=len(positions)))
    total = sum(weights) or 1.0
    return query, first, np.array(positions, dtype=np.int64), np.array(weights) / total


def counted(row: Row) -> range:
    return range(row[1], max(row[1], row[0] - LOCAL + 1))


@given(st.lists(rows(), max_size=12))
def test_a_position_gets_the_mean_over_the_rows_that_could_see_it(given_rows: list[Row]) -> None:
    received = Received()
    for query, first, positions, probabilities in given_rows:
        received.observe([(positions, probabilities)], query_position=query, first=first)
    found = received.per_token(64)
    for position in range(64):
        seeing = [row for row in given_rows if position in counted(row)]
        shares = [
            sum(p for n, p in zip(row[2], row[3], strict=True) if n == position) * len(counted(row)) for row in seeing
        ]
        assert math.isnan(found[position]) if not seeing else found[position] == pytest.approx(np.mean(shares))


def test_a_row_that_looks_at_all_keys_alike_gives_each_of_them_one_whatever_its_layers() -> None:
    received = Received()
    positions = np.arange(100)
    even = (positions, np.full(100, 0.01))
    counting = np.arange(4, 100 - LOCAL)
    peaked = (np.array([10, 50]), np.array([0.5, 0.5]))
    received.observe([even], query_position=99, first=4)
    assert received.per_token(100)[counting] == pytest.approx(len(counting) / 100)
    both = Received()
    both.observe([even, peaked], query_position=99, first=4)
    assert both.per_token(100)[10] == pytest.approx((0.01 + 0.5) / 2 * len(counting))
    assert both.per_token(100)[11] == pytest.approx(0.005 * len(counting))


@given(MASSES, st.data())
def test_a_split_keeps_every_token_and_what_it_received(masses: NDArray[np.float64], data: st.DataObject) -> None:
    held = Held(masses, 3)
    n = data.draw(st.integers(0, len(masses)))
    head, tail = held.split(n)
    assert np.array_equal(np.concatenate([head.received, tail.received]), masses)
    assert (len(head.received), head.time, tail.time) == (n, 3, 3)


@given(MASSES, WEIGHTS, st.lists(st.booleans(), min_size=40, max_size=40), st.integers(0, 5))
def test_adding_before_a_split_is_adding_to_both_parts(
    masses: NDArray[np.float64], weight: float, unseen: list[bool], later: int
) -> None:
    ranking = ranking_of(weight, ends=2)
    first = ranking.add(None, masses)
    assert first is not None
    for _ in range(later):
        ranking.end(ranking.time + 1.0, 10)
    more = np.where(unseen[: len(masses)], np.nan, masses[::-1])
    at = len(masses) // 2
    whole = ranking.add(first, np.nan_to_num(more, nan=1.0))
    parts = [ranking.add(part, np.nan_to_num(cut, nan=1.0)) for part, cut in zip(
        first.split(at), (more[:at], more[at:]), strict=True
    )]  # fmt: skip
    assert whole is not None
    assert np.array_equal(whole.received, np.concatenate([part.received for part in parts if part is not None]))
    assert ranking.add(first, np.full(len(masses), np.nan)) is first


def ranking_of(weight: float, ends: int = 10, capacity: int = 100) -> Ranking:
    """Requests that ended at 1, 2, … and added 10 tokens each, so that the horizon is a tenth of the capacity."""
    ranking = Ranking(weight, capacity)
    for at in range(1, ends + 1):
        ranking.end(float(at), 10)
        ranking.learn(np.array([1.0]))
    return ranking


@given(WEIGHTS, st.lists(st.tuples(st.floats(0, 100), st.none() | MASSES, st.integers(0, 10)), min_size=1))
def test_keys_are_always_finite_and_comparable(
    weight: float, nodes: list[tuple[float, NDArray[np.float64] | None, int]]
) -> None:
    ranking = ranking_of(weight)
    keys = [ranking.key(at, None if masses is None else Held(masses, time)) for at, masses, time in nodes]
    assert all(len(key) == 2 and math.isfinite(part) for key in keys for part in key)


@given(st.lists(st.tuples(st.floats(0, 20), st.none() | MASSES), min_size=2))
def test_with_weight_zero_and_without_data_the_order_is_lru(
    nodes: list[tuple[float, NDArray[np.float64] | None]],
) -> None:
    for weight in (0.0, 0.7, 1.0):
        ranking = ranking_of(weight)
        seen = [(at, masses if weight == 0 else None) for at, masses in nodes]
        keyed = [(ranking.key(at, None if masses is None else Held(masses, 5)), at) for at, masses in seen]
        assert [at for _, at in sorted(keyed)] == sorted(at for at, _ in nodes)


@given(MASSES, st.floats(0.01, 1), st.floats(0.5, 12))
def test_at_equal_recency_more_attention_stays_longer(masses: NDArray[np.float64], weight: float, at: float) -> None:
    ranking = ranking_of(weight)
    low, high = Held(masses, 10), Held(masses + 1.0, 10)
    assert ranking.key(at, low) < ranking.key(at, high)
    assert 0 <= ranking.value(low) <= ranking.value(high) < 1


@given(MASSES, st.integers(1, 200))
def test_what_was_received_halves_twice_a_horizon(masses: NDArray[np.float64], passed: int) -> None:
    ranking = ranking_of(0.7)
    held = Held(masses, ranking.time)
    assert ranking.horizon == pytest.approx(10)
    left = ranking.decayed(held, ranking.time + passed)
    assert left == pytest.approx(masses * 0.5 ** (passed / 5))
    before = ranking.value(held)
    for at in range(passed):
        ranking.end(100.0 + at, 10)
    assert ranking.value(held) <= before


def test_ranks_whose_clocks_differ_give_keys_of_one_order() -> None:
    """Only what lies between two ends of requests counts, and the order of accesses, which ranks share."""
    random = np.random.default_rng(5)
    events = np.cumsum(random.uniform(0.1, 1.0, 400))
    clocks = [events, 1e6 + np.cumsum(random.uniform(1e-6, 50.0, 400))]
    ends = sorted(random.choice(400, 100, replace=False).tolist())
    accesses = random.choice(400, 60, replace=False)
    masses = random.uniform(0, 3, (60, 4))
    orders = []
    for clock in clocks:
        ranking = Ranking(0.7, 500)
        for n in ends:
            ranking.end(float(clock[n]), 20)
            ranking.learn(np.array([0.5]))
        keys = [ranking.key(float(clock[n]), Held(masses[i], int(n) // 4)) for i, n in enumerate(accesses)]
        orders.append(sorted(range(60), key=lambda i: keys[i]))
        assert ranking.horizon == 25
    assert orders[0] == orders[1]


@pytest.mark.parametrize(("weight", "capacity"), [(-0.1, 10), (1.1, 10), (math.nan, 10), (0.5, 0)])
def test_what_cannot_be_is_refused(weight: float, capacity: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        Ranking(weight, capacity)
