"""Scheduler process: the records of one step on their way from the device to the main process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from geomcli.kernels import row_records
from geomcli.server_patch.plans import first_key
from geomcli.server_patch.request_state import RequestState
from geomcli.server_patch.results import Due, RowRecords, routing_of


@dataclass
class DeviceStep:
    """The rows of one forward pass that are due, and after sampling the records of the whole batch.

    records: int32 [layers, rows, words]; heads: float32 [layers, rows, H, words] where a row asks for them;
    routing: of moe.Routing.rows. `layers` and `windows` are the captured layers' ids and their sliding windows in this
    kind of step, `flags` are raised on every entry of the step.
    """

    asking: list[tuple[int, Any, RequestState]]
    layers: tuple[int, ...]
    windows: tuple[int, ...]
    flags: tuple[str, ...] = ()
    prefill: bool = False
    records: Any = None
    heads: Any = None
    routing: Any = None
    error: str | None = None

    @property
    def wants_routing(self) -> bool:
        return any(state.options.moe_layers for _, _, state in self.asking)

    def copy_to_host(self, copy_tensor: Callable[[Any], Any]) -> DeviceStep:
        kept = (self.records, self.heads, self.routing)
        on_host, heads, routing = (None if t is None else copy_tensor(t) for t in kept)
        return DeviceStep(
            self.asking, self.layers, self.windows, self.flags, self.prefill, on_host, heads, routing, self.error
        )

    def consume(self, _batch: Any, _commits: Any) -> None:
        """Values are read before the tokens are committed (results.py); nothing is left to do afterwards."""

    def rows_of(self, due: Sequence[Due]) -> Mapping[int, RowRecords]:
        """Records by row, whosever they are: stamps are compared where entries are built. Empty if the step failed."""
        if self.error is not None:
            return {}
        every = self.records.numpy().swapaxes(0, 1)[[one.row for one in due]]
        data, size = every.tobytes(), every[:1].nbytes
        starts = range(0, len(due) * size, size)
        return {
            one.row: RowRecords(
                data[at : at + size], None if self.heads is None else self._heads_of(one), routing_of(self, one)
            )
            for one, at in zip(due, starts, strict=True)
        }

    def _heads_of(self, due: Due) -> bytes | None:
        options = due.state.options
        if not options.head_stats:
            return None
        prompt_len = len(due.request.origin_input_ids)
        query_position = prompt_len + due.output_index - 1
        made = []
        for layer in options.layers:
            at = self.layers.index(layer)
            first = first_key(options, query_position, self.windows[at])
            heads = self.heads[at, due.row].numpy()
            made.append(row_records.heads_of(heads, options.heads, first, prompt_len, query_position + 1))
        return row_records.heads_bytes(made)
