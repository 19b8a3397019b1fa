"""Main process: takes our values off SGLang's batches of outputs, once a batch, and keeps them until they are read.

Left to SGLang they would also reach the answers of requests that did not ask.
"""

from __future__ import annotations

import asyncio
import pickle
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

from geomcli.server_patch import faults, state
from geomcli.server_patch.values import Value
from geomcli.server_patch.worker import Order

_GRACE_SECONDS = 60.0


class _Waiting:
    """Values of one request, and SGLang's own state of it."""

    def __init__(self, of_request: Any) -> None:
        self.of_request = weakref.ref(of_request)
        self.values: list[Value] = []


_waiting: dict[str, _Waiting] = {}  # by request id
_over: list[str] = []  # requests that the worker may forget


def around_handle_batch_output(
    original: Callable[..., Awaitable[Any]], manager: Any, batch: Any, *args: Any, **kwargs: Any
) -> Awaitable[Any]:
    wrapped = getattr(batch, "customized_info", None)
    if wrapped is None or not state.main.counters.requests:
        return original(manager, batch, *args, **kwargs)

    async def handle() -> Any:
        try:
            await _take_off(manager, batch, wrapped)
        except Exception:
            faults.report("a batch of entries could not be read")
        return await original(manager, batch, *args, **kwargs)

    return handle()


async def _take_off(manager: Any, batch: Any, wrapped: Any) -> None:
    from sglang.srt.managers.io_struct import wrap_as_pickle

    states = {rid: manager.rid_to_state.get(rid) for rid in batch.rids}
    for rid, of_request in states.items():
        # A client that names its requests itself may use a name again.
        if (known := _waiting.get(rid)) is not None and known.of_request() is not of_request:
            _forget(rid, known)
    over = _over.copy()
    _over.clear()
    data = getattr(wrapped, "data", None)
    built = await state.main.worker.build(Order(batch.rids, pickle.dumps(wrapped) if data is None else data, over))
    if built is None or built.values is None:
        return
    batch.customized_info = None if built.rest is None else wrap_as_pickle(pickle.loads(built.rest))
    for rid, values in built.values.items():
        of_request = states[rid]
        if of_request is None:
            _over.append(rid)
        else:
            _waiting_of(rid, of_request).values.extend(Value(*value) for value in values)


def _waiting_of(rid: str, of_request: Any) -> _Waiting:
    known = _waiting.get(rid)
    if known is None:
        known = _waiting[rid] = _Waiting(of_request)
        # SGLang forgets a request just before its last output is read, and one whose client has left without a word.
        loop = asyncio.get_running_loop()
        end = weakref.finalize(
            of_request, loop.call_soon_threadsafe, loop.call_later, _GRACE_SECONDS, _forget, rid, known
        )
        end.atexit = False
    return known


def _forget(rid: str, known: _Waiting) -> None:
    if _waiting.get(rid) is known:
        del _waiting[rid]
        _over.append(rid)


def take(rid: str, total: int) -> list[Value]:
    """Values of the request's tokens up to the `total`-th, each once: those of the next batch may have come already."""
    known = _waiting.get(rid)
    if known is None:
        return []
    values = known.values
    cut = next((i for i, value in enumerate(values) if value.step > total), len(values))
    taken = values[:cut]
    del values[:cut]
    return taken
