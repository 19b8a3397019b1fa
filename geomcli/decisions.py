"""What a firewall decided about an answer, as the steps of its trace say it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from geomcli.compass import HALT, OK, WARN
from geomcli.firewall import ACTIONS, LOG_ONLY, RE_ROUTE
from geomcli.measured import number
from geomcli.schema import Record


class Judged(NamedTuple):
    """A token's decision. score: None before its detector has one; halted: the status rose to HALT with this token;
    status: "" where the token's capture failed; calibrated: whether the threshold is one of `geom calibrate`.
    """

    detector: str
    action: str
    status: str
    score: float | None
    halted: bool
    calibrated: bool = False

    @property
    def caveat(self) -> str:
        return "calibrated" if self.calibrated else "uncalibrated"

    @property
    def consequence(self) -> str:
        """What a HALT does to the answer."""
        if self.action == LOG_ONLY:
            return "the answer goes on"
        return "it ended the answer" + (" for a router to act" if self.action == RE_ROUTE else "")


def judged(step: Record) -> Judged | None:
    """Of a step record or entry (docs/wire.md, "Firewall"); None where no firewall watched, or what it says is none."""
    found = step.get("firewall")
    if not isinstance(found, dict) or found.get("action") not in ACTIONS:
        return None
    status, score = found.get("status"), found.get("score")
    return Judged(
        str(found.get("detector") or ""),
        str(found["action"]),
        status if status in (OK, WARN, HALT) else "",
        number(score) if isinstance(score, int | float) else None,
        found.get("halted") is True,
        found.get("calibrated") is True,
    )


def first_halt(steps: Iterable[Record]) -> tuple[int, Judged] | None:
    """(index of the token, decision) of the step that halted."""
    for step in steps:
        found = judged(step)
        if found is not None and found.halted and isinstance(place := step.get("tokenIndex"), int):
            return place, found
    return None
