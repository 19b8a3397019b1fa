"""Groups of fingerprints: planted ones are found, noise is none, later fingerprints are given to them."""

from __future__ import annotations

import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geomcli.clusters import NOISE, SMALLEST, Clusters, distances, find, smallest_group
from geomcli.errors import GeomError
from geomcli.fingerprint import fingerprint_from_histogram


def planted(sizes: tuple[int, ...], noise: int, seed: int = 0, spread: float = 0.02) -> tuple[np.ndarray, np.ndarray]:
    """(fingerprints, what was planted, -1 for noise), in random order."""
    random = np.random.default_rng(seed)
    centres = np.eye(16)[np.linspace(0, 15, len(sizes)).astype(int)] * 0.8 + 0.2 / 16
    rows, of = [], []
    for number, size in enumerate(sizes):
        for _ in range(size):
            hist = (1 - spread) * centres[number] + spread * random.dirichlet(np.ones(16))
            rows.append(fingerprint_from_histogram(hist))
            of.append(number)
    for _ in range(noise):
        rows.append(fingerprint_from_histogram(random.dirichlet(np.ones(16))))
        of.append(NOISE)
    order = random.permutation(len(rows))
    return np.array(rows)[order], np.array(of)[order]


def agreement(found: np.ndarray, expected: np.ndarray) -> float:
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(expected, found))


@pytest.mark.parametrize("seed", range(3))
def test_planted_groups_are_found_the_largest_first(seed: int) -> None:
    fingerprints, of = planted((300, 200, 120, 80, 60), 60, seed)
    found = find(fingerprints)
    assert len(found) == 5
    assert found.sizes.tolist() == sorted(found.sizes.tolist(), reverse=True)
    assert agreement(found.labels, of) >= 0.95
    assert found.noise == pytest.approx(60 / 820, abs=0.03)
    for label in range(5):
        inside = fingerprints[found.labels == label]
        assert np.abs(inside - found.medoids[label]).max(axis=1).min() < 1e-6


def test_more_than_a_sample_is_assigned_and_agrees_with_all() -> None:
    fingerprints, of = planted((900, 600, 300), 100)
    sampled, whole = find(fingerprints, sample=600), find(fingerprints, sample=5000)
    assert len(sampled.labels) == len(fingerprints)
    assert agreement(sampled.labels, of) >= 0.95
    assert agreement(sampled.labels, whole.labels) >= 0.95


def test_later_fingerprints_join_the_group_they_lie_in_or_none() -> None:
    fingerprints, _ = planted((100, 100, 100), 0)
    found = find(fingerprints)
    for label in range(3):
        inside = fingerprints[found.labels == label]
        # Between two members one is never farther from the medoid than the farther of the two.
        between = (inside[:-1] + inside[1:]) / 2
        assert found.assign(between).tolist() == [label] * len(between)
    far = np.array([fingerprint_from_histogram(np.ones(16) / 16), np.full(20, np.nan)])
    assert found.assign(far).tolist() == [NOISE, NOISE]
    assert found.assign(np.zeros((0, 20))).tolist() == []


@pytest.mark.parametrize("n", [0, 1, 2 * SMALLEST - 1])
def test_too_few_are_no_group(n: int) -> None:
    fingerprints, _ = planted((n,), 0) if n else (np.zeros((0, 20)), None)
    found = find(fingerprints)
    assert len(found) == 0
    assert found.labels.tolist() == [NOISE] * n
    assert found.assign(np.zeros((2, 20))).tolist() == [NOISE] * 2


def test_rows_without_numbers_are_in_none_and_change_nothing() -> None:
    fingerprints, _ = planted((60, 60), 0)
    holed = np.insert(fingerprints, [0, 50, 120], np.nan, axis=0)
    plain, found = find(fingerprints), find(holed)
    kept = np.isfinite(holed).all(axis=1)
    assert found.labels[~kept].tolist() == [NOISE] * 3
    assert found.labels[kept].tolist() == plain.labels.tolist()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(10, 80), st.booleans())
