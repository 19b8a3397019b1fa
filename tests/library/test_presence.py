"""Which tokens have left: from the scheduler's word to the entries, and from the entries back to a map."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geomcli.kept import Kept, cache_of
from geomcli.server_patch.presence import Presence, packed, ranges

PROMPT = 10


class Engine:
    """One answer: what is there before each step, and what its entries say. `stride`: of the tokens that have one."""

    def __init__(self, stride: int = 1) -> None:
        self.presence, self.stride = Presence(), stride
        self.there = list(range(PROMPT))
        self.steps: list[dict[str, Any]] = []
        self.seen: dict[int, list[int]] = {}
        self.token = 0
        self.presence.begin()

    @property
    def length(self) -> int:
        return PROMPT + self.token

    def evict(self, leaving: set[int]) -> None:
        """What leaves of the text, of which the next step's own token is the newest."""
        text = self.length - 1
        self.there = [place for place in self.there if place not in leaving]
        self.presence.add(text, packed(np.array(self.there), text))

    def retract(self) -> None:
        self.there = list(range(self.length - 1))

    def step(self, *, entry: bool = True) -> None:
        if self.token:
            self.there.append(self.length - 1)
        self.presence.forget(self.length)
        if entry and self.token % self.stride == 0:
            self.write(self.there)
        self.token += 1

    def write(self, there: list[int]) -> None:
        kept = len(there)
        said = self.presence.tell(self.length, kept)
        kv = {"kept": kept, "freed": self.length - kept, "share": kept / self.length, **said}
        self.steps.append({"tokenIndex": self.token, "kv": kv})
        self.seen[self.token] = list(there)


def check(engine: Engine) -> Kept:
    """The map that the steps give is what was there, at every step that has an entry."""
    kept = Kept(engine.steps)
    for token, there in engine.seen.items():
        length = PROMPT + token
        assert [p for p in range(length) if kept.kept(p, token)] == there
        gone = kept.gone(token)
        assert gone is not None
        assert [p for start, end in gone for p in range(start, end)] == sorted(set(range(length)) - set(there))
    return kept


@given(
    st.integers(1, 4),
    st.lists(st.sampled_from(["step", "step", "step", "evict", "retract"]), max_size=60),
    st.randoms(use_true_random=False),
)
def test_the_map_that_entries_give_is_what_was_there(stride: int, does: list[str], dice: Any) -> None:
    engine = Engine(stride)
    engine.step()
    for what in does:
        if what == "step":
            engine.step()
        elif what == "retract":
            engine.retract()
        elif len(engine.there) > 1:
            engine.evict(set(dice.sample(engine.there, dice.randrange(1, len(engine.there)))))
    kept = check(engine)
    before: set[int] = set()
    for one in engine.steps:
        token, named = one["tokenIndex"], {"left", "gone"} & set(one["kv"])
        now = set(range(PROMPT + token)) - set(engine.seen[token])
        assert named == (set() if now == before else {"left"} if now > before else {"gone"})
        before = now
    last = engine.steps[-1]["tokenIndex"]
    for position in range(PROMPT + last):
        first = kept.left_at(position)
        assert (first is None) == (position in engine.seen[last])
        if first is not None:
            assert position not in engine.seen[first]


def test_an_entry_names_what_left_since_the_one_before_once() -> None:
    engine = Engine()
    for _ in range(4):
        engine.step()
    engine.evict({2, 3, 7})
    engine.step()
    engine.step()
    engine.evict({4, 12})
    engine.step()
    said = [{name: kv for name, kv in step["kv"].items() if name in ("left", "gone")} for step in engine.steps]
    assert said == [{}, {}, {}, {}, {"left": [[2, 4], [7, 8]]}, {}, {"left": [[4, 5], [12, 13]]}]
    kept = check(engine)
    assert [kept.left_at(p) for p in (2, 4, 5, 12)] == [4, 6, None, 6]
    assert [kept.left_at(4, step) for step in (5, 6)] == [None, 6]


def test_what_was_computed_again_is_said_to_be_there_and_what_leaves_then_is_named_anew() -> None:
    engine = Engine()
    for _ in range(4):
        engine.step()
    engine.evict({2, 3})
    engine.step()
    engine.retract()
    engine.step()
    assert engine.steps[-1]["kv"]["gone"] == []
    engine.evict({3, 8})
    engine.step()
    assert engine.steps[-1]["kv"]["left"] == [[3, 4], [8, 9]]
    engine.retract()
    # Behind the next entry's back as many leave again, but others.
    engine.step(entry=False)
    engine.evict({1, 9})
    engine.step()
    assert engine.steps[-1]["kv"]["gone"] == [[1, 2], [9, 10]]
    kept = check(engine)
    assert [kept.kept(2, step) for step in (3, 4, 5, 6)] == [True, False, True, True]


