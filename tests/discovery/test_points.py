"""Which fingerprints are learned from: of one model, of the traffic or of traces, spread over what is stored."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from geomcli.compass import DRIFT_WINDOW
from geomcli.discovery import points
from geomcli.errors import GeomError
from geomcli.fingerprint import fingerprints_from_histograms, pack
from geomcli.store import Store
from tests.discovery.made_points import filled, planted
from tests.library.made_traces import LOCAL, LONG, entry, records


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "t.db")


def test_traffic_is_read_as_it_was_stored(store: Store) -> None:
    fingerprints, _ = planted(20)
    filled(store.path, fingerprints)
    found = points.stored(store)
    np.testing.assert_allclose(found.fingerprints, fingerprints, atol=1e-6)
    assert (found.origin, found.stored, found.model) == ("traffic", len(fingerprints), "made")
    assert found.requests[:11] == ["r0"] * 10 + ["r1"]
    assert found.steps[:11].tolist() == [*range(10), 0]


def test_traces_where_there_is_no_traffic(store: Store) -> None:
    store.add(records([entry(1, "a", LOCAL, ripple=0.7), entry(2, "b", LONG), entry(3, "c")], trace_id="t"))
    found = points.stored(store)
    assert (found.origin, found.requests, found.steps.tolist()) == ("traces", ["t", "t"], [0, 1])
    assert found.ripples[0] == 0.7
    assert np.isnan(found.ripples[1])
    filled(store.path, planted(1, noise=0)[0])
    assert points.stored(store).origin == "traffic"
    assert points.stored(store, origin="traces").requests == ["t", "t"]


def test_one_model_at_a_time(store: Store) -> None:
    fingerprints, _ = planted(20)
    filled(store.path, fingerprints[:30], model="small")
    filled(store.path, fingerprints, model="large")
    assert points.models_of(store) == [("large", len(fingerprints)), ("small", 30)]
    assert points.stored(store).model == "large"
    assert len(points.stored(store, "small")) == 30
    with pytest.raises(
        GeomError, match=r"no fingerprint of .other.; there are some of: large, small\. Try: --model large"
    ):
        points.stored(store, "other")


def test_nothing_stored_says_how_to_store_something(store: Store) -> None:
    with pytest.raises(GeomError, match=r"holds no fingerprints\. Try: geom serve --attention-sidecar-url"):
        points.stored(store)


def test_many_are_thinned_evenly(store: Store) -> None:
    fingerprints, _ = planted(100)
    filled(store.path, fingerprints)
    found = points.stored(store, most=50)
    assert len(found) == 50
    assert found.stored == len(fingerprints)
    gaps = np.diff([int(name[1:]) for name in found.requests])
    assert gaps.max() <= 2
    assert found.requests[0] == "r0"
    assert found.requests[-1] == f"r{(len(fingerprints) - 1) // 10}"


def test_a_request_is_the_mean_of_its_tokens(store: Store) -> None:
    fingerprints, _ = planted(20, noise=0)
    filled(store.path, fingerprints)
    found = points.stored(store, unit="request")
    assert found.requests == [f"r{n}" for n in range(10)]
    np.testing.assert_allclose(found.fingerprints[3], fingerprints[30:40].mean(axis=0), atol=1e-6)
    assert set(found.steps.tolist()) == {-1}
    assert len(points.stored(store, unit="request", most=4)) == 4


def test_damaged_fingerprints_are_left_out(store: Store) -> None:
    good, _ = planted(4, noise=0)
    filled(store.path, good)
    bad = {"short": b"abc", "nan": pack(np.full(20, np.nan)), "empty": pack(np.zeros(20))}
    store.insert({"fingerprints": [
        {"model": "made", "request_id": name, "decode_step": 1, "created": 1, "fingerprint": blob}
        for name, blob in bad.items()
    ]})  # fmt: skip
    assert len(points.stored(store)) == len(good)


@pytest.mark.parametrize("unit", ["token", "request"])
def test_choosing_from_many_does_not_read_them_all(store: Store, unit: points.Unit) -> None:
    blobs = [pack(row) for row in planted(20)[0]]
    store.insert({"fingerprints": [
        {"model": "m", "request_id": f"r{at // 20}", "decode_step": at % 20 + 1, "created": at,
         "fingerprint": blobs[at % len(blobs)]}
        for at in range(100_000)
    ]})  # fmt: skip
    tracemalloc.start()
    found = points.stored(store, unit=unit, most=300)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(found), found.stored, found.requests[0], found.requests[-1]) == (300, 100_000, "r0", "r4999")
    assert peak < 15e6  # the ids alone, as rows, are 25 MB


def test_windows_are_consecutive_tokens_of_one_request(store: Store) -> None:
    fingerprints, _ = planted(60, noise=0)
    filled(store.path, fingerprints, tokens=15)
    for unit in ("token", "request"):
        windows = points.stored(store, unit=unit, most=20).windows  # type: ignore[arg-type]
        assert windows.shape == (20 * 6, DRIFT_WINDOW, 20)  # tokens 10 to 15 of each of 20 requests
        np.testing.assert_allclose(windows[0], fingerprints[:10], atol=1e-6)
        np.testing.assert_allclose(windows[-1], fingerprints[-10:], atol=1e-6)


def test_windows_skip_what_is_not_sound_and_need_ten_tokens(store: Store) -> None:
    fingerprints, _ = planted(4, noise=0)
    filled(store.path, fingerprints[:9])
    assert len(points.stored(store).windows) == 0
    store.insert({"fingerprints": [
        {"model": "made", "request_id": "r0", "decode_step": step, "created": 1, "fingerprint": blob}
        for step, blob in ((10, pack(np.zeros(20))), (12, pack(fingerprints[10])))
    ]})  # fmt: skip
    (window,) = points.stored(store).windows
    np.testing.assert_allclose(window, fingerprints[[*range(9), 10]], atol=1e-6)


def test_windows_of_traces_take_the_first_layer(store: Store) -> None:
    store.add(records([entry(n, "t", LOCAL) for n in range(1, 13)], trace_id="t"))
    other = pack(fingerprints_from_histograms(LONG[None])[0])
    rows = [{"trace_id": "t", "output_index": at, "layer": 3, "fingerprint": other} for at in range(12)]
    store.insert({"steps": rows})
    windows = points.stored(store).windows
    assert len(windows) == 2 * 3  # one up to each layer's fingerprint of the last three tokens
    local = fingerprints_from_histograms(LOCAL[None])[0]
    np.testing.assert_allclose(windows, np.broadcast_to(local, windows.shape), atol=1e-6)
