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
from geomcli.server_patch.options import ASK, FIELDS, UNAVAILABLE_FIELDS, CaptureOptions, resolve
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
                values, total = _take_info(item)
                if options is None or total is None:
                    continue
                index = item.get("index", position)
                try:
                    entries = collector.new_entries(index, values, total)
                except Exception:
                    faults.report("an answer leaves without its entries")
                    state.main.counters.add(errors=1)
                    continue
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
        if encoded is not None and isinstance(width := one.get("beam_width"), int) and width > 1:
            raise ValueError(f"{ASK}: beam search cannot be captured, leave beam_width out")
        custom = one.get("custom_params")
        if isinstance(custom, dict) and PARAMS_KEY in custom:
            custom = {k: v for k, v in custom.items() if k != PARAMS_KEY}
            one["custom_params"] = custom or None
        if encoded is not None:
            one["custom_params"] = {**(custom if isinstance(custom, dict) else {}), PARAMS_KEY: encoded}


def _take_info(item: Any) -> tuple[list[Any], int | None]:
    """Our values, taken from the item, and the tokens generated so far; None for an item that is no answer."""
    meta = item.get("meta_info") if isinstance(item, dict) else None
    if not isinstance(meta, dict):
        return [], None
    values, total = meta.pop(INFO_KEY, None), meta.get("completion_tokens")
    return values if isinstance(values, list) else [], total if isinstance(total, int) else None


class Collector:
    """Turns the scheduler's per-token values into finished entries, each once, for every choice of one request.

    A token whose value is missing gets an entry that says so: an entry's own `decode_step` shows a gap before it, the
    number of generated tokens one at the end.
    """

    def __init__(self, *, incremental: bool) -> None:
        self._incremental = incremental
        self._taken: dict[int, int] = {}  # values read, by choice
        self._tokens: dict[int, int] = {}  # tokens accounted for, by choice
        self._texts: dict[int, TokenTexts] = {}

    def new_entries(self, index: int, values: list[Any], total: int) -> list[dict[str, Any]]:
        """Entries of the tokens up to the `total`-th that have not been given out yet.

        values: those of the tokens since the last call (incremental) or of all tokens so far.
        """
        start = self._taken.get(index, 0)
        # SGLang's list of all values grows while an answer waits to be read; what is beyond `total` comes again.
        fresh = values if self._incremental else values[start:total]
        self._taken[index] = start + len(fresh)
        texts = self._texts.setdefault(index, TokenTexts(state.main.tokenizer))
        entries: list[dict[str, Any]] = []
        done = self._tokens.get(index, 0)
        for value in fresh:
            known = value.get("decode_step", done + 1) - 1 if isinstance(value, dict) else done
            entries += (self._finish(index, _lost(n), texts) for n in range(done, known))
            done = max(done, known) + 1
            # A bare id is a token whose step was not captured; its text is still needed to decode the next ones.
            if isinstance(value, int):
                self._push(texts, value)
            else:
                entries.append(self._finish(index, value or _lost(done - 1), texts))
        entries += (self._finish(index, _lost(n), texts) for n in range(done, total))
        self._tokens[index] = max(done, total)
        state.main.counters.add(entries=len(entries))
        return entries

    @staticmethod
    def _push(texts: TokenTexts, token_id: int) -> str | None:
        try:
            return texts.push(token_id)
        except Exception:
            faults.report("a token has no text")
            return None

    @classmethod
    def _finish(cls, index: int, value: dict[str, Any], texts: TokenTexts) -> dict[str, Any]:
        entry = {"index": index, **value}
        if "prompt_ids" in entry:
            prompt_ids = entry.pop("prompt_ids")
            try:
                entry["prompt_tokens"] = token_pieces(state.main.tokenizer, prompt_ids)
            except Exception:
                faults.report("a prompt has no texts")
                entry["prompt_tokens"] = None
        token_id = entry.get("token_id")
        entry["token"] = None if token_id is None else cls._push(texts, token_id)
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
