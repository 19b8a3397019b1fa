"""Main process: takes our values off SGLang's batches of outputs, once a batch, and keeps them until they are read.

Left to SGLang they would also reach the answers of requests that did not ask.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import Any

from geomcli.server_patch import faults, state
from geomcli.server_patch.answers import Answer
from geomcli.server_patch.building import build
from geomcli.server_patch.values import INFO_KEY, Sent, Value

_GRACE_SECONDS = 60.0


class _Waiting:
    """Values of one request, and SGLang's own state of it."""

    def __init__(self, of_request: Any) -> None:
        self.of_request = weakref.ref(of_request)
        self.answer: Answer | None = None
        self.values: list[Value] = []


_waiting: dict[str, _Waiting] = {}  # by request id


def before_handle_batch_output(manager: Any, batch: Any) -> None:
    wrapped = getattr(batch, "customized_info", None)
    if wrapped is None:
        return
    try:
        _take_off(manager, batch, wrapped)
    except Exception:
        faults.report("a batch of entries could not be read")
        state.main.counters.add(errors=1)


def _take_off(manager: Any, batch: Any, wrapped: Any) -> None:
    from sglang.srt.managers.io_struct import unwrap_from_pickle, wrap_as_pickle

    info = dict(unwrap_from_pickle(wrapped))
    rows = info.pop(INFO_KEY, None)
    if rows is None:
        return
    batch.customized_info = wrap_as_pickle(info) if info else None
    fresh: list[tuple[_Waiting, list[Sent]]] = []
    for rid, values in zip(batch.rids, rows, strict=True):
        tokens = [Sent(*value) for value in values if value is not None]
        of_request = manager.rid_to_state.get(rid) if tokens else None
        if of_request is not None:
            known = _waiting_of(rid, of_request)
            if known.answer is None and (options := next((t.options for t in tokens if t.options), "")):
                known.answer = Answer(options)
            fresh.append((known, tokens))
    built = build([(known.answer, tokens) for known, tokens in fresh])
    for (known, _), of_answer in zip(fresh, built, strict=True):
        known.values.extend(of_answer)


def _waiting_of(rid: str, of_request: Any) -> _Waiting:
    known = _waiting.get(rid)
    # A client that names its requests itself may use a name again.
    if known is None or known.of_request() is not of_request:
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
