"""Main process: attention fields in, options to the scheduler, entries out of its answers.

One hook on the tokenizer manager serves chat, completions and /generate, streaming or not, one choice or many.
Nothing here may break a request that did not ask: bodies that raise count an error and let the text through.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import msgspec
import orjson

from geomcli.server_patch import arrivals, eviction_options, faults, guards, reasoning, state, system_prompt
from geomcli.server_patch.collector import Collector
from geomcli.server_patch.request_options import ASK, FIELDS, CaptureOptions, resolve, unasked
from geomcli.server_patch.values import PARAMS_KEY, RETENTION_KEY, SILENT, key_and_options, parameter_of

OPTIONS_ATTRIBUTE = "_geom_options"
RETENTION_ATTRIBUTE = "_geom_retention"
PENDING_ATTRIBUTE = "_geom_pending"
MASK_ATTRIBUTE = "_geom_masked"  # of a request that did not ask: tokens of its system prompt
ENTRIES_KEY = "attention_tokens"
_OURS = (PARAMS_KEY, RETENTION_KEY)
_GENERATES = "GenerateReqInput"  # SGLang's request for text; others want scores or embeddings
_serials = itertools.count(1)


def around_convert(original: Callable[..., Any], serving: Any, request: Any, raw_request: Any = None) -> Any:
    """Chat and completions: check the fields before anything is generated; ValueError becomes HTTP 400."""
    body = getattr(raw_request, "_json", None)
    options = None
    if body is not None:
        try:
            options = options_of_body(body, raw_request.scope)
        except guards.Refused as refused:
            from fastapi import HTTPException

            raise HTTPException(refused.status_code, str(refused)) from None
    retention = None if body is None else retention_of_body(body)
    chat = hasattr(request, "messages")
    if options is None:
        masks = chat and state.main.options.mask_system_prompt and state.main.options.observes
        if masks:
            with system_prompt.watched() as renderings:
                converted = original(serving, request, raw_request)
            _mask_silently(converted[0], renderings)
        else:
            converted = original(serving, request, raw_request)
        if retention is not None:
            setattr(converted[0], RETENTION_ATTRIBUTE, retention)
        return converted
    with system_prompt.watched() as renderings:
        adapted, processed = original(serving, request, raw_request)
    if chat and state.main.options.mask_system_prompt:
        with _counted():
            masked = system_prompt.tokens_of(renderings, adapted.input_ids)
        options = msgspec.structs.replace(options, mask_prefix=max(options.mask_prefix, masked))
    setattr(adapted, OPTIONS_ATTRIBUTE, options)
    setattr(adapted, RETENTION_ATTRIBUTE, retention)
    setattr(adapted, PENDING_ATTRIBUTE, {})
    if chat:
        setattr(adapted, reasoning.THINKING_ATTRIBUTE, reasoning.of_chat(serving, request))
    return adapted, processed


def _mask_silently(adapted: Any, renderings: Any) -> None:
    """What looks at answers that did not ask sees what it sees of those that did; where that cannot be told, nothing is
    masked: who asks for nothing is refused nothing.
    """
    try:
        setattr(adapted, MASK_ATTRIBUTE, system_prompt.tokens_of(renderings, adapted.input_ids))
    except ValueError:
        faults.note("where a system prompt ends could not be told; a firewall sees all of it")


def options_of_body(body: Any, scope: guards.Scope) -> CaptureOptions | None:
    """The capture that a request asks for, which may be asked of the same request again; None if it does not ask.

    Refused, or ValueError for a bad field.
    """
    if not isinstance(body, dict) or not any(name in body for name in FIELDS):
        return None
    with _counted():
        if guards.asks(body):
            guards.check(scope)
        options = resolve(body, state.main.options, state.main.shape)
        if options is not None:
            _refuse_beams(body.get("sampling_params"))
            guards.enter(scope, guards.width_of(body))
        return options


def retention_of_body(body: Any) -> float | None:
    """The share of its KV that a request asks to keep, whose fields have been checked."""
    return eviction_options.of_request(body, state.main.options.retention) if isinstance(body, dict) else None


@contextmanager
def _counted() -> Iterator[None]:
    """Count the refusal of the request that is checked in the block."""
    try:
        yield
    except ValueError as error:
        state.main.counters.refuse(error.reason if isinstance(error, guards.Refused) else "invalid")
        raise


def _refuse_beams(sampling: Any) -> None:
    for one in sampling if isinstance(sampling, list) else [sampling]:
        if isinstance(one, dict) and isinstance(width := one.get("beam_width"), int) and width > 1:
            raise ValueError(f"{ASK}: beam search cannot be captured, leave beam_width out")


def around_generate_request(
    original: Callable[..., Any], manager: Any, obj: Any, request: Any = None
) -> AsyncIterator[Any]:
    """The outputs of a request, with its entries if it asked; one that did not gets SGLang's own iterator.

    ValueError for a bad field, before anything is read.
    """
    options = getattr(obj, OPTIONS_ATTRIBUTE, None)
    retention = getattr(obj, RETENTION_ATTRIBUTE, None)
    if options is None and request is not None and guards.path_of(request.scope) == "/generate":
        body = getattr(request, "_json", None)
        options, retention = options_of_body(body, request.scope), retention_of_body(body)
    if options is None and state.main.options.observes:
        options = _unasked(obj, getattr(request, "_json", None))
    _set_params(obj, options, retention)
    outputs: AsyncIterator[Any] = original(manager, obj, request)
    if options is None or not options.entries:
        return outputs
    return _with_entries(outputs, manager, obj, request, options)


def _unasked(obj: Any, body: Any) -> CaptureOptions | None:
    """What the server captures of a request that did not ask; None of what writes no text, and of beams."""
    if type(obj).__name__ != _GENERATES:
        return None
    try:
        _refuse_beams(getattr(obj, "sampling_params", None))
    except ValueError:
        return None
    given = body if isinstance(body, dict) else {"sampling_params": getattr(obj, "sampling_params", None)}
    found = unasked(given, state.main.options, state.main.shape)
    masked = getattr(obj, MASK_ATTRIBUTE, 0)
    return msgspec.structs.replace(found, mask_prefix=masked) if found is not None and masked else found


def _collector(manager: Any, obj: Any) -> Collector:
    if hasattr(obj, reasoning.THINKING_ATTRIBUTE):
        return Collector(getattr(obj, reasoning.THINKING_ATTRIBUTE))
    params = getattr(obj, "sampling_params", None)
    first = params[0] if isinstance(params, list) and params else params
    choices = first.get("n") if isinstance(first, dict) else None
    return Collector(reasoning.of_prompt(manager, obj), choices if isinstance(choices, int) and choices > 0 else 1)


async def _with_entries(
    outputs: Any, manager: Any, obj: Any, request: Any, options: CaptureOptions
) -> AsyncIterator[Any]:
    state.main.counters.ask(options.mode)
    state.main.worker.listen()
    pending = getattr(obj, PENDING_ATTRIBUTE, None)
    collector, rids = _collector(manager, obj), set[str]()
    if request is not None and (capture := guards.capture_of(request.scope)) is not None:
        capture.watch(manager, rids)
    try:
        async with aclosing(outputs):
            async for output in outputs:
                items = output if isinstance(output, list) else [output]
                for position, item in enumerate(items):
                    try:
                        found = _entries_of(item, position, collector, rids)
                    except Exception:
                        faults.report("an answer leaves without its entries")
                        state.main.counters.add(errors=1)
                        continue
                    if found is None:
                        continue
                    index, entries = found
                    if pending is None or not obj.stream:
                        item[ENTRIES_KEY] = [orjson.Fragment(entry) for entry in entries]
                    elif entries:
                        pending.setdefault(index, []).extend(entries)
                yield output
    finally:
        if request is not None:
            guards.leave(request.scope)
        arrivals.leave(manager, obj, rids)


def after_create_tokenized(tokenized: Any, _manager: Any, obj: Any, *_: Any, **__: Any) -> None:
    """Keep the ids of a prompt whose texts were asked for, None for masked ones."""
    encoded, ids = parameter_of(obj), getattr(tokenized, "input_ids", None)
    if encoded is None or ids is None:
        return
    options = msgspec.json.decode(key_and_options(encoded, "")[1], type=CaptureOptions)
    if options.prompt_tokens:
        masked = min(options.mask_prefix, len(ids))
        setattr(obj, arrivals.PROMPT_ATTRIBUTE, [*[None] * masked, *ids[masked:]])


def _entries_of(item: Any, position: int, collector: Collector, rids: set[str]) -> tuple[int, list[bytes]] | None:
    """Choice and new entries of one output; None for one that is no answer."""
    meta = item.get("meta_info") if isinstance(item, dict) else None
    total = meta.get("completion_tokens") if isinstance(meta, dict) else None
    if meta is None or not isinstance(total, int):
        return None
    index = item.get("index", position)
    rids.add(meta["id"])
    over = meta.get("finish_reason") is not None
    return index, collector.new_entries(index, arrivals.take(meta["id"], total), total, over=over)


def _set_params(obj: Any, options: CaptureOptions | None, retention: float | None = None) -> None:
    """Put our options under our keys, and take those keys from any client that sent them itself."""
    params = getattr(obj, "sampling_params", None)
    encoded = None
    own: dict[str, Any] = {} if retention is None else {RETENTION_KEY: retention}
    if options is not None:
        serial = f"{next(_serials)}:" if options.entries else SILENT
        encoded = serial + msgspec.json.encode(options).decode()
        own[PARAMS_KEY] = encoded
    if params is None and own:
        params = obj.sampling_params = {}
    if encoded is not None:
        with _counted():
            _refuse_beams(params)
    for one in params if isinstance(params, list) else [params]:
        if not isinstance(one, dict):
            continue
        custom = one.get("custom_params")
        if isinstance(custom, dict) and not custom.keys().isdisjoint(_OURS):
            custom = {k: v for k, v in custom.items() if k not in _OURS}
            one["custom_params"] = custom or None
        if own:
            one["custom_params"] = {**(custom if isinstance(custom, dict) else {}), **own}