def test_whatever_there_is_every_member_is_within_its_radius(seed: int, n: int, same: bool) -> None:
    random = np.random.default_rng(seed)
    hists = np.repeat(random.dirichlet(np.ones(16), 1), n, axis=0) if same else random.dirichlet(np.ones(16), n)
    fingerprints = np.array([fingerprint_from_histogram(hist) for hist in hists])
    found = find(fingerprints)
    again = find(fingerprints)
    assert found.labels.tolist() == again.labels.tolist()
    assert found.smallest == smallest_group(n)
    assert all(size >= found.smallest for size in found.sizes.tolist())
    members = np.flatnonzero(found.labels != NOISE)
    # A member may lie within the radius of a group that is nearer by its medoid, but of one it always does.
    assert (found.assign(fingerprints[members]) != NOISE).all()


def test_without_scikit_learn_it_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(GeomError, match=r"clusters need scikit-learn.*geomcli\[discover\]"):
        find(np.zeros((20, 20)))


def test_distances_of_nearly_equal_rows_keep_their_digits() -> None:
    random = np.random.default_rng(0)
    medoid = random.normal(0, 30, (1, 20))
    z = medoid + np.linspace(0, 1e-7, 50)[:, None] / np.sqrt(20)
    np.testing.assert_allclose(distances(z, medoid)[:, 0], np.linspace(0, 1e-7, 50), atol=1e-13)
    assert distances(medoid, medoid)[0, 0] == 0


def test_many_fingerprints_and_groups_take_little_memory() -> None:
    random = np.random.default_rng(0)
    f, medoids = random.random((20_000, 20)), random.random((400, 20))
    groups = Clusters(np.zeros(0, np.int64), medoids, np.full(400, 2.0), np.zeros(20), np.ones(20), 5)
    tracemalloc.start()
    labels = groups.assign(f)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6  # differences of all to all are 1.3 GB, distances 64 MB
    nearest = ((f[:200, None] - medoids[None]) ** 2).sum(axis=2).argmin(axis=1)
    assert labels[:200].tolist() == nearest.tolist()


def one_kind(n: int, stray: float, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    weights = np.full(16, 0.5)
    weights[:2] = 60
    hists = [random.dirichlet(weights, n), random.dirichlet(np.full(16, 0.3), round(n * stray))]
    return np.array([fingerprint_from_histogram(hist) for hist in np.concatenate(hists)])


@pytest.mark.parametrize("seed", range(5))
def test_one_kind_is_one_group_where_that_is_asked_for(seed: int) -> None:
    fingerprints = one_kind(300, 0.1, seed)
    assert len(find(fingerprints)) == 0
    found = find(fingerprints, single=True)
    assert (len(found), found.one_kind) == (1, True)
    assert (found.labels[:300] == 0).mean() >= 0.99
    assert (found.labels[300:] == NOISE).mean() >= 0.9
    assert (found.assign(fingerprints[found.labels == 0]) == 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_what_has_no_structure_is_no_group(seed: int) -> None:
    random = np.random.default_rng(seed)
    share = random.random((400, 1))
    line = share * np.eye(16)[1] + (1 - share) * np.eye(16)[9]
    for hists in (random.dirichlet(np.ones(16), 400), 0.9 * line + 0.1 * random.dirichlet(np.ones(16), 400)):
        found = find(np.array([fingerprint_from_histogram(hist) for hist in hists]), single=True)
        assert len(found) == 0
        assert not found.one_kind
    assert not find(one_kind(200, 1.2, seed), single=True).one_kind  # most are strays


def test_planted_groups_are_the_same_where_one_would_do() -> None:
    fingerprints, _ = planted((300, 200, 120), 60)
    plain, found = find(fingerprints), find(fingerprints, single=True)
    assert found.labels.tolist() == plain.labels.tolist()
    assert not found.one_kind