def test_a_step_that_was_taken_back_says_what_it_saw() -> None:
    """With overlap its records come although it is done again: the first that come are those of its token."""
    engine = Engine()
    for _ in range(6):
        engine.step()
    engine.evict({2, 3})
    engine.step()
    before = [*engine.there, engine.length - 1]
    engine.retract()
    engine.presence.forget(engine.length)
    engine.write(before)
    engine.token += 1
    engine.there.append(engine.length - 2)
    engine.evict({5, 6})
    engine.step()
    assert [step["kv"].get("gone") for step in engine.steps[-2:]] == [None, [[5, 7]]]
    check(engine)


def test_who_does_not_know_what_was_said_names_all_that_is_not_there() -> None:
    presence = Presence()
    presence.add(20, packed(np.array([0, 1, 5, 19]), 20))
    assert presence.tell(22, 6) == {"gone": [[2, 5], [6, 19]]}
    assert presence.tell(23, 7) == {}
    assert Presence().tell(22, 22) == {"gone": []}


def test_tokens_of_which_nothing_is_known_are_not_named() -> None:
    presence = Presence()
    presence.begin()
    assert presence.tell(22, 6) == {}
    presence.add(20, packed(np.array([0, 1, 5, 19]), 20))
    # Not what the scheduler speaks of: as many are not there as nobody said.
    assert presence.tell(22, 7) == {}
    assert presence.tell(20, 4) == {}
    assert presence.tell(22, 6) == {"left": [[2, 5], [6, 19]]}


def test_what_is_over_is_forgotten_but_for_the_step_under_way() -> None:
    presence = Presence()
    presence.begin()
    for length in (20, 40, 60):
        presence.add(length, packed(np.arange(length - 8, length), length))
        presence.forget(length + 1)
    assert [held.length for held in presence._known] == [40, 60]
    presence.forget(62)
    assert [held.length for held in presence._known] == [60]


@given(st.lists(st.booleans(), max_size=70))
def test_a_mask_and_its_ranges(mask: list[bool]) -> None:
    found = ranges(np.array(mask, dtype=np.bool_))
    assert [p for start, end in found for p in range(start, end)] == [p for p, one in enumerate(mask) if one]
    assert all(b[0] > a[1] for a, b in pairwise(found))


def step(number: int, freed: int, **more: Any) -> dict[str, Any]:
    return {"tokenIndex": number, "kv": {"kept": 50, "freed": freed, "share": 0.5, **more}}


def test_a_missing_entry_makes_it_unknown_until_all_are_named() -> None:
    kept = Kept([step(4, 2, left=[[2, 4]]), step(9, 5, left=[[7, 8]]), step(12, 6, left=[[9, 10]])])
    assert kept.kept(2, 4) is False
    assert kept.kept(2, 8) is False
    assert kept.kept(7, 8) is True
    assert [kept.kept(p, 9) for p in (2, 7, 20)] == [None, None, None]
    assert kept.gone(9) is None
    assert kept.left_at(7) is None
    kept.add(step(14, 7, gone=[[2, 6], [7, 10]]))
    assert [kept.kept(p) for p in (2, 4, 6, 7, 10)] == [False, False, True, False, True]
    assert kept.kept(4, 13) is None
    kept.add(step(15, 0))
    assert kept.gone() == []


def test_steps_that_name_no_tokens_say_how_many_and_no_more() -> None:
    kept = Kept([step(0, 0), step(1, 3), step(2, 3)])
    assert [kept.kept(1, n) for n in range(3)] == [True, None, None]
    cache = cache_of(step(1, 3))
    assert cache is not None
    assert (cache.kept, cache.freed, round(cache.share, 3)) == (50, 3, 0.943)


@pytest.mark.parametrize(
    "ranges", [[[3, 2], [7, 10]], [[1, 3], [2, 4]], [[2, 2], [3, 7]], [[5, 7], [4, 6]], [[0, 2], [0, 2]]], ids=str
)
def test_ranges_that_are_none_are_not_believed(ranges: list[list[int]]) -> None:
    kept = Kept([step(3, 4, left=ranges)])
    assert kept.kept(50) is None
    assert kept.kept(50, 2) is True


@pytest.mark.parametrize("kv", [None, 3, {"kept": 4}, {"kept": -1, "freed": 2, "share": 0}, {"kept": 1, "freed": 1,
    "share": 1, "left": [[1]]}, {"kept": 1, "freed": 1, "share": 1, "gone": "all"}], ids=str)  # fmt: skip
def test_what_cannot_be_read_changes_nothing(kv: Any) -> None:
    one = {"tokenIndex": 5, "kv": kv}
    assert cache_of(one) is None
    assert Kept([step(4, 2, left=[[2, 4]]), one]).gone() == [(2, 4)]


def test_a_step_without_it_says_nothing() -> None:
    assert cache_of({"tokenIndex": 1}) is None
    assert Kept([{"tokenIndex": 1}]).kept(3) is True
