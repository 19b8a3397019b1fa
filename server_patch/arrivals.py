"""Main process: takes our values off SGLang's batches of outputs, once a batch, and keeps them until they are read.

Left to SGLang they would also reach the answers of requests that did not ask.
"""

from __future__ import annotations

import asyncio
import pickle
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple

from geomcli.server_patch import faults, state
from geomcli.server_patch.values import Value
from geomcli.server_patch.worker import Built, Order

_GRACE_SECONDS = 20.0
_LINE_LENGTH = 32
# The first order may come while the process still imports, on a machine that is busy starting an engine.
_PATIENCE_SECONDS = 60.0
_LEFT = "_geom_left"  # on SGLang's state of a request whose answer nobody reads any more


class _Waiting:
    """Values of one request, and SGLang's own state of it."""

    def __init__(self, of_request: Any) -> None:
        self.of_request = weakref.ref(of_request)
        self.values: list[Value] = []


_waiting: dict[str, _Waiting] = {}  # by request id
_over: list[str] = []  # requests that the worker may forget


class _Message(NamedTuple):
    """On its way to SGLang; `batch` is None for what is no batch of outputs and takes no place in the line."""

    handle: Callable[[], Awaitable[Any]]
    manager: Any = None
    batch: Any = None
    built: asyncio.Future[Built | None] | None = None


class _Line:
    """Batches of outputs on their way to SGLang, in their order, while the entries of later ones are being built."""

    def __init__(self) -> None:
        self._messages: deque[_Message] = deque()
        self._places = asyncio.Semaphore(_LINE_LENGTH)
        self._passing: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None

    @property
    def empty(self) -> bool:
        return self._passing is None and self._failure is None

    async def put(self, handle: Callable[[], Awaitable[Any]], manager: Any, batch: Any, wrapped: Any) -> None:
        """Returns before `handle` has run; what it raises is raised here with a later batch, as SGLang would see it."""
        if self._failure is not None:
            raise self._failure
        built = None if wrapped is None else state.main.worker.build(_order(manager, batch, wrapped))
        await self._places.acquire()
        self._append(_Message(handle, manager, batch, built))

    def follow(self, call: Callable[[], Any]) -> None:
        """Run `call` behind the batches that are in the line."""

        async def handle() -> None:
            call()

        self._append(_Message(handle))

    def _append(self, message: _Message) -> None:
        if self._failure is not None:
            raise self._failure
        self._messages.append(message)
        if self._passing is None:
            self._passing = asyncio.create_task(self._pass_on())

    async def _pass_on(self) -> None:
        try:
            while self._messages:
                handle, manager, batch, built = self._messages.popleft()
                if batch is not None:
                    self._places.release()
                if built is not None:
                    try:
                        _keep(manager, batch, await _built(built))
                    except Exception:
                        faults.report("a batch of entries could not be read")
                        batch.customized_info = None
                await handle()
        except Exception as error:
            self._failure = error
            # Whoever waits for a place is to see it.
            self._messages.clear()
            self._places.release()
        finally:
            self._passing = None


async def _built(future: asyncio.Future[Built | None]) -> Built | None:
    try:
        return await asyncio.wait_for(asyncio.shield(future), _PATIENCE_SECONDS)
    except TimeoutError:
        faults.report("the process that builds entries does not answer; they are built here")
        state.main.worker.stop()
        return await future


_line = _Line()


def around_handle_batch_output(
    original: Callable[..., Awaitable[Any]], manager: Any, batch: Any, *args: Any, **kwargs: Any
) -> Awaitable[Any]:
    wrapped = getattr(batch, "customized_info", None)
    if _line.empty and (wrapped is None or not state.main.counters.requests):
        return original(manager, batch, *args, **kwargs)
    return _line.put(lambda: original(manager, batch, *args, **kwargs), manager, batch, wrapped)


def around_handle_abort(original: Callable[..., Any], manager: Any, *args: Any, **kwargs: Any) -> Any:
    """An abort ends its request: outputs that are still in the line come first, as they came from the scheduler."""
    if _line.empty:
        return original(manager, *args, **kwargs)
    return _line.follow(lambda: original(manager, *args, **kwargs))


def _order(manager: Any, batch: Any, wrapped: Any) -> Order:
    for rid in batch.rids:
        # A client that names its requests itself may use a name again.
        if (known := _waiting.get(rid)) is not None and known.of_request() is not manager.rid_to_state.get(rid):
            _forget(rid, known)
    over = _over.copy()
    _over.clear()
    data = getattr(wrapped, "data", None)
    return Order(batch.rids, pickle.dumps(wrapped) if data is None else data, over)


def _keep(manager: Any, batch: Any, built: Built | None) -> None:
    """Keep what was built for its requests, and take it off the batch."""
    from sglang.srt.managers.io_struct import wrap_as_pickle

    if built is None:
        # Whatever else it held cannot be told apart from what is ours and no answer may carry.
        batch.customized_info = None
        return
    if built.values is None:
        return
    batch.customized_info = None if built.rest is None else wrap_as_pickle(pickle.loads(built.rest))
    for rid, values in built.values.items():
        of_request = manager.rid_to_state.get(rid)
        if of_request is None or hasattr(of_request, _LEFT):
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


def waiting() -> int:
    """Requests of which something is kept."""
    return len(_waiting)


def leave(manager: Any, obj: Any, rids: Iterable[str]) -> None:
    """Nobody reads the answers of `obj` any more: what is kept for `rids` goes, and nothing more is kept.

    Choices that said nothing so far are not known by name; what comes for them goes when SGLang forgets them.
    """
    single = isinstance(obj.rid, str)
    for rid in {*rids, obj.rid} if single else set(rids):
        of_request = manager.rid_to_state.get(rid)
        if single and of_request is not None and of_request.obj is not obj:
            continue  # another request of the same name
        if of_request is not None:
            setattr(of_request, _LEFT, True)
        if (known := _waiting.get(rid)) is not None:
            _forget(rid, known)


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
