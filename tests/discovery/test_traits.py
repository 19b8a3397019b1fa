"""A trait that holds only beside the other fingerprints never says the opposite of what a cluster does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geomcli.discovery.traits import traits_of
from geomcli.fingerprint import BIN_ENTROPY, LOCAL, LONG, fingerprints_from_histograms


def constant(place: int, value: float, n: int = 20) -> np.ndarray:
    rows = np.zeros((n, 20))
    rows[:, place] = value
    return rows


@pytest.mark.parametrize(("value", "others", "named"), [
    (0.9, 0.99, ["diffuse"]),  # all the same, though it is standard deviations below the others
    (0.6, 0.99, ["focused"]),
    (0.3, 0.1, ["focused"]),  # though above the others
    (0.6, 0.1, ["diffuse"]),
])  # fmt: skip
def test_entropy_beside_that_of_the_others(value: float, others: float, named: list[str]) -> None:
    members = constant(BIN_ENTROPY, value)
    found = {t.name: t for t in traits_of(members, np.concatenate([members, constant(BIN_ENTROPY, others, 60)]))}
    assert list(found) == named
    assert abs(found[named[0]].deviations) >= 1


@pytest.mark.parametrize(("place", "value", "holds"), [
    (LOCAL, 0.29, False), (LOCAL, 0.31, True), (LONG, 0.14, False), (LONG, 0.16, True),
])  # fmt: skip
def test_a_distance_with_next_to_nothing_is_no_trait(place: int, value: float, holds: bool) -> None:
    members = constant(place, value)
    found = traits_of(members, np.concatenate([members, constant(place, 0.0, 60)]))
    assert ({"local_attention", "context_aware"} & {t.name for t in found} != set()) == holds


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 20), st.floats(0.05, 20))
def test_never_focused_and_diffuse(seed: int, own: float, other: float) -> None:
    random = np.random.default_rng(seed)
    members = fingerprints_from_histograms(random.dirichlet(np.full(16, own), 30))
    others = fingerprints_from_histograms(random.dirichlet(np.full(16, other), 30))
    names = {t.name for t in traits_of(members, np.concatenate([members, others]))}
    assert not names >= {"focused", "diffuse"}
    mean = members[:, BIN_ENTROPY].mean()
    assert "focused" not in names or mean < 0.70
    assert "diffuse" not in names or mean > 0.40
