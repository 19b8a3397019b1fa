"""Main process: has the entries of every batch of outputs built before SGLang reads it, and keeps them until then."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple

from geomcli.server_patch import endings, faults, state
from geomcli.server_patch.values import Value, key_and_options, parameter_of
from geomcli.server_patch.worker import Built, Order

PROMPT_ATTRIBUTE = "_geom_prompt_ids"  # on the request's object, where its prompt's texts were asked for

_GRACE_SECONDS = 20.0
_LINE_LENGTH = 32
# A build may have to wait while the machine is busy with something else.
_PATIENCE_SECONDS = 60.0
_LEFT = "_geom_left"  # on SGLang's state of a request whose answer nobody reads any more


class _Waiting:
    """Values of one request, and SGLang's own state of it."""

    def __init__(self, of_request: Any, key: str, options: str) -> None:
        self.of_request = weakref.ref(of_request)
        self.key, self.options = key, options
        self.tokens = 0
        self.prompt_ids: list[int | None] | None = getattr(of_request.obj, PROMPT_ATTRIBUTE, None)
        self.values: list[Value] = []


# What Value._make does, without its frame for each token.
_value = functools.partial(tuple.__new__, Value)
_waiting: dict[str, _Waiting] = {}  # by request id
_over: list[str] = []  # keys of requests that the worker may forget


class _Ordered(NamedTuple):
    order: Order
    waiting: list[_Waiting]  # whose tokens they are


class _Message(NamedTuple):
    """On its way to SGLang; what is no batch of outputs takes no place in the line."""

    handle: Callable[[], Awaitable[Any]]
    placed: bool = False
    waiting: list[_Waiting] | None = None
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

    async def put(self, handle: Callable[[], Awaitable[Any]], ordered: _Ordered | None = None) -> None:
        """Returns before `handle` has run; what it raises is raised here with a later batch, as SGLang would see it."""
        if self._failure is not None:
            raise self._failure
        waiting = built = None
        if ordered is not None:
            waiting, built = ordered.waiting, state.main.worker.build(ordered.order)
        await self._places.acquire()
        self._append(_Message(handle, True, waiting, built))

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
                handle, placed, waiting, built = self._messages.popleft()
                if placed:
                    self._places.release()
                if waiting is not None and built is not None:
                    try:
                        _keep(waiting, await _built(built))
                    except Exception:
                        faults.report("a batch of entries could not be read")
                await handle()
        except Exception as error:
            self._failure = error
            # Whoever waits for a place is to see it.
            self._messages.clear()
            self._places.release()
        finally:
            self._passing = None


async def _built(future: asyncio.Future[Built | None]) -> Built | None:
    if not future.done():
        await asyncio.wait((future,), timeout=_PATIENCE_SECONDS)
    if not future.done():
        faults.note("the process that builds entries does not answer; they are built here")
        state.main.worker.stop()
    return await future


_line = _Line()


def around_handle_batch_output(
    original: Callable[..., Awaitable[Any]], manager: Any, batch: Any, *args: Any, **kwargs: Any
) -> Awaitable[Any]:
    ordered = None
    endings.named(getattr(batch, "finished_reasons", None) or ())
    if state.main.counters.requests:
        try:
            ordered = _ordered(manager, batch)
        except Exception:
            faults.report("a batch of outputs could not be read; its entries are lost")
    if ordered is None and _line.empty:
        return original(manager, batch, *args, **kwargs)
    return _line.put(lambda: original(manager, batch, *args, **kwargs), ordered)


def around_handle_abort(original: Callable[..., Any], manager: Any, *args: Any, **kwargs: Any) -> Any:
    """An abort ends its request: outputs that are still in the line come first, as they came from the scheduler."""
    if _line.empty:
        return original(manager, *args, **kwargs)
    return _line.follow(lambda: original(manager, *args, **kwargs))


def _ordered(manager: Any, batch: Any) -> _Ordered | None:
    """The new tokens of requests that asked; None when there are none."""
    output_ids = getattr(batch, "output_ids", None)
    if output_ids is None:
        return None
    tokens, owners = [], []
    for at, rid in enumerate(batch.rids):
        waiting = _waiting_of(rid, manager.rid_to_state.get(rid))
        if waiting is None:
            continue
        ids = list(output_ids[at])
        # The fields of worker.Tokens.
        tokens.append((waiting.key, waiting.tokens, ids, waiting.options, batch.prompt_tokens[at]))
        waiting.tokens += len(ids)
        owners.append(waiting)
    if not tokens:
        return None
    over = _over.copy()
    _over.clear()
    return _Ordered(Order(tokens, over), owners)


def _keep(owners: list[_Waiting], built: Built | None) -> None:
    """Keep what was built for its requests."""
    if built is None:
        return
    for waiting in owners:
        values = built[waiting.key]
        if not values:
            continue
        waiting.values += map(_value, values)
        if waiting.prompt_ids is not None and values[0][0] == 1:
            at = len(waiting.values) - len(values)
            waiting.values[at] = waiting.values[at]._replace(prompt_ids=waiting.prompt_ids)


def _waiting_of(rid: str, of_request: Any) -> _Waiting | None:
    """None for a request that did not ask, or that nobody waits for any more."""
    known = _waiting.get(rid)
    if known is not None:
        if known.of_request() is of_request:
            return known
        # A client that names its requests itself may use a name again.
        _forget(rid, known)
    if of_request is None or hasattr(of_request, _LEFT):
        return None
    if (encoded := parameter_of(of_request.obj)) is None:
        return None
    known = _waiting[rid] = _Waiting(of_request, *key_and_options(encoded, rid))
    # SGLang forgets a request just before its last output is read, and one whose client has left without a word.
    weakref.finalize(of_request, _forget_later, asyncio.get_running_loop(), rid, known).atexit = False
    return known


def _forget_later(loop: asyncio.AbstractEventLoop, rid: str, known: _Waiting) -> None:
    # A loop that has ended has nobody left who would ask.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(loop.call_later, _GRACE_SECONDS, _forget, rid, known)


def _forget(rid: str, known: _Waiting) -> None:
    if _waiting.get(rid) is known:
        del _waiting[rid]
        _over.append(known.key)


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
    if not values or values[-1].step <= total:
        known.values = []
        return values
    cut = next((i for i, value in enumerate(values) if value.step > total), len(values))
    taken = values[:cut]
    del values[:cut]
    return taken
