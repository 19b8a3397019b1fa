"""A zone follows from its evidence alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geomcli.fingerprint import fingerprint_from_histogram
from geomcli.zones import UNKNOWN, ZONES_V1, classify

unit = st.floats(0, 1)


def with_values(local: float, mid: float, long: float, entropy: float) -> np.ndarray:
    return np.array([local, mid, long, entropy, *np.zeros(16)])


@given(unit, unit, unit, unit, st.none() | unit)
def test_the_largest_margin_decides(
    local: float, mid: float, long: float, entropy: float, ripple: float | None
) -> None:
    decision = classify(with_values(local, mid, long, entropy), ripple)
    values = {"local": local, "mid": mid, "long": long, "bin_entropy": entropy, "ripple": ripple}
    margins = {}
    for evidence in decision.evidence:
        assert evidence.value == values[evidence.metric]
        if evidence.value is None:
            assert evidence.margin is None
        else:
            margins[evidence.zone] = (evidence.value - evidence.threshold) / (1 - evidence.threshold)
            assert evidence.margin == pytest.approx(margins[evidence.zone])
    best = max(margins.values())
    if best < 0:
        assert (decision.zone, decision.confidence, decision.rule) == (UNKNOWN, 0.0, None)
    else:
        assert margins[decision.zone] == best
        assert decision.confidence == pytest.approx(best)
        assert decision.rule is not None
        assert decision.rule.zone == decision.zone


@pytest.mark.parametrize(
    ("values", "ripple", "zone"),
    [
        ((0.9, 0.1, 0.0, 0.3), None, "syntax_floor"),
        ((0.3, 0.7, 0.0, 0.3), None, "semantic_bridge"),
        ((0.3, 0.2, 0.5, 0.3), None, "long_range"),
        ((0.5, 0.3, 0.2, 0.9), None, "diffuse"),
        ((0.65, 0.35, 0.0, 0.5), 0.95, "structure_ripple"),
        ((0.5, 0.3, 0.2, 0.5), None, "unknown"),
        ((0.6, 0.0, 0.0, 0.0), None, "syntax_floor"),  # a threshold that is just reached is met
    ],
)
def test_named_patterns(values: tuple[float, float, float, float], ripple: float | None, zone: str) -> None:
    assert classify(with_values(*values), ripple).zone == zone


def test_thresholds_are_data() -> None:
    f = fingerprint_from_histogram(np.array([0.5, 0, 0, 0.5] + [0.0] * 12))
    assert classify(f).zone == "semantic_bridge"
    stricter = ZONES_V1.with_thresholds({"semantic_bridge": 0.6, "syntax_floor": 0.45})
    assert classify(f, ruleset=stricter).zone == "syntax_floor"
    assert classify(f, ruleset=stricter).ruleset == "zones-v1+"
    with pytest.raises(ValueError, match="unknown zone 'sink'"):
        ZONES_V1.with_thresholds({"sink": 0.1})
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        ZONES_V1.with_thresholds({"diffuse": 1.0})
