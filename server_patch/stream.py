"""Main process: entries onto the OpenAI-compatible responses."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from functools import lru_cache
from typing import Any

import orjson

from geomcli.server_patch import faults, state
from geomcli.server_patch.requests import ENTRIES_KEY, OPTIONS_ATTRIBUTE, PENDING_ATTRIBUTE

_PREFIX, _DONE = "data: ", "data: [DONE]"
_END = "}\n\n"
# Quotes inside of texts are escaped, so that these can only be the chunk's own keys.
_CHOICE, _ROLE = re.compile(r'"choices":\[\{"index":(\d+),'), '"role":"'


async def around_stream(
    original: Callable[..., Any], serving: Any, adapted_request: Any, request: Any, raw_request: Any
) -> AsyncIterator[str]:
    """Add waiting entries to the next chunk of their choice; what no chunk took leaves before [DONE]."""
    if getattr(adapted_request, OPTIONS_ATTRIBUTE, None) is None:
        async with aclosing(original(serving, adapted_request, request, raw_request)) as chunks:
            async for chunk in chunks:
                yield chunk
        return
    pending: dict[int, list[bytes]] = getattr(adapted_request, PENDING_ATTRIBUTE)
    template: dict[str, Any] = {}
    async with aclosing(original(serving, adapted_request, request, raw_request)) as chunks:
        async for chunk in chunks:
            if chunk.startswith(_DONE):
                rest = [entry for index in sorted(pending) for entry in pending[index]]
                if rest and template:
                    yield _encode({**template, "choices": []}, rest)
                yield chunk
                continue
            yield _with_entries(chunk, pending, template)


def _with_entries(chunk: str, pending: dict[int, list[bytes]], template: dict[str, Any]) -> str:
    if not pending and template:
        return chunk
    try:
        if not chunk.startswith(_PREFIX):
            return chunk
        if template and (choice := _CHOICE.search(chunk)) and _ROLE not in chunk and chunk.endswith(_END):
            # As every token's chunk is written: nothing of it has to be read.
            entries = pending.pop(int(choice[1]), None)
            return f"{chunk.removesuffix(_END)},{_field(entries)}{_END}" if entries else chunk
        document = orjson.loads(chunk[len(_PREFIX) :])
        if not template:
            template.update({k: document[k] for k in ("id", "object", "created", "model") if k in document})
        choices = document.get("choices") or []
        if not choices or (choices[0].get("delta") or {}).get("role"):
            return chunk
        entries = pending.pop(choices[0].get("index", 0), None)
        if not entries:
            return chunk
        return _encode(document, entries)
    except Exception:
        faults.report("a chunk left without its entries")
        state.main.counters.add(errors=1)
        return chunk


def _encode(document: dict[str, Any], entries: Iterable[bytes]) -> str:
    return _PREFIX + orjson.dumps(document).decode().removesuffix("}") + "," + _field(entries) + _END


def _field(entries: Iterable[bytes]) -> str:
    return f'"{ENTRIES_KEY}":[{b",".join(entries).decode()}]'


def after_build_response(response: Any, _serving: Any, _request: Any, ret: Any, _created: Any) -> Any:
    """The response with a top-level `attention_tokens`; an instance of a subclass, so isinstance still holds."""
    try:
        asked = [(index, item[ENTRIES_KEY]) for index, item in enumerate(ret) if ENTRIES_KEY in item]
        if not asked or not hasattr(response, "model_dump"):
            return None
        # Pydantic knows nothing of fragments.
        entries = [{**orjson.loads(orjson.dumps(e)), "index": index} for index, of_item in asked for e in of_item]
        return _with_entries_field(response.__class__).model_construct(**dict(response), attention_tokens=entries)
    except Exception:
        faults.report("an answer leaves without its entries")
        state.main.counters.add(errors=1)
        return None


@lru_cache(maxsize=8)
def _with_entries_field(model: Any) -> Any:
    from pydantic import create_model

    return create_model(model.__name__, __base__=model, attention_tokens=(list[Any], ...))
