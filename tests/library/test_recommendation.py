"""Recommendations: the zone settles by majority, its evidence is the rules', and a log says what would have changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geomcli.recommendation import (
    MAJORITY,
    WINDOW,
    Advice,
    Change,
    capture_mode,
    changes,
    decisions,
    recommend,
    settle,
)
from geomcli.zones import UNKNOWN, ZONE_NAMES, ZONES_V1
from tests.library.made_traces import FLAT, LOCAL, LONG, MID, trace

zone_lists = st.lists(st.sampled_from(ZONE_NAMES), max_size=30)


def steps_of(*hists: Any, **more: Any) -> list[dict[str, Any]]:
    return [step | more for step in trace(["x"] * len(hists), hists).steps]


def named(zones: list[str]) -> list[dict[str, Any]]:
    return [step | {"zone": zone} for step, zone in zip(steps_of(*[LOCAL] * len(zones)), zones, strict=True)]


@given(zone_lists)
def test_the_zone_follows_a_majority_and_nothing_else(zones: list[str]) -> None:
    settled = settle(named(zones))
    assert len(settled) == len(zones)
    before = UNKNOWN
    for n, now in enumerate(settled):
        window = zones[max(0, n + 1 - WINDOW) : n + 1]
        majority = [zone for zone in set(window) if window.count(zone) >= MAJORITY]
        assert now.zone == (majority[0] if majority else before)
        assert (now.votes, now.of) == (window.count(now.zone), len(window))
        before = now.zone


def test_one_odd_step_does_not_move_the_zone() -> None:
    zones = ["diffuse"] * 5 + ["long_range"] + ["diffuse"] * 2
    assert {s.zone for s in settle(named(zones))[2:]} == {"diffuse"}
    assert [s.zone for s in settle(named(["diffuse", "long_range"]))] == [UNKNOWN, UNKNOWN]


def test_steps_without_numbers_do_not_vote() -> None:
    steps = steps_of(LOCAL, None, LOCAL, None, LOCAL)
    assert [(s.token_index, s.zone) for s in settle(steps)][-1] == (4, "syntax_floor")
    assert recommend(steps_of(None)) is None
    assert recommend([]) is None


@pytest.mark.parametrize(
    ("hist", "zone", "temperature", "top_p", "capture"),
    [
        (LOCAL, "syntax_floor", 0.3, 0.90, "fingerprint"),
        (MID, "semantic_bridge", 0.6, 0.95, "fingerprint"),
        (LONG, "long_range", 0.7, 0.95, "sketch"),
        (FLAT, "diffuse", 0.8, 0.98, "raw"),
    ],
)
def test_settings_are_those_of_the_zone(hist: Any, zone: str, temperature: float, top_p: float, capture: str) -> None:
    made = recommend(steps_of(*[hist] * 5))
    assert made is not None
    assert made.settled.zone == zone
    assert made.advice == Advice(temperature, top_p, capture)  # type: ignore[arg-type]
    assert made.reasons[0] == f"5 of the last 5 steps are in {zone}."
    rule = next(rule for rule in ZONES_V1.rules if rule.zone == zone)
    assert (made.cache, made.action) == (rule.cache, rule.action)


def test_evidence_is_the_mean_of_the_window() -> None:
    steps = steps_of(*[FLAT] * 20, LOCAL, LOCAL, MID, LOCAL, MID, ripple=0.4)
    made = recommend(steps)
    assert made is not None
    mean = np.mean([step["fingerprint"] for step in steps[-5:]], axis=0)
    values = {e.metric: (e.value, e.threshold, e.margin) for e in made.evidence}
    assert set(values) == {"local", "mid", "long", "ripple", "bin_entropy"}
    assert values["local"] == pytest.approx((mean[0], 0.6, (mean[0] - 0.6) / 0.4))
    assert values["ripple"] == pytest.approx((0.4, 0.6, -0.5))
    none = recommend(steps_of(LOCAL))
    assert none is not None
    assert next(e.value for e in none.evidence if e.metric == "ripple") is None


def test_an_unknown_zone_keeps_the_requests_own_sampling() -> None:
    made = recommend(steps_of(LOCAL, MID))
    assert made is not None
    assert made.advice == Advice(None, None, "fingerprint")
    assert "keeps its own sampling" in made.reasons[0]
    assert made.settled.confidence == 0


def test_a_warning_asks_for_links() -> None:
    made = recommend(steps_of(*[LOCAL] * 5, compass="WARN"))
    assert made is not None
    assert made.advice.capture == "raw"
    assert "The compass warns" in made.reasons[-1]


def test_only_what_the_server_lets_out() -> None:
    made = recommend(steps_of(*[FLAT] * 5), modes=["fingerprint"])
    assert made is not None
    assert made.advice.capture == "fingerprint"
    assert "lets out only fingerprint" in made.reasons[-1]


def test_thresholds_of_another_ruleset_are_not_guessed() -> None:
    made = recommend(steps_of(*[LOCAL] * 5), classified_by="zones-v1+")
    assert made is not None
    assert made.evidence == ()
    assert "zones-v1+" in " ".join(made.reasons)


def test_the_log_has_each_change_and_what_it_would_have_changed() -> None:
    steps = steps_of(*[LOCAL] * 5, *[MID] * 5, MID, LONG, MID)
    sampling = {"temperature": 0.6, "attention_fingerprint_mode": True}
    log = decisions(steps, sampling, times_ms={2: 1000})
    assert [(d.token_index, d.zone, d.time_ms) for d in log] == [
        (2, "syntax_floor", 1000),
        (7, "semantic_bridge", None),
    ]
    assert log[0].changes == (Change("temperature", 0.6, 0.3), Change("top_p", None, 0.9))
    assert log[1].changes == (Change("top_p", None, 0.95),)
    assert str(log[0]) == (
        f"#2 · syntax_floor · {log[0].confidence:.2f} · standard · would have changed: "
        "temperature 0.6 → 0.3, top_p unset → 0.9"
    )
    assert decisions([], sampling) == []


def test_the_mode_that_a_request_asked_for() -> None:
    assert capture_mode({"attention_fingerprint_mode": True}) == "fingerprint"
    assert capture_mode({"attention_fingerprint_only": True}) == "fingerprint"
    assert capture_mode({"attention_fingerprint_mode": False, "attention_sketch_mode": True}) == "sketch"
    assert capture_mode({"attention_fingerprint_mode": False}) == "raw"
    assert capture_mode({"top_k_attention": 5}) == capture_mode({"attention_derotate": True}) == "raw"
    assert capture_mode({}) is None
    assert changes({"attention_sketch_mode": True}, Advice(None, None, "sketch")) == ()
