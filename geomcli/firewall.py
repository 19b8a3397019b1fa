"""The firewall: a detector's score against thresholds, with hysteresis, and what is done about it.

It decides from fingerprints as they are published, so whoever has these decides alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from geomcli.compass import CONSECUTIVE, HALT, HALT_THRESHOLD, WARN_THRESHOLD, Alarm
from geomcli.detectors.compass import CompassDetector
from geomcli.detectors.observations import Detector, Observations
from geomcli.fingerprint import FINGERPRINT_SIZE

Action = Literal["log_only", "early_stop", "re_route"]
LOG_ONLY: Action = "log_only"
EARLY_STOP: Action = "early_stop"
RE_ROUTE: Action = "re_route"
ACTIONS: tuple[Action, ...] = (LOG_ONLY, EARLY_STOP, RE_ROUTE)
# What `matched_stop` of a finished answer says.
STOPPED_BY = {EARLY_STOP: "attention_drift", RE_ROUTE: "attention_reroute"}
# The specification names one threshold, at which to halt; its example warns at .3 of .5.
WARN_SHARE = WARN_THRESHOLD / HALT_THRESHOLD


def most_drift(window: int) -> float:
    """The largest drift that so many tokens can have: all patterns apart from each other."""
    return 1 - 1 / window


def check_threshold(threshold: float, window: int, name: str) -> None:
    """ValueError where the drift of a window never gets there."""
    if threshold > most_drift(window):
        raise ValueError(
            f"{name} {threshold} can never halt: the drift of {window} tokens is at most {most_drift(window):.6g}"
        )


class Decision(NamedTuple):
    """Of one token: status OK, WARN or HALT; score, None while the detector has none; halted: it is this token that
    the status rose to HALT with.
    """

    status: str
    score: float | None
    halted: bool


class Watched:
    """One answer under a firewall."""

    def __init__(self, state: Any, alarm: Alarm) -> None:
        self.state, self.alarm = state, alarm

    @property
    def status(self) -> str:
        return self.alarm.status


class Firewall:
    """A detector with thresholds for many answers; `consecutive` scores over a threshold raise the status."""

    def __init__(self, detector: Detector[Any], warn: float, halt: float, consecutive: int = CONSECUTIVE) -> None:
        self.detector, self.warn, self.halt, self.consecutive = detector, warn, halt, consecutive
        Alarm(warn, halt, consecutive)

    def watch(self) -> Watched:
        return Watched(self.detector.start(), Alarm(self.warn, self.halt, self.consecutive))

    def check(self, answers: Sequence[Watched], seen: Observations) -> list[Decision]:
        """Take one token of each answer, each once."""
        scores = self.detector.update([answer.state for answer in answers], seen)
        made = []
        for answer, value in zip(answers, scores.tolist(), strict=True):
            before, score = answer.status, None if math.isnan(value) else value
            if score is not None:
                answer.alarm.judge(score)
            made.append(Decision(answer.status, score, before != HALT and answer.status == HALT))
        return made


class ManifoldFirewall:
    """Watches the fingerprints of one answer; a HALT is never taken back.

    window_size: tokens that drift is taken over; variance_threshold: drift at which to halt, in (0, 1); WARN at three
    fifths of it. The default thresholds are not calibrated: docs/geometry.md, "Compass".
    """

    def __init__(
        self, window_size: int = 10, variance_threshold: float = HALT_THRESHOLD, action: str = EARLY_STOP
    ) -> None:
        if action not in ACTIONS:
            raise ValueError(f"action must be one of {', '.join(ACTIONS)}, got {action!r}")
        if not 0 < variance_threshold < 1:
            raise ValueError(f"variance_threshold must be above 0 and below 1, got {variance_threshold}")
        self.action = action
        detector = CompassDetector(window_size)
        check_threshold(variance_threshold, window_size, "variance_threshold")
        self._firewall = Firewall(detector, WARN_SHARE * variance_threshold, variance_threshold)
        self._answer = self._firewall.watch()
        self.drift: float | None = None

    @property
    def status(self) -> str:
        return self._answer.status

    @property
    def acts(self) -> bool:
        """Whether the answer is to end here."""
        return self.status == HALT and self.action != LOG_ONLY

    def check(self, fingerprint: Sequence[float]) -> str:
        """Take the next token's fingerprint [20]: OK, WARN or HALT. ValueError where it has another size."""
        values = np.asarray(fingerprint, dtype=np.float64)
        if values.shape != (FINGERPRINT_SIZE,):
            raise ValueError(f"a fingerprint has {FINGERPRINT_SIZE} numbers, got shape {values.shape}")
        (decision,) = self._firewall.check([self._answer], Observations.of_fingerprints(values[None]))
        self.drift = decision.score
        return decision.status
