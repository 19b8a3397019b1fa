"""Scheduler process: the records of one step on their way from the device to the entries.

Records are stamped with request and length, and believed only where both fit the token that is about to be committed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from geomcli.kernels import records
from geomcli.server_patch import faults
from geomcli.server_patch.plans import RowPlan, checked, first_key
from geomcli.server_patch.request_state import RequestState


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

    def row_plans(self) -> list[RowPlan]:
        """Plans of the rows whose records were written for exactly the token that is about to be committed."""
        return [plan for row, req, state in self.asking if (plan := self._row_plan(row, req, state)) is not None]

    def _row_plan(self, row: int, req: Any, state: RequestState) -> RowPlan | None:
        output_index = len(req.output_ids)
        if not state.captures(output_index):
            return None
        prompt_len = len(req.origin_input_ids)
        options = state.options
        plan = RowPlan(row, req, options, output_index, prompt_len + output_index - 1, flags=self.flags)
        try:
            if self.error is not None:
                raise RuntimeError(self.error)
            for layer in options.layers:
                index = self.layers.index(layer)
                record = self.records[index, row].numpy()
                found, due = records.stamp_of(record), records.Stamp(state.stamp, prompt_len + output_index)
                if found != due:
                    raise RuntimeError(f"the record of layer {layer} is for {found}, not for {due}")
                heads = None if self.heads is None or not options.head_stats else self.heads[index, row].numpy()
                statistics = records.statistics_of(
                    record,
                    first_key=first_key(options, plan.query_position, self.windows[index]),
                    prompt_len=prompt_len,
                    sink_tokens=options.sink_tokens,
                    heads=heads,
                    selected=options.heads,
                )
                plan.statistics[layer] = checked(statistics, layer)
        except Exception as error:
            faults.report("a row's record cannot be used")
            plan.error = type(error).__name__
        return plan
