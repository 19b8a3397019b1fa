"""Scheduler process: when keys of running requests leave, and by what scores.

On the forward stream, before a step: the device is told of the last eviction, and a request that holds too much has
its keys scored, from the queries of its last steps. On the scheduler's, a few steps on: what scored low leaves
(compaction.py). Nobody waits in between: on a GPU a thread of our own scores, on a stream of its own, and whose scores
are late keeps its tokens a step longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from geomcli.eviction import scores
from geomcli.eviction.retention import LEAST, RECENT, SINKS, WINDOW, choose
from geomcli.kernels import layout
from geomcli.server_patch import compaction, faults
from geomcli.server_patch.accounts import slot_of
from geomcli.server_patch.attention_modules import attention_of
from geomcli.server_patch.held import Change, Held, Scoring, held_of, is_paused
from geomcli.server_patch.query_ring import QueryRing, Writes, to_device
from geomcli.server_patch.request_state import state_of
from geomcli.server_patch.ropes import NotUndone, embeddings_of, rope_of
from geomcli.server_patch.scheduler_state import scheduler

_STEPS_ON_DEVICE = 4  # from scoring to eviction, in which the device scores
_RING_BYTES = 1 << 30
_LEAST_QUERIES = 8  # by which keys are scored


class _Layer(NamedTuple):
    layer: int
    embedding: Any
    scale: float
    logit_cap: float


class Evictor:
    """Of one model runner. ValueError with half a sentence where nothing can be evicted.

    buffers: of the capture kernels, which say where keys stand; None where none run.
    """

    def __init__(self, runner: Any, layers: tuple[int, ...], sinks: int, buffers: Any) -> None:
        pool, table = runner.token_to_kv_pool, runner.req_to_token_pool.req_to_token
        _refuse_pools(runner)
        try:
            embeddings = embeddings_of(runner.model, layers)
        except NotUndone as reason:
            raise ValueError(f"keys are scored without their rotation, and {reason}") from None
        modules = [attention_of(runner.model, layer, pool) for layer in layers]
        if any((module.sliding_window_size or -1) > -1 for module in modules):
            raise ValueError("sliding windows count keys by their place in the row")
        # What counts as a sink stays, as far as the least budget has room.
        self.sinks, self.runner = min(max(SINKS, sinks), LEAST - RECENT), runner
        self.layers = [
            _Layer(layer, embedding, module.scaling, module.logit_cap or 0.0)
            for layer, embedding, module in zip(layers, embeddings, modules, strict=True)
        ]
        self._places_of = {layer: place for place, layer in enumerate(layers)}
        first = modules[0]
        if any((m.tp_q_head_num, m.qk_head_dim) != (first.tp_q_head_num, first.qk_head_dim) for m in modules):
            raise ValueError("the captured layers have heads of different shapes")
        slots = table.shape[0]
        needed = len(layers) * slots * WINDOW * first.tp_q_head_num * first.qk_head_dim * runner.dtype.itemsize
        if table.device.type == "cuda" and needed > _RING_BYTES:
            raise ValueError(
                f"the last queries of {slots} requests take {needed >> 20} MiB; start with a lower "
                "--max-running-requests, or fewer --attention-capture-layers"
            )
        self.ring = QueryRing(
            layers=len(layers), slots=slots, heads=first.tp_q_head_num, dim=first.qk_head_dim, device=table.device,
            dtype=runner.dtype,
        )  # fmt: skip
        self.table, self.buffers = table, buffers
        self.on_device = table.device.type == "cuda"
        self.delay = _STEPS_ON_DEVICE if self.on_device else 1
        self.writes: Writes | None = None  # where the running step's queries go
        self._threads = ThreadPoolExecutor(1, "geom-scores") if self.on_device else None
        self._beside: Any = None
        self._forward: Any = None

    # Before a step, on the forward stream.

    def begin(self, forward_batch: Any, batch: Any) -> None:
        """Tell the device what has left, put positions right, and score who holds too much."""
        self.writes = None
        rows = [(row, req, held) for row, req in enumerate(batch.reqs) if (held := held_of(req)) is not None]
        if not rows:
            return
        if forward_batch.forward_mode.is_extend():
            self.writes = self.ring.of_prompts(list(_parts(forward_batch, rows)))
            return
        if not forward_batch.forward_mode.is_decode():
            return
        if self.on_device:
            self._forward = torch.cuda.current_stream()
        # First: a step at other positions than its text's would write keys that are wrong for good.
        if any(held.gone for _, _, held in rows):
            forward_batch.positions = torch.clamp(batch.orig_seq_lens - 1, min=0).to(torch.int64)
        for _, _, held in rows:
            if held.change is not None:
                self._tell(held.change)
                held.change = None
        self.writes = self.ring.of_decode(forward_batch.req_pool_indices, forward_batch.positions)
        lengths = forward_batch.seq_lens_cpu.tolist()
        for row, req, held in rows:
            # The step's own key is not there yet.
            physical = lengths[row] - 1
            due = held.scoring is None and held.retention.is_due(physical, held.text(physical))
            if due and not is_paused(req):
                held.scoring, held.waited = self._score(slot_of(req), held, physical), 0

    def _tell(self, change: Change) -> None:
        if self.buffers is None:
            return
        if self.on_device:
            # It belongs to the scheduler's stream, and the request may end before this one gets here.
            change.places.record_stream(self._forward)
        kept = change.places.shape[0]
        self.buffers.places[change.slot, :kept] = change.places
        words = to_device([change.gone, kept], self.table.device, torch.int32)
        self.buffers.control[change.slot, layout.C_GONE : layout.C_KEPT + 1] = words

    def _copy(self, source: Any, target: Any) -> None:
        compaction.move(self.runner.token_to_kv_pool, self.runner.model_config.num_hidden_layers, source, target)

    def _score(self, slot: int, held: Held, n: int) -> Scoring | None:
        last = held.text(n) - 1
        first = max(held.first_query, last + 1 - WINDOW)
        if last + 1 - first < _LEAST_QUERIES:
            return None
        queries = self.ring.read(slot, range(first, last + 1))
        places = to_device(held.places(n), self.table.device)
        rows = self.table[slot, :n].to(torch.int64)
        seen = torch.arange(first, last + 1, device=self.table.device)

        def scored() -> torch.Tensor:
            return scores.skeleton(self._seen(queries, seen, rows, places), at_once=self._at_once(n))

        if self._threads is None:
            return Scoring(n, _done(scored().numpy()))
        ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        ready.record()
        return Scoring(n, self._threads.submit(self._beside_all, scored, ready))

    def _beside_all(self, scored: Callable[[], torch.Tensor], ready: Any) -> NDArray[np.float32]:
        """In our own thread, which may wait for the device."""
        device = self.table.device  # which is not a new thread's own
        if self._beside is None:
            self._beside = torch.cuda.Stream(device=device)  # type: ignore[no-untyped-call]
        with torch.cuda.device(device), torch.inference_mode(), torch.cuda.stream(self._beside):
            self._beside.wait_event(ready)
            found: NDArray[np.float32] = scored().cpu().numpy()
        return found

    def _at_once(self, n: int) -> bool:
        """Whether the n keys that a request holds are few enough for those of all layers to be gathered at a time."""
        keys = self.runner.token_to_kv_pool.get_key_buffer(self.layers[0].layer)
        return bool(n * len(self.layers) * keys[0].numel() <= scores.ELEMENTS)

    def _seen(self, queries: Any, at: Any, rows: Any, places: Any) -> Iterator[scores.Seen]:
        pool = self.runner.token_to_kv_pool
        for n, (layer, embedding, scale, cap) in enumerate(self.layers):
            keys, values = pool.get_key_buffer(layer)[rows], pool.get_value_buffer(layer)[rows]
            yield scores.Seen(queries[n], at, keys, values, places, rope_of(embedding), scale, cap)

    # While it runs.

    def see(self, layer: Any, queries: Any) -> None:
        """queries [tokens, H, D] of a layer's attention in this step."""
        place = self._places_of.get(layer.layer_id)
        if self.writes is not None and place is not None and not layer.is_cross_attention:
            self.ring.write(place, queries.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim), self.writes)

    # Between two steps, on the scheduler's stream.

    def evict(self, batch: Any) -> tuple[int, int]:
        """How many requests let tokens go, and how many tokens."""
        shorter: dict[int, tuple[int, int]] = {}
        lengths: list[int] | None = None
        for row, req in enumerate(batch.reqs):
            held = held_of(req)
            if held is None or held.scoring is None:
                continue
            held.waited += 1
            # One that is not scored yet is looked at again before the next step.
            if held.waited < self.delay or not held.scoring.found.done() or is_paused(req):
                continue
            lengths = batch.seq_lens_cpu.tolist() if lengths is None else lengths
            try:
                if not compaction.is_settled(req, lengths[row]):
                    continue
                stay = _stay(held, lengths[row])
                held.scoring = None
                if stay is None:
                    continue
                if self._forward is not None and not shorter:
                    # What this step reads of the table, and of keys and values, is rewritten.
                    torch.cuda.current_stream().wait_stream(self._forward)
                compaction.compact(req, held, lengths[row], stay, self.table, batch.tree_cache, self._copy)
                shorter[row] = lengths[row], stay.shape[0]
            except Exception:
                held.scoring = None
                faults.report("the row of a request could not be closed up")
                continue
            _say(req, held)
        if shorter:
            compaction.shorten(batch, shorter)
        return len(shorter), sum(before - now for before, now in shorter.values())

    def held(self, batch: Any) -> tuple[int, int]:
        """Of the batch's requests from which tokens may leave: how many tokens they hold, and how many their texts
        have."""
        found = [(row, held) for row, req in enumerate(batch.reqs) if (held := held_of(req)) is not None]
        if not found:
            return 0, 0
        lengths = batch.seq_lens_cpu.tolist()
        there = sum(lengths[row] for row, _ in found)
        return there, there + sum(held.gone for _, held in found)


