"""Scheduler process: answers under a firewall, judged by their fingerprints as they are published, and ended.

Every rank judges the same numbers, so all of them end an answer in the same step. A decision is made before SGLang
takes the step's tokens in: the token that drifts is the last one of an answer that is ended.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from geomcli.detectors.compass import CompassDetector
from geomcli.detectors.observations import Observations
from geomcli.firewall import LOG_ONLY, STOPPED_BY, WARN_SHARE, Decision, Firewall, Watched
from geomcli.kernels import layout
from geomcli.server_patch import faults
from geomcli.server_patch.entries import published_fingerprints
from geomcli.server_patch.firewall_options import Guard
from geomcli.server_patch.options import CaptureOptions
from geomcli.server_patch.scheduler_state import scheduler
from geomcli.server_patch.step_numbers import numbers_of
from geomcli.server_patch.values import CAPTURED, Token

logger = logging.getLogger("geom")


class Row(NamedTuple):
    """One row of a step whose answer is watched: its place in the records, its request, that one's state."""

    at: int
    request: Any
    state: Any


class Judged(NamedTuple):
    """A decision and the row of the step's records that it is of; travels with the step."""

    at: int
    status: str
    score: float | None
    halted: bool


class _Due(NamedTuple):
    """A step_numbers.Due."""

    options: CaptureOptions
    token: Token
    derotated: NDArray[np.float32] | None = None


_firewalls: dict[tuple[str, int, float], Firewall] = {}


def firewall_of(guard: Guard) -> Firewall:
    """The same for the same settings, so that their answers are judged in one pass."""
    key = (guard.detector, guard.window_size, guard.variance_threshold)
    if key not in _firewalls:
        threshold = guard.variance_threshold
        _firewalls[key] = Firewall(CompassDetector(guard.window_size), WARN_SHARE * threshold, threshold)
    return _firewalls[key]


def watch(guard: Guard) -> Watched:
    return firewall_of(guard).watch()


def judge(rows: Sequence[Row], records: NDArray[np.int32]) -> tuple[Judged, ...]:
    """Of rows whose records [layers, rows, words] are of the token that SGLang is about to take in; ends answers."""
    due = _tokens(rows, records) if rows else []
    if not due:
        return ()
    asked = [_Due(_plain(row.state.options), token) for row, token in due]
    numbers = numbers_of(asked, scheduler.layers)
    fingerprints = np.array(published_fingerprints(numbers)[2])
    groups: dict[int, list[int]] = {}
    for n, (row, _) in enumerate(due):
        if not numbers.failed[n]:
            groups.setdefault(id(firewall_of(row.state.options.guard)), []).append(n)
    made = []
    for places in groups.values():
        firewall = firewall_of(due[places[0]][0].state.options.guard)
        answers = [due[n][0].state.watched for n in places]
        decisions = firewall.check(answers, Observations.of_fingerprints(fingerprints[places]))
        for n, decision in zip(places, decisions, strict=True):
            row = due[n][0]
            made.append(Judged(row.at, *decision))
            if decision.halted:
                _act(row, decision, due[n][1].step)
    return tuple(made)


def _tokens(rows: Sequence[Row], records: NDArray[np.int32]) -> list[tuple[Row, Token]]:
    """The tokens that come out of this step for the rows' requests, of those whose step was captured."""
    stamps, lengths = (records[..., word].T.tolist() for word in (layout.R_STAMP, layout.R_LENGTH))
    made = []
    for row in rows:
        request, state, at = row.request, row.state, row.at
        if at >= len(stamps) or request.finished() or getattr(request, "is_retracted", False):
            continue
        prompt = len(request.origin_input_ids)
        length = prompt + len(request.output_ids)
        places = [scheduler.layers.index(layer) for layer in state.options.layers]
        if all(stamps[at][place] == state.stamp and lengths[at][place] == length for place in places):
            token = Token(length - prompt + 1, 0, CAPTURED, state.stamp, prompt, (), records[:, at])
            made.append((row, token))
    return made


def _plain(options: CaptureOptions) -> CaptureOptions:
    """Without the de-rotated view, which is no part of what is judged."""
    return msgspec.structs.replace(options, derotate=False) if options.derotate else options


def _act(row: Row, decision: Decision, step: int) -> None:
    """Once an answer: say so, and end it unless it is only to be logged or ends by itself."""
    request, guard = row.request, row.state.options.guard
    logger.warning(
        "geom: the firewall halts request %s at token %d: drift %.3f over %d tokens, threshold %.3f (%s)",
        request.rid, step, decision.score, guard.window_size, guard.variance_threshold, guard.action,
    )  # fmt: skip
    _count(guard.action)
    if guard.action == LOG_ONLY or request.to_finish is not None:
        return
    request.to_finish = _reason(STOPPED_BY[guard.action])


def _reason(matched: str) -> Any:
    from sglang.srt.managers.schedule_batch import FINISH_MATCHED_STR

    return FINISH_MATCHED_STR(matched=matched)


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
