"""Scheduler process: the rows of a step that are captured, whatever computes their statistics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from geomcli.kernels.reference import RowStatistics
from geomcli.server_patch.options import CaptureOptions


@dataclass
class RowPlan:
    """One captured row: where it is in the batch, and the output token that its attention belongs to."""

    row: int
    request: Any
    options: CaptureOptions
    output_index: int
    query_position: int
    statistics: dict[int, RowStatistics] = field(default_factory=dict)
    error: str | None = None


def first_key(options: CaptureOptions, query_position: int, sliding_window: int = -1) -> int:
    """First position whose key counts: behind the mask, inside the request's and the layer's window."""
    first = options.mask_prefix
    if options.window:
        first = max(first, query_position + 1 - options.window)
    if sliding_window > -1:
        first = max(first, query_position - sliding_window)
    return min(first, query_position + 1)
