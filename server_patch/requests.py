"""Main process: attention fields in, options to the scheduler, entries out of its answers.

One hook on the tokenizer manager serves chat, completions and /generate, streaming or not, one choice or many.
Nothing here may break a request that did not ask: bodies that raise count an error and let the text through.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import msgspec

from geomcli.schema import SCHEMA_VERSION
from geomcli.server_patch import faults, state
from geomcli.server_patch.options import FIELDS, UNAVAILABLE_FIELDS, CaptureOptions, resolve
from geomcli.server_patch.texts import TokenTexts, token_pieces

PARAMS_KEY = "__geom__"  # in sampling_params.custom_params, on the way to the scheduler
INFO_KEY = "geom"  # in meta_info, on the way back
OPTIONS_ATTRIBUTE = "_geom_options"
PENDING_ATTRIBUTE = "_geom_pending"
ENTRIES_KEY = "attention_tokens"


def around_convert(original: Callable[..., Any], serving: Any, request: Any, raw_request: Any = None) -> Any:
    """Chat and completions: check the fields before anything is generated; ValueError becomes HTTP 400."""
    body = getattr(raw_request, "_json", None)
    options = _options_of_body(body)
    adapted, processed = original(serving, request, raw_request)
    if options is not None:
        setattr(adapted, OPTIONS_ATTRIBUTE, options)
        setattr(adapted, PENDING_ATTRIBUTE, {})
    return adapted, processed


def _options_of_body(body: Any) -> CaptureOptions | None:
    if not isinstance(body, dict) or not any(name in body for name in (*FIELDS, *UNAVAILABLE_FIELDS)):
        return None
    return resolve(body, state.main.options, state.main.shape)


async def around_generate_request(
    original: Callable[..., Any], manager: Any, obj: Any, request: Any = None
) -> AsyncIterator[Any]:
    options = getattr(obj, OPTIONS_ATTRIBUTE, None)
    if options is None and request is not None and request.url.path == "/generate":
        options = _options_of_body(getattr(request, "_json", None))
    _set_params(obj, options)
    if options is not None:
        state.main.counters.add(requests=1)
    pending = getattr(obj, PENDING_ATTRIBUTE, None)
    collector = Collector(incremental=bool(getattr(obj, "stream", False) and manager.incremental_streaming_output))
    async with aclosing(original(manager, obj, request)) as outputs:
        async for output in outputs:
            items = output if isinstance(output, list) else [output]
            for position, item in enumerate(items):
                values = _take_info(item)
                if options is None or values is None:
                    continue
                index = item.get("index", position)
                entries = collector.new_entries(index, values)
                if pending is None or not obj.stream:
                    item[ENTRIES_KEY] = entries
                else:
                    pending.setdefault(index, []).extend(entries)
            yield output


def _set_params(obj: Any, options: CaptureOptions | None) -> None:
    """Put our options under our key, and take that key from any client that sent it itself."""
    params = getattr(obj, "sampling_params", None)
    encoded = None if options is None else msgspec.json.encode(options).decode()
    if params is None and encoded is not None:
        params = obj.sampling_params = {}
    for one in params if isinstance(params, list) else [params]:
        if not isinstance(one, dict):
            continue
        custom = one.get("custom_params")
        if isinstance(custom, dict) and PARAMS_KEY in custom:
            custom = {k: v for k, v in custom.items() if k != PARAMS_KEY}
            one["custom_params"] = custom or None
        if encoded is not None:
            one["custom_params"] = {**(custom if isinstance(custom, dict) else {}), PARAMS_KEY: encoded}


def _take_info(item: Any) -> list[Any] | None:
    meta = item.get("meta_info") if isinstance(item, dict) else None
    values = meta.pop(INFO_KEY, None) if isinstance(meta, dict) else None
    return values if isinstance(values, list) else None


class Collector:
    """Turns the scheduler's per-token values into finished entries, each once, for every choice of one request."""

    def __init__(self, *, incremental: bool) -> None:
        self._incremental = incremental
        self._seen: dict[int, int] = {}
        self._texts: dict[int, TokenTexts] = {}

    def new_entries(self, index: int, values: list[Any]) -> list[dict[str, Any]]:
        start = self._seen.get(index, 0)
        fresh = values if self._incremental else values[start:]
        self._seen[index] = start + len(fresh)
        texts = self._texts.setdefault(index, TokenTexts(state.main.tokenizer))
        entries = []
        for output_index, value in enumerate(fresh, start):
            try:
                # A bare id is a token whose step was not captured; its text is still needed to decode the next ones.
                if isinstance(value, int):
                    texts.push(value)
                else:
                    entries.append(self._finish(index, value or _lost(output_index), texts))
            except Exception:
                faults.report("a token's entry could not be read")
                state.main.counters.add(errors=1)
        state.main.counters.add(entries=len(entries))
        return entries

    @staticmethod
    def _finish(index: int, value: dict[str, Any], texts: TokenTexts) -> dict[str, Any]:
        entry = {"index": index, **value}
        try:
            if "prompt_ids" in entry:
                entry["prompt_tokens"] = token_pieces(state.main.tokenizer, entry.pop("prompt_ids"))
            entry["token"] = None if value["token_id"] is None else texts.push(value["token_id"])
        except Exception:
            faults.report("a token has no text")
            entry["token"] = None
            entry["flags"] = [*entry.get("flags", []), "error"]
        if "error" in entry.get("flags", ()):
            state.main.counters.add(errors=1)
        return entry


def _lost(output_index: int) -> dict[str, Any]:
    """The entry of a token for which the scheduler could not even say its id."""
    step = output_index + 1
    return {
        "decode_step": step,
        "step": step,
        "token_id": None,
        "flags": ["error"],
        "schema": SCHEMA_VERSION,
        "bytes": 0,
    }
