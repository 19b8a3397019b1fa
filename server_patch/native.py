"""Scheduler process, torch_native backend: a captured row is computed again from the query and the pool's keys.

The step's keys are in the pool by the time the backend returns, so the numbers are those of the engine's own softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from geomcli.kernels import layout, row_records
from geomcli.kernels.derotation import link_scores
from geomcli.kernels.records import HEAD_STATISTICS
from geomcli.kernels.reference import RowStatistics, attention_logits, row_statistics
from geomcli.server_patch import eviction, faults
from geomcli.server_patch.held import held_of
from geomcli.server_patch.logit_statistics import Logits
from geomcli.server_patch.observed import Row
from geomcli.server_patch.plans import RowPlan
from geomcli.server_patch.publisher import Part, Publisher
from geomcli.server_patch.request_state import RequestState
from geomcli.server_patch.ropes import rope_of
from geomcli.server_patch.scheduler_state import scheduler
from geomcli.server_patch.zone_sampling import Sampled


@dataclass
class StepPlan:
    """The captured rows of one forward pass; travels as an auxiliary output of its logits."""

    rows: list[RowPlan]
    layers: frozenset[int]
    extend: bool
    sampled: tuple[Sampled, ...] = ()  # what rows whose zone chooses are sampled with
    logits: Logits | None = None
    routing: Any = None  # of moe.Routing.rows
    copied: Any = None  # event behind the routing's copy, where there is a device

    @property
    def wants_routing(self) -> bool:
        return any(plan.options.moe_layers for plan in self.rows)

    def copy_to_host(self, copy_tensor: Callable[[Any], Any]) -> StepPlan:
        if self.routing is not None:
            on_device = self.routing.device.type == "cuda"
            self.routing = copy_tensor(self.routing)
            if on_device:
                self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self.copied.record()
        return self

    def watched_rows(self) -> list[Row]:
        return [Row(at, plan.request, plan.state) for at, plan in enumerate(self.whole) if plan.options.observed]

    def watched_records(self) -> NDArray[np.int32]:
        return self.records

    def watched_heads(self, rows: Sequence[Row], _lengths: Sequence[int]) -> list[NDArray[np.float32] | None]:
        """[wanted layers, 4, heads] of each of some rows of `watched_rows`."""
        return [self._heads_of(row) for row in rows]

    def _heads_of(self, row: Row) -> NDArray[np.float32] | None:
        every = self.whole[row.at].statistics
        found = [every[layer].head_statistics for layer in row.state.options.layers]
        return None if None in found else np.stack([row_records.heads_array(one) for one in found if one is not None])

    def watched_logits(self) -> NDArray[np.float32] | None:
        """[whole rows, 3]"""
        if self.logits is None or self.logits.found is None:
            return None
        found: NDArray[np.float32] = self.logits.found[0, [plan.row for plan in self.whole]].cpu().numpy()
        return found

    @cached_property
    def whole(self) -> list[RowPlan]:
        """The rows whose every layer is there."""
        return [plan for plan in self.rows if plan.error is None and set(plan.statistics) == set(plan.options.layers)]

    @cached_property
    def records(self) -> NDArray[np.int32]:
        """[layers, whole rows, words]"""
        layers = scheduler.layers
        made = np.zeros((len(layers), len(self.whole), layout.RECORD_WORDS), dtype=np.int32)
        for row, plan in enumerate(self.whole):
            for layer, statistics in plan.statistics.items():
                made[layers.index(layer), row] = row_records.encode(
                    statistics, stamp=plan.stamp, length=plan.query_position + 1, kept=plan.kept
                )
        return made

    def publish(self, publisher: Publisher, judged: tuple[Any, ...] = ()) -> None:
        """Records of the whole rows, unless nobody reads any."""
        whole = self.whole
        if not any(plan.options.entries for plan in whole):
            return
        layers, records = scheduler.layers, self.records
        arrays: dict[str, NDArray[Any]] = {"records": records}
        if any(plan.options.head_stats for plan in whole):
            size = (len(HEAD_STATISTICS), scheduler.heads_total)
            arrays["head_statistics"] = np.zeros((*records.shape[:2], *size), dtype=np.float32)
        if any(plan.options.derotate for plan in whole):
            arrays["derotated"] = np.zeros((*records.shape[:2], layout.D_WEIGHT, layout.KEEP), dtype=np.float32)
        for row, plan in enumerate(whole):
            for layer, statistics in plan.statistics.items():
                at = layers.index(layer)
                if statistics.head_statistics is not None and "head_statistics" in arrays:
                    found = row_records.heads_array(statistics.head_statistics)
                    arrays["head_statistics"][at, row, :, : found.shape[1]] = found
                if statistics.derotated is not None:
                    scores = statistics.derotated.cpu().numpy()
                    arrays["derotated"][at, row, :, : scores.shape[1]] = scores
        if self.routing is not None:
            if self.copied is not None:
                self.copied.synchronize()
            arrays["routing"] = self.routing[[plan.row for plan in whole]].transpose(0, 1).contiguous().numpy()
        if (logits := self.watched_logits()) is not None:
            arrays["logits"] = logits[None]
        place = publisher.reserve([Part(name, array.dtype.name, array.shape) for name, array in arrays.items()])
        if place is None:
            return
        for view, array in zip(publisher.views(place), arrays.values(), strict=True):
            view[...] = array
        # Head statistics are finished: no window is needed to read them.
        of_row = {one.row: one for one in self.sampled}
        sampled = [of_row[plan.row]._replace(row=at) for at, plan in enumerate(whole) if plan.row in of_row]
        publisher.publish(place, (), (), judged, tuple(sampled))

    def consume(self, _batch: Any, _commits: Any) -> None:
        """Records are sent before the tokens are committed (results.py); nothing is left to do afterwards."""


def plan_step(forward_batch: Any, asking: list[tuple[int, Any, RequestState]]) -> StepPlan | None:
    """The rows that are due; None when no row is."""
    extend = forward_batch.forward_mode.is_extend()
    lengths = forward_batch.seq_lens_cpu if forward_batch.seq_lens_cpu is not None else forward_batch.seq_lens
    rows = []
    for row, req, request_state in asking:
        kept = length = int(lengths[row])
        held = None if scheduler.evictor is None else held_of(req)
        if held is not None and held.gone:
            length = held.text(kept)
        prompt_len = len(req.origin_input_ids)
        if extend and length < prompt_len + len(req.output_ids):
            continue  # a middle chunk of a chunked prefill: no token comes out of it
        output_index = length - prompt_len
        if request_state.captures(output_index):
            places = held.places(kept) if held is not None and length > kept else None
            rows.append(RowPlan(row, req, request_state, length - 1, places))
    if not rows:
        return None
    return StepPlan(rows, frozenset(layer for plan in rows for layer in plan.options.layers), extend)


def after_attention(
    _output: Any, backend: Any, q: Any, _k: Any, _v: Any, layer: Any, forward_batch: Any, *_: Any, **__: Any
) -> None:
    eviction.see(layer, q)
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
    first = options.first_key(plan.query_position, window)
    places = None
    if plan.places is None:
        slots = token_row[first : plan.query_position + 1].long()
    else:
        begin = int(np.searchsorted(plan.places, first))
        slots = token_row[begin : plan.kept].long()
        places = torch.from_numpy(plan.places[begin:]).to(slots.device)
    logits = logits_of(query, key_buffer, slots, layer.scaling, heads=options.heads, chunk=scheduler.options.chunk_size)
    statistics = row_statistics(
        logits,
        query_position=plan.query_position,
        first_key=first,
        prompt_len=len(plan.request.origin_input_ids),
        sink_tokens=options.sink_tokens,
        top_k=options.links,
        head_statistics=options.headed,
        places=places,
    )
    if not options.derotate:
        return statistics
    query, keys = of_heads(query, key_buffer[slots[statistics.positions - first]], options.heads)
    scores = link_scores(
        query,
        keys,
        query_position=plan.query_position,
        positions=statistics.positions,
        rope=rope_of(scheduler.embeddings[layer.layer_id]),
        scale=layer.scaling,
        lse=torch.logsumexp(logits, dim=1),
    )
    return replace(statistics, derotated=scores)


def logits_of(
    query: Any, key_buffer: Any, slots: Any, scale: float, *, heads: tuple[int, ...] | None, chunk: int
) -> Any:
    """Logits [heads, n] over the keys in `slots` [n], of which at most `chunk` are gathered at a time."""
    parts = [attention_logits(*of_heads(query, key_buffer[some], heads), scale) for some in slots.split(chunk)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def of_heads(query: Any, keys: Any, heads: tuple[int, ...] | None) -> tuple[Any, Any]:
    """The queries [H, D] of these heads and the keys [n, K, D] that they attend to."""
    if heads is None:
        return query, keys
    n_kv = keys.shape[1]
    if n_kv > 1:
        keys = keys[:, [head // (query.shape[0] // n_kv) for head in heads]]
    return query[list(heads)], keys