def _done(found: NDArray[np.float32]) -> Future[NDArray[np.float32]]:
    made: Future[NDArray[np.float32]] = Future()
    made.set_result(found)
    return made


def _say(request: Any, held: Held) -> None:
    """Which tokens are left, to whoever builds the request's entries."""
    try:
        state = state_of(request)
        if state is not None and scheduler.publisher is not None and state.options.names_kept:
            scheduler.publisher.keep(state.stamp, held.text(held.listed.shape[0]), held.mask())
    except Exception:
        faults.report("the entries of a request do not say which tokens have left")


def _stay(held: Held, physical: int) -> NDArray[np.int64] | None:
    """What stays of the tokens that are there now; None when the scores cannot be had or nothing would leave."""
    assert held.scoring is not None
    n, retention = held.scoring.n, held.retention
    try:
        found = held.scoring.found.result()
    except Exception:
        faults.report("the keys of a request could not be scored; all of them stay")
        return None
    budget = retention.budget(held.text(physical))
    if budget >= physical or physical - n > retention.recent:
        return None
    newer = np.full(physical - n, np.inf, dtype=np.float32)
    return choose(np.concatenate([found, newer]), budget, sinks=retention.sinks, recent=retention.recent)


def _parts(forward_batch: Any, rows: list[tuple[int, Any, Held]]) -> Iterator[tuple[int, int, int, int]]:
    """Of each prompt in a prefill: its slot, its first token in the step, first position, and number of tokens."""
    counts, starts = list(forward_batch.extend_seq_lens_cpu), list(forward_batch.extend_prefix_lens_cpu)
    for row, req, held in rows:
        start, count = int(starts[row]), int(counts[row])
        if held.next_query != start:
            held.first_query = start
        held.next_query = start + count
        yield slot_of(req), int(sum(counts[:row])), start, count


def _refuse_pools(runner: Any) -> None:
    pool, allocator = runner.token_to_kv_pool, runner.token_to_kv_pool_allocator
    if type(pool).__name__ != "MHATokenToKVPool":
        raise ValueError(f"keys and values in a {type(pool).__name__} cannot be moved")
    if type(allocator).__name__ != "TokenToKVPoolAllocator" or allocator.page_size != 1:
        raise ValueError(f"slots come in pages of {allocator.page_size}; start with --page-size 1")
    config = runner.model_config
    if getattr(config, "is_multimodal", False) or getattr(runner, "sliding_window_size", None) is not None:
        raise ValueError("the model has positions or windows that are not those of its text alone")
