"""Scheduler process: the records of one step on their way from the device to the entries.

Records are stamped with request and length, and believed only where both fit the token that is about to be committed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from geomcli.kernels import layout, records
from geomcli.kernels.reference import HeadStatistics
from geomcli.server_patch import faults
from geomcli.server_patch.options import CaptureOptions
from geomcli.server_patch.plans import first_key
from geomcli.server_patch.request_state import RequestState
from geomcli.server_patch.step_numbers import Due, StepNumbers, wanted_by


@dataclass
class DeviceStep:
    """The rows of one forward pass that ask, and after sampling the records of the whole batch.

    records: int32 [layers, rows, words]; heads: float32 [layers, rows, H, words] where a row asks for them. `layers`
    and `windows` are the captured layers' ids and sliding windows, `flags` are raised on every entry of the step.
    """

    asking: list[tuple[int, Any, RequestState]]
    layers: tuple[int, ...]
    windows: tuple[int, ...]
    flags: tuple[str, ...] = ()
    records: Any = None
    heads: Any = None
    error: str | None = None

    def copy_to_host(self, copy_tensor: Callable[[Any], Any]) -> DeviceStep:
        on_host, heads = (None if t is None else copy_tensor(t) for t in (self.records, self.heads))
        return DeviceStep(self.asking, self.layers, self.windows, self.flags, on_host, heads, self.error)

    def consume(self, _batch: Any, _commits: Any) -> None:
        """Entries are built before the tokens are committed (results.py); nothing is left to do afterwards."""

    def numbers(self, due: Sequence[Due]) -> StepNumbers:
        """Of the records that were written for exactly these tokens; the others' rows have failed."""
        wanted = wanted_by(due, self.layers)
        rows = [one.row for one in due]
        found = self.records.numpy()[:, rows]
        stamps = np.array([one.state.stamp for one in due])
        lengths = np.array([one.query_position + 1 for one in due])
        heads = np.array([_heads_due(one.state.options) for one in due])
        fits = (found[..., layout.R_STAMP] == stamps) & (found[..., layout.R_LENGTH] == lengths)
        fits &= found[..., layout.R_HEADS] == heads
        made = StepNumbers(
            layers=self.layers,
            wanted=wanted,
            failed=(wanted & ~fits).any(axis=0) | (self.error is not None),
            **records.decode(np.where((wanted & fits)[..., None], found, 0))._asdict(),
            head_statistics=[self._heads_of(one) for one in due],
            flags=self.flags,
        )
        made.check()
        if made.failed.any():
            faults.note(f"a step has records that do not fit their tokens ({self.error or 'stamp or value'})")
        return made

    def _heads_of(self, due: Due) -> dict[int, HeadStatistics]:
        options = due.state.options
        if self.heads is None or not options.head_stats:
            return {}
        made = {}
        for layer in options.layers:
            at = self.layers.index(layer)
            first = first_key(options, due.query_position, self.windows[at])
            heads = self.heads[at, due.row].numpy()
            made[layer] = records.heads_of(heads, options.heads, first, due.prompt_len, due.query_position + 1)
        return made


def _heads_due(options: CaptureOptions) -> int:
    return options.heads_total if options.heads is None else len(options.heads)
