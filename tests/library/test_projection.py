"""The map of fingerprints: what PCA promises, on data of any size and any flatness."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from geomcli.fingerprint import fingerprints_from_histograms
from geomcli.projection import fit
from tests.library.made_traces import LOCAL, LONG, MID

any_rows = arrays(np.float64, st.tuples(st.integers(0, 8), st.just(20)), elements=st.floats(0, 1) | st.just(np.nan))


def fingerprints(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return fingerprints_from_histograms(rng.dirichlet(np.full(16, 0.4), n))


@given(any_rows, st.integers(1, 3))
def test_any_rows_give_a_map(rows: np.ndarray, dimensions: int) -> None:
    made = fit(rows, dimensions)
    finite = np.isfinite(rows).all(axis=1)
    places = made.project(rows)
    assert places.shape == (rows.shape[0], dimensions)
    assert np.isfinite(places[finite]).all()
    assert np.isnan(places[~finite]).all()
    assert made.n == finite.sum()
    assert (made.explained >= 0).all()
    assert made.explained.sum() <= 1 + 1e-9
    assert (np.diff(made.explained) <= 1e-12).all()
    gram = made.components @ made.components.T
    assert np.allclose(gram, np.diag((made.deviations > 0).astype(float)), atol=1e-9)


@given(st.integers(3, 60))
def test_the_same_numbers_as_a_singular_value_decomposition(n: int) -> None:
    f = fingerprints(n, seed=n).astype(np.float64)
    made = fit(f)
    z = (f - f.mean(axis=0)) / np.maximum(f.std(axis=0), 1e-3)
    _, s, vt = np.linalg.svd(z, full_matrices=False)
    assert made.explained == pytest.approx((s**2 / (s**2).sum())[:2], abs=1e-9)
    assert np.abs((made.components * vt[:2]).sum(axis=1)) == pytest.approx([1, 1], abs=1e-6)
    assert made.project(f).std(axis=0) == pytest.approx(made.deviations)


def test_the_sign_does_not_depend_on_the_order_of_rows() -> None:
    f = fingerprints(40)
    one, other = fit(f), fit(f[::-1])
    assert np.allclose(one.components, other.components, atol=1e-9)
    size = np.abs(one.components)
    assert (one.components[[0, 1], size.argmax(axis=1)] > 0).all()


def test_too_few_or_equal_rows_are_a_point() -> None:
    for rows in (np.zeros((0, 20)), fingerprints(1), np.repeat(fingerprints(1), 5, axis=0)):
        made = fit(rows)
        assert (made.project(rows) == 0).all()
        assert (made.explained == 0).all()
        assert made.name(0) == "mixed"
        assert made.directions(1) == ("no named feature", "no named feature")
    two = fit(fingerprints(2))
    assert two.explained == pytest.approx([1, 0])


def test_a_component_that_hardly_varies_is_not_blown_up() -> None:
    f = fingerprints(50).astype(np.float64)
    f[:, 19] = 1e-7 * np.arange(50)
    assert abs(fit(f).components[0, 19]) < 1e-3


def test_a_new_point_lies_where_it_would_have_lain() -> None:
    f = fingerprints(30)
    made = fit(f)
    assert made.project(f[7:8]) == pytest.approx(made.project(f)[7:8])


def test_axes_in_words() -> None:
    rng = np.random.default_rng(2)
    shares = rng.uniform(0, 1, 80)[:, None]
    made = fit(fingerprints_from_histograms(shares * LOCAL + (1 - shares) * LONG))
    assert set(made.name(0).split(" ↔ ")) == {"local", "long-range"}
    plus, minus = made.directions(0)
    assert ("more local" in plus, "less long-range" in plus) in ((True, True), (False, False))
    assert ("more local" in plus) != ("more local" in minus)
    assert len(plus.split(", ")) == len(minus.split(", "))
    assert "of the variance of 80 fingerprints" in made.describe(0)
    far = made.project(fingerprints_from_histograms(np.stack([LOCAL, LONG])))[:, 0]
    towards_local = "more local" in plus
    assert (far[0] > far[1]) == towards_local


def test_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(n, 20\)"):
        fit(np.zeros((3, 16)))
    assert fit(fingerprints_from_histograms(np.stack([LOCAL, MID]))).n == 2
