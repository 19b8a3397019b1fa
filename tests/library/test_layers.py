"""Views of a step's layers: each with its own histogram where it has one, the request's where it does not."""

from __future__ import annotations

import numpy as np
import pytest

from geomcli.layers import LogitStats, head_stats, layer_views, logit_stats, request_view
from geomcli.trace import step_record
from tests.library.made_traces import LOCAL, LONG, MID, entry, numbers

RAW = {str(n): {**numbers(hist), "sink_mass": 0.2, "entropy_bits": 3.0} for n, hist in ((9, LOCAL), (18, LONG))}


def step(hist: np.ndarray | None = MID, **more: object) -> dict[str, object]:
    return step_record(0, entry(1, "a", hist, **more))  # type: ignore[arg-type]


def test_raw_layers_have_their_own_histograms() -> None:
    low, high = layer_views(step(layer_id=18, mode="raw", layers=RAW))
    assert (low.layer, high.layer) == (9, 18)
    assert low.histogram == pytest.approx(LOCAL)
    assert high.decision is not None
    assert (high.decision.zone, high.sink_mass, high.entropy_bits) == ("long_range", 0.2, 3.0)


def test_sketches_have_histograms_that_are_normalised() -> None:
    sketch = {"7": {"top_hubs": [], "dist_hist": (MID * 0.5).tolist(), "entropy": 2.5, "sink_mass": 0.1}}
    (view,) = layer_views(step(layer_id=7, mode="sketch", layer_sketches=sketch))
    assert view.histogram == pytest.approx(MID, abs=1e-5)
    assert view.entropy_bits == 2.5


def test_one_captured_layer_has_the_requests_fingerprint() -> None:
    (view,) = layer_views(step(layer_id=29))
    assert view.layer == 29
    assert view.histogram == pytest.approx(MID, abs=1e-5)


def test_a_fingerprint_of_unnamed_layers_is_no_layers() -> None:
    record = step()
    del record["layer_id"]
    (view,) = layer_views(record)
    assert view.layer is None
    whole = request_view(record)
    assert whole is not None
    assert whole.histogram == pytest.approx(MID, abs=1e-5)


def test_without_numbers_there_is_nothing() -> None:
    assert layer_views(step(None)) == []
    assert request_view(step(None)) is None
    assert layer_views(step(MID, flags=["empty"])) == []


@pytest.mark.parametrize(
    "broken",
    [{}, {"fingerprint": [1.0]}, {"fingerprint": "x"}, {"dist_hist": [0.0] * 16}, {"dist_hist": [1.0]}, None, 3],
)
def test_a_layer_that_cannot_be_read_has_no_histogram(broken: object) -> None:
    (view,) = layer_views(step(layer_id=9, mode="raw", layers={"9": broken}))
    assert view.histogram is None
    assert view.decision is None


def test_head_statistics() -> None:
    stats = {"29": {"entropy": [1.0, 2.0], "sink": [0.1, 0.2], "prev": [0.0, 0.5], "lookback": [0.4, 0.6]}}
    found = head_stats(step(head_stats=stats))
    assert found is not None
    assert found.lookback == [0.4, 0.6]
    assert head_stats(step(head_stats=stats), 9) is None
    assert head_stats(step(head_stats={"29": {"entropy": "x"}})) is None
    assert head_stats(step(head_stats=[1])) is None
    assert head_stats(step()) is None


def test_logit_statistics() -> None:
    stats = {"logprob": -0.5, "entropy_bits": 2.0, "margin": 1.0}
    assert logit_stats({"logit_stats": stats, "zone": "unknown"}) == LogitStats(**stats)
    for odd in (None, 3, {}, {**stats, "margin": None}, {**stats, "logprob": "x"}):
        assert logit_stats({"logit_stats": odd}) is None
    assert logit_stats({}) is None
