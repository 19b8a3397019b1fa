"""Scheduler process, torch_native backend: a captured row is computed again from the query and the pool's keys.

The step's keys are in the pool by the time the backend returns, so the numbers are those of the engine's own softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from geomcli.kernels import layout, row_records
from geomcli.kernels.reference import RowStatistics, attention_logits, row_statistics
from geomcli.server_patch import faults
from geomcli.server_patch.plans import RowPlan, first_key
from geomcli.server_patch.request_state import RequestState
from geomcli.server_patch.results import Due, RowRecords, routing_of
from geomcli.server_patch.scheduler_state import scheduler


@dataclass
class StepPlan:
    """The captured rows of one forward pass; travels as an auxiliary output of its logits."""

    rows: list[RowPlan]
    layers: frozenset[int]
    extend: bool
    routing: Any = None  # of moe.Routing.rows

    @property
    def wants_routing(self) -> bool:
        return any(plan.options.moe_layers for plan in self.rows)

    def copy_to_host(self, copy_tensor: Callable[[Any], Any]) -> StepPlan:
        self.routing = None if self.routing is None else copy_tensor(self.routing)
        return self

    def rows_of(self, due: Sequence[Due]) -> Mapping[int, RowRecords]:
        """Of the plans that were made for exactly these tokens."""
        plans = {plan.row: plan for plan in self.rows}
        found = {one.row: self._records(plans.get(one.row), one) for one in due}
        return {row: records for row, records in found.items() if records is not None}

    def _records(self, plan: RowPlan | None, due: Due) -> RowRecords | None:
        if plan is None or plan.error is not None or plan.statistics.keys() != set(plan.options.layers):
            return None
        if plan.request is not due.request or plan.output_index != due.output_index:
            return None
        words = np.zeros((len(scheduler.layers), layout.RECORD_WORDS), dtype=np.int32)
        for layer, statistics in plan.statistics.items():
            words[scheduler.layers.index(layer)] = row_records.encode(
                statistics, stamp=due.state.stamp, length=plan.query_position + 1
            )
        heads = [plan.statistics[layer].head_statistics for layer in plan.options.layers]
        known = [of_layer for of_layer in heads if of_layer is not None]
        return RowRecords(words.tobytes(), row_records.heads_bytes(known) if known else None, routing_of(self, due))

    def consume(self, _batch: Any, _commits: Any) -> None:
        """Values are read before the tokens are committed (results.py); nothing is left to do afterwards."""


def plan_step(forward_batch: Any, asking: list[tuple[int, Any, RequestState]]) -> StepPlan | None:
    """The rows that are due; None when no row is."""
    extend = forward_batch.forward_mode.is_extend()
    lengths = forward_batch.seq_lens_cpu if forward_batch.seq_lens_cpu is not None else forward_batch.seq_lens
    rows = []
    for row, req, request_state in asking:
        length = int(lengths[row])
        prompt_len = len(req.origin_input_ids)
        if extend and length < prompt_len + len(req.output_ids):
            continue  # a middle chunk of a chunked prefill: no token comes out of it
        output_index = length - prompt_len
        if request_state.captures(output_index):
            rows.append(RowPlan(row, req, request_state.options, output_index, length - 1))
    if not rows:
        return None
    return StepPlan(rows, frozenset(layer for plan in rows for layer in plan.options.layers), extend)


def after_attention(
    _output: Any, backend: Any, q: Any, _k: Any, _v: Any, layer: Any, forward_batch: Any, *_: Any, **__: Any
) -> None:
    step = scheduler.current
    if not isinstance(step, StepPlan) or layer.layer_id not in step.layers or layer.is_cross_attention:
        return
    try:
        query = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        key_buffer = backend.token_to_kv_pool.get_key_buffer(layer.layer_id)
        table = backend.req_to_token_pool.req_to_token
        pool_rows = forward_batch.req_pool_indices.tolist()
        last_rows = (forward_batch.extend_seq_lens.cumsum(0) - 1).tolist() if step.extend else None
    except Exception as error:
        faults.report("a layer of a step could not be read")
        for plan in step.rows:
            plan.error = plan.error or type(error).__name__
        return
    for plan in step.rows:
        if plan.error is None and layer.layer_id in plan.options.layers:
            try:
                row = plan.row if last_rows is None else last_rows[plan.row]
                plan.statistics[layer.layer_id] = _statistics(
                    plan, query[row], key_buffer, table[pool_rows[plan.row]], layer
                )
            except Exception as error:
                faults.report("a layer of a row could not be captured")
                plan.error = type(error).__name__


def _statistics(plan: RowPlan, query: Any, key_buffer: Any, token_row: Any, layer: Any) -> RowStatistics:
    options = plan.options
    window = layer.sliding_window_size if layer.sliding_window_size is not None else -1
    first = first_key(options, plan.query_position, window)
    keys = key_buffer[token_row[first : plan.query_position + 1].long()]
    if options.heads is not None and keys.shape[1] > 1:
        group = query.shape[0] // keys.shape[1]
        keys = keys[:, [head // group for head in options.heads]]
    if options.heads is not None:
        query = query[list(options.heads)]
    return row_statistics(
        attention_logits(query, keys, layer.scaling),
        query_position=plan.query_position,
        first_key=first,
        prompt_len=len(plan.request.origin_input_ids),
        sink_tokens=options.sink_tokens,
        top_k=options.top_k,
        head_statistics=options.head_stats,
    )
