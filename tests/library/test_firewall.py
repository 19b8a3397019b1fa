"""The firewall decides as its definition says, and as the compass whose drift the server publishes."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from geomcli.compass import HALT, OK, WARN, Compass
from geomcli.detectors.compass import CompassDetector
from geomcli.detectors.observations import Observations, of_entries
from geomcli.fingerprint import FINGERPRINT_SIZE, fingerprints_from_histograms
from geomcli.firewall import ACTIONS, LOG_ONLY, Firewall, ManifoldFirewall

ONE, OTHER = np.eye(16)[2], np.eye(16)[9]


def fingerprint(histogram: NDArray[np.float64]) -> list[float]:
    return [float(value) for value in fingerprints_from_histograms(histogram)]


def random_steps(n: int, seed: int = 0) -> NDArray[np.float64]:
    """Histograms [n, 16], calm and wild stretches in turn, some of them empty."""
    random = np.random.default_rng(seed)
    steps = random.dirichlet(np.full(16, 0.15), n)
    calm = np.arange(n) % 80 < 50
    steps[calm] = 0.95 * steps[0] + 0.05 * steps[calm]
    steps[random.random(n) < 0.02] = 0
    return steps


def test_a_constant_pattern_is_never_halted() -> None:
    firewall = ManifoldFirewall()
    assert [firewall.check(fingerprint(ONE)) for _ in range(50)] == [OK] * 50
    assert firewall.drift == 0


def test_two_disjoint_patterns_in_turn_halt_with_the_second_full_window() -> None:
    firewall = ManifoldFirewall(window_size=10, variance_threshold=0.5)
    statuses = [firewall.check(fingerprint(ONE if n % 2 else OTHER)) for n in range(12)]
    assert statuses == [OK] * 10 + [HALT] * 2
    assert firewall.acts


def test_a_halt_is_never_taken_back() -> None:
    firewall = ManifoldFirewall(variance_threshold=0.4)
    for n in range(12):
        firewall.check(fingerprint(ONE if n % 2 else OTHER))
    assert [firewall.check(fingerprint(ONE)) for _ in range(40)] == [HALT] * 40
    assert firewall.drift == 0


def test_a_warning_is() -> None:
    firewall = ManifoldFirewall(window_size=4, variance_threshold=0.75)
    for n in (0, 1, 2, 2):
        firewall.check(fingerprint(np.eye(16)[n]))
    assert firewall.check(fingerprint(np.eye(16)[8])) == WARN
    for _ in range(4):
        status = firewall.check(fingerprint(ONE))
    assert status == OK


def test_a_threshold_that_no_drift_reaches_is_refused() -> None:
    ManifoldFirewall(window_size=4, variance_threshold=0.75)
    with pytest.raises(
        ValueError, match=r"variance_threshold 0\.76 can never halt: the drift of 4 tokens is at most 0\.75"
    ):
        ManifoldFirewall(window_size=4, variance_threshold=0.76)


@pytest.mark.parametrize("action", ACTIONS)
def test_only_logging_does_not_act(action: str) -> None:
    firewall = ManifoldFirewall(action=action)
    for n in range(12):
        firewall.check(fingerprint(ONE if n % 2 else OTHER))
    assert (firewall.status, firewall.acts) == (HALT, action != LOG_ONLY)


def test_many_answers_at_once_are_judged_as_each_alone_and_as_by_the_compass() -> None:
    steps = random_steps(10_000).reshape(20, 500, 16)
    f = fingerprints_from_histograms(steps).astype(np.float64)
    many = Firewall(CompassDetector(10), 0.3, 0.5)
    watched = [many.watch() for _ in f]
    together = [many.check(watched, Observations.of_fingerprints(f[:, step])) for step in range(f.shape[1])]
    for answer in range(len(f)):
        alone, compass = ManifoldFirewall(10, 0.5), Compass(10)
        for step in range(f.shape[1]):
            status = alone.check(f[answer, step].tolist())
            drift = compass.update(f[answer, step, 4:])
            assert together[step][answer][:2] == (status, alone.drift)
            assert (compass.status, drift) == (status, alone.drift)
    statuses = {decision.status for row in together for decision in row}
    assert statuses == {OK, WARN, HALT}
    assert sum(decision.halted for row in together for decision in row) == sum(one.status == HALT for one in watched)


def test_what_is_no_firewall_is_refused_by_name() -> None:
    for arguments, name in (
        ({"action": "stop"}, "action"), ({"variance_threshold": 0.0}, "variance_threshold"),
        ({"variance_threshold": float("nan")}, "variance_threshold"), ({"window_size": 1}, "window"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            ManifoldFirewall(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="20 numbers"):
        ManifoldFirewall().check([0.1] * 19)


def test_entries_without_numbers_move_nothing() -> None:
    seen = of_entries([{"decode_step": 1}, {"fingerprint": fingerprint(ONE)}])
    assert np.isnan(seen.fingerprint[0]).all()
    assert seen.fingerprint.shape == (2, FINGERPRINT_SIZE)
    assert seen.heads is None
    detector = CompassDetector(2)
    states = [detector.start(), detector.start()]
    for _ in range(3):
        scores = detector.update(states, seen)
    assert np.isnan(scores[0])
    assert scores[1] == 0
