"""Scheduler process: hooks by which keys of running requests leave. None of them raises: in SGLang's loop an exception
ends the server."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from geomcli.server_patch import faults
from geomcli.server_patch.held import held_of
from geomcli.server_patch.scheduler_state import scheduler


def before_check_decode_mem(batch: Any, selected_indices: Any = None, *_: Any, **__: Any) -> None:
    """Once before each decode step, ahead of the question whether it has room."""
    evictor = scheduler.evictor
    if evictor is None or selected_indices is not None:
        return
    try:
        requests, tokens = evictor.evict(batch)
        _count(batch, requests, tokens)
    except Exception:
        faults.report("a step's evictions have failed; their tokens stay")


def begin(forward_batch: Any, batch: Any) -> None:
    """Before a forward pass, on its stream."""
    if scheduler.evictor is None:
        return
    try:
        scheduler.evictor.begin(forward_batch, batch)
    except Exception:
        faults.report("a step could not be prepared for evictions")


def remember(writes: Any) -> None:
    """Behind a forward pass whose queries lie in the buffers of capture."""
    if writes.tokens is not None:
        return
    try:
        scheduler.evictor.ring.write_all(scheduler.device.buffers.queries, writes)
    except Exception:
        faults.report("the queries of a step could not be kept")


def see(layer: Any, queries: Any) -> None:
    """Behind a layer's attention, where no buffers of capture hold its queries."""
    if scheduler.evictor is None:
        return
    try:
        scheduler.evictor.see(layer, queries)
    except Exception:
        faults.report("the queries of a step could not be kept")


def after_reset_for_retract(_result: Any, request: Any, *_: Any, **__: Any) -> None:
    """A request that is taken back is computed again, with all of its tokens."""
    if scheduler.evictor is None:
        return
    try:
        held = held_of(request)
        if held is None:
            return
        if held.barred:
            request.skip_radix_cache_insert = False
        held.clear()
    except Exception:
        faults.report("a request that was taken back could not be cleared")


def around_token_offset(original: Callable[..., Any], adder: Any, req: Any, *args: Any, **kwargs: Any) -> Any:
    """Slots set aside for a running request: no more than it will hold at a time."""
    with _bounded(req, running=True):
        return original(adder, req, *args, **kwargs)


def around_add_one_req(original: Callable[..., Any], adder: Any, req: Any, *args: Any, **kwargs: Any) -> Any:
    """Slots set aside for a new one."""
    with _bounded(req, running=False):
        return original(adder, req, *args, **kwargs)


@contextmanager
def _bounded(request: Any, *, running: bool) -> Iterator[None]:
    """While SGLang counts: a request that lets tokens go writes no more than it has room for."""
    evictor = scheduler.evictor
    room = None
    if evictor is not None:
        try:
            room = _room(request, evictor.delay, running=running)
        except Exception:
            faults.report("the room of a request could not be told; all it may write is set aside")
    if room is None:
        yield
        return
    params = request.sampling_params
    before = params.max_new_tokens
    params.max_new_tokens = room
    try:
        yield
    finally:
        params.max_new_tokens = before


def _room(request: Any, delay: int, *, running: bool) -> int | None:
    held, written = held_of(request), len(request.output_ids)
    if held is None:
        return None
    text = len(request.origin_input_ids) + written
    more = request.sampling_params.max_new_tokens - written
    if more <= 0:
        return None
    there = text - held.gone if running else text
    return written + held.retention.room(there, text, more, delay=delay, copies=held.evictions == 0 or not running)


@functools.cache
def _counters() -> tuple[Any, ...]:
    # This process writes into the directory of Prometheus' multiprocess mode like the others.
    from prometheus_client import Counter

    return (
        Counter("geom_kv_evictions", "Times that a running request let tokens of its KV go."),
        Counter("geom_kv_evicted_tokens", "Tokens whose KV left a running request."),
        Counter("geom_kv_held_tokens", "Tokens that requests held of their texts, summed over decode steps."),
        Counter("geom_kv_text_tokens", "Tokens of the texts of these requests, summed over decode steps."),
    )


def _count(batch: Any, requests: int, tokens: int) -> None:
    if not scheduler.metrics:
        return
    try:
        counts = (requests, tokens, *scheduler.evictor.held(batch))
        for counter, count in zip(_counters(), counts, strict=True):
            if count:
                counter.inc(count)
    except Exception:
        faults.report("evictions could not be counted")
