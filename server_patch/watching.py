"""Scheduler process: answers under a firewall, judged by their fingerprints as they are published, and ended.

Every rank judges the same numbers, so all of them end an answer in the same step. A decision is made before SGLang
takes the step's tokens in: the token that drifts is the last one of an answer that is ended.
"""

from __future__ import annotations

import functools
import logging
import weakref
from typing import Any, NamedTuple

from geomcli.detectors.compass import CompassDetector
from geomcli.detectors.registry import create
from geomcli.firewall import LOG_ONLY, STOPPED_BY, WARN_SHARE, Decision, Firewall
from geomcli.server_patch import endings, faults
from geomcli.server_patch.firewall_options import COMPASS, Guard
from geomcli.server_patch.observed import Observed, Row
from geomcli.server_patch.scheduler_state import scheduler

logger = logging.getLogger("geom")


class Judged(NamedTuple):
    """A decision and the row of the step's records that it is of; travels with the step."""

    at: int
    status: str
    score: float | None
    halted: bool


# Of the answers that are being watched: a threshold is any number that a client writes.
_firewalls: weakref.WeakValueDictionary[tuple[Any, ...], Firewall] = weakref.WeakValueDictionary()


def firewall_of(guard: Guard) -> Firewall:
    """The same for the same settings, so that their answers are judged in one pass."""
    key = (guard.detector, guard.window_size, guard.variance_threshold, guard.consecutive, guard.calibration)
    found = _firewalls.get(key)
    if found is None:
        halt = guard.variance_threshold
        detector = _detector(guard.detector, guard.window_size, guard.calibration)
        found = Firewall(detector, WARN_SHARE * halt if halt > 0 else halt, halt, guard.consecutive)
        _firewalls[key] = found
    return found


@functools.cache
def _detector(name: str, window: int, path: str) -> Any:
    if name == COMPASS:
        return CompassDetector(window)
    return create(name, calibration=scheduler.calibrations[path] if path else None)


def judge(observed: Observed) -> tuple[Judged, ...]:
    """Of the tokens that SGLang is about to take in, those of watched answers; ends answers."""
    groups: dict[Firewall, list[int]] = {}
    for n in observed.sound:
        firewall = observed.rows[n].state.firewall
        if firewall is not None:
            groups.setdefault(firewall, []).append(n)
    made: list[Judged] = []
    for firewall, places in groups.items():
        try:
            made += _decided(observed, firewall, places)
        except Exception:
            faults.report(f"answers could not be judged by {firewall.detector.name}; they go on")
    return tuple(made)


def _decided(observed: Observed, firewall: Firewall, places: list[int]) -> list[Judged]:
    answers = [observed.rows[n].state.watched for n in places]
    decisions = firewall.check(answers, observed.seen(places, firewall.detector.needs))
    made = []
    for n, decision in zip(places, decisions, strict=True):
        row = observed.rows[n]
        made.append(Judged(row.at, *decision))
        if decision.halted:
            _act(row, decision, observed.tokens[n].step)
    return made


def _act(row: Row, decision: Decision, step: int) -> None:
    """Once an answer: say so, and end it unless it is only to be logged or ends by itself."""
    request, guard = row.request, row.state.options.guard
    logger.warning(
        "geom: the firewall halts request %s at token %d: %s %.3f, threshold %.3f, %s (%s)",
        request.rid, step, guard.detector, decision.score, guard.variance_threshold,
        "calibrated" if guard.calibrated else "not calibrated", guard.action,
    )  # fmt: skip
    _count(guard.action)
    if guard.action != LOG_ONLY and request.to_finish is None:
        endings.end(request, STOPPED_BY[guard.action])


@functools.cache
def _halts() -> Any:
    # This process writes into the directory of Prometheus' multiprocess mode like the others.
    from prometheus_client import Counter

    return Counter("geom_firewall_halts", "Answers that a firewall halted, by its action.", ["action"])


def _count(action: str) -> None:
    if not scheduler.metrics:
        return
    try:
        _halts().labels(action).inc()
    except Exception:
        faults.report("a halt could not be counted")
