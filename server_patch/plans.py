"""Scheduler process: the rows of a step that are captured, whatever computes their statistics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomcli.kernels.reference import RowStatistics
from geomcli.server_patch.request_options import CaptureOptions
from geomcli.server_patch.request_state import RequestState


@dataclass
class RowPlan:
    """One captured row: where it is in the batch, and whose attention it is."""

    row: int
    request: Any
    state: RequestState
    query_position: int
    places: NDArray[np.int64] | None = None  # where the keys stand that are there, None: all are
    statistics: dict[int, RowStatistics] = field(default_factory=dict)
    error: str | None = None

    @property
    def kept(self) -> int:
        """Keys that are there."""
        return self.query_position + 1 if self.places is None else self.places.shape[0]

    @property
    def options(self) -> CaptureOptions:
        return self.state.options

    @property
    def stamp(self) -> int:
        return self.state.stamp
