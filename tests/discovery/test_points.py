"""Which fingerprints are learned from: of one model, of the traffic or of traces, spread over what is stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from geomcli.discovery import points
from geomcli.errors import GeomError
from geomcli.fingerprint import pack
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
