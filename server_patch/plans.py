"""Scheduler process: the rows of a step that are captured, whatever computes their statistics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from geomcli.kernels.reference import RowStatistics
from geomcli.server_patch.options import CaptureOptions
from geomcli.server_patch.request_state import RequestState


@dataclass
class RowPlan:
    """One captured row: where it is in the batch, and whose attention it is."""

    row: int
    request: Any
    state: RequestState
    query_position: int
    statistics: dict[int, RowStatistics] = field(default_factory=dict)
    error: str | None = None

    @property
    def options(self) -> CaptureOptions:
        return self.state.options

    @property
    def stamp(self) -> int:
        return self.state.stamp
