"""Laws of the fingerprint, on random rows and on the two extremes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from geomcli import fingerprint as fp

rows = hnp.arrays(np.float64, st.integers(1, 400), elements=st.floats(0, 1)).filter(lambda a: a.sum() > 0.01)


def naive_bin(distance: int) -> int:
    return 0 if distance < 2 else min(15, math.floor(math.log2(distance) + 1e-12))


def test_bins_of_every_small_distance_and_every_edge() -> None:
    edges = [2**b + delta for b in range(1, 40) for delta in (-1, 0, 1)]
    for distance in [*range(3000), *edges]:
        expected = 0 if distance < 2 else min(15, distance.bit_length() - 1)
        assert int(fp.distance_bin(distance)) == expected
    for b, (first, last) in enumerate(fp.bin_edges()):
        assert int(fp.distance_bin(first)) == b
        if last is not None:
            assert int(fp.distance_bin(last)) == b
            assert int(fp.distance_bin(last + 1)) == b + 1


def test_a_negative_distance_is_refused() -> None:
    with pytest.raises(ValueError, match="distance must be >= 0"):
        fp.distance_bin(np.array([3, -1]))


@given(rows, st.integers(0, 8))
def test_histogram_bands_and_entropy(row: np.ndarray, sinks: int) -> None:
    p = row / row.sum()
    m = len(p) - 1
    hist = fp.distance_histogram(p, m, sink_tokens=sinks)
    expected = np.zeros(16)
    for n, value in enumerate(p):
        if n >= sinks:
            expected[naive_bin(m - n)] += value
    if expected.sum() > 0:
        assert hist == pytest.approx(expected / expected.sum(), abs=1e-12)
        assert hist.sum() == pytest.approx(1)
    else:
        assert not hist.any()
    f = fp.fingerprint_from_histogram(hist).astype(float)
    assert f.shape == (20,)
    assert f[fp.LOCAL] + f[fp.MID] + f[fp.LONG] == pytest.approx(hist.sum(), abs=1e-6)
    assert f[fp.LOCAL] == pytest.approx(hist[:3].sum(), abs=1e-6)
    assert f[fp.LONG] == pytest.approx(hist[8:].sum(), abs=1e-6)
    assert 0 <= f[fp.BIN_ENTROPY] <= 1


def test_entropy_of_the_extremes() -> None:
    one_hot = np.eye(16)[5]
    assert fp.bin_entropy(one_hot) == 0
    assert fp.bin_entropy(np.full(16, 1 / 16)) == pytest.approx(1)
    assert fp.bin_entropy(np.zeros(16)) == 0


@given(rows, st.integers(0, 50))
def test_keys_before_the_first_do_not_exist(row: np.ndarray, first: int) -> None:
    p = row / row.sum()
    m = len(p) + first - 1
    whole = np.concatenate([np.zeros(first), p])
    cut = fp.distance_histogram(p, m, first_key=first)
    assert cut == pytest.approx(fp.distance_histogram(whole, m), abs=1e-12)


@given(hnp.arrays(np.float32, 20, elements=st.floats(0, 1, width=32)))
def test_pack_and_unpack_are_inverse(f: np.ndarray) -> None:
    blob = fp.pack(f)
    assert len(blob) == 80
    assert (fp.unpack(blob) == f).all()
    assert fp.pack(fp.unpack(blob)) == blob


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="80 bytes"):
        fp.unpack(b"\0" * 64)
    with pytest.raises(ValueError, match=r"\(20,\)"):
        fp.pack(np.zeros(16))
    with pytest.raises(ValueError, match=r"\(16,\)"):
        fp.fingerprint_from_histogram(np.zeros(20))


@given(st.lists(st.integers(1, 32), min_size=1, max_size=5))
def test_mean_of_layers_is_weighted_by_heads(heads: list[int]) -> None:
    rng = np.random.default_rng(sum(heads))
    hists = rng.dirichlet(np.ones(16), len(heads))
    mean = fp.mean_histogram(hists, np.array(heads))
    assert mean == pytest.approx(sum(w * h for w, h in zip(heads, hists, strict=True)) / sum(heads))
    with_empty = fp.mean_histogram(np.vstack([hists, np.zeros(16)]), np.array([*heads, 7]))
    assert with_empty == pytest.approx(mean)


@given(st.floats(1e-30, 1e30))
def test_six_digits_survive_float32(value: float) -> None:
    six = fp.round_significant(value)
    assert fp.round_significant(float(np.float32(six))) == six
