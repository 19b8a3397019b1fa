"""No group is on two sides, whatever the groups are."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from geomcli.evaluation import cards, facts
from geomcli.evaluation.fitting import inner
from geomcli.evaluation.splits import folds, parts

MEMBERS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), min_size=1, max_size=60)


@given(MEMBERS, st.integers(0, 2**32 - 1))
def test_no_group_is_on_two_sides(members: list[tuple[int, int]], seed: int) -> None:
    groups, domains = np.array([f"g{g}" for g, _ in members]), np.array([f"d{d}" for _, d in members])
    split = parts(groups, domains, seed)
    assert (split.train.astype(int) + split.val + split.test == 1).all()
    sides = [set(groups[side]) for side in (split.train, split.val, split.test)]
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert not sides[1] & sides[2]
    fold = folds(groups, domains, seed)
    assert all(len(set(fold[groups == group])) == 1 for group in groups)
    fitted, chosen = inner(np.arange(len(groups)), groups, domains, seed)
    assert len(fitted) + len(chosen) == len(groups)
    assert not set(groups[fitted]) & set(groups[chosen])


def test_the_shares_of_each_domain_are_those_that_are_stated() -> None:
    groups = np.array([f"g{i}" for i in range(400)])
    domains = np.array(["a"] * 300 + ["b"] * 100)
    split = parts(groups, domains, 0)
    for name in ("a", "b"):
        inside = domains == name
        assert np.allclose([split.train[inside].mean(), split.val[inside].mean(), split.test[inside].mean()],
                           [0.5, 0.2, 0.3], atol=0.01)  # fmt: skip
        assert np.ptp(np.bincount(folds(groups, domains, 0)[inside])) <= 1
    again = parts(groups, domains, 0)
    assert (again.test == split.test).all()
    assert (parts(groups, domains, 1).test != split.test).any()


def test_wordings_of_a_fact_share_a_group_and_ids_are_unique() -> None:
    pool = facts.pool()
    assert len({item.id for item in pool}) == len(pool)
    assert len({(item.kind, item.id.rsplit(":", 1)[0]) for item in pool}) >= 1000
    by_fact: dict[str, set[str]] = {}
    for item in pool:
        by_fact.setdefault(item.id.rsplit(":", 1)[0], set()).add(item.group)
    assert all(len(groups) == 1 for groups in by_fact.values())
    assert max(len([i for i in pool if i.id.startswith(f"{fact}:")]) for fact in list(by_fact)[:20]) > 1


def test_no_two_questions_are_the_same_with_another_answer() -> None:
    answers: dict[str, tuple[str, ...]] = {}
    for item in [*facts.pool(), *cards.draw(300, 0)]:
        assert answers.setdefault(item.prompt, item.answer) == item.answer, item.prompt


def test_a_draw_is_even_over_kinds_and_is_the_same_for_a_seed() -> None:
    drawn = facts.draw(280, 3)
    counts = np.unique([item.kind for item in drawn], return_counts=True)[1]
    assert np.ptp(counts) <= 1
    assert drawn == facts.draw(280, 3)
    assert drawn != facts.draw(280, 4)
    assert len({item.id.rsplit(":", 1)[0] for item in drawn}) == 280
    assert len(facts.draw(10**6, 0)) == len(facts.pool())


def test_a_card_holds_what_its_kind_says() -> None:
    for item in cards.draw(200, 1):
        text = item.prompt.split("Text: ")[1].split("\n\nQuestion:")[0]
        assert item.stated
        if item.kind == "card_absent":
            assert item.match == "refusal"
        else:
            assert text.count(item.answer[0]) == 1
        assert all(other in text for other in item.others)
        if item.kind == "card_conflict":
            source = item.question.split(",")[0].removeprefix("According to ")
            stated = next(s for s in text.split(". ") if f"According to {source}," in s)
            assert item.answer[0] in stated
            assert len(item.others) == 2
