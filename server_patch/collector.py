"""Main process: the scheduler's values become the entries of an answer, each once, for every choice of one request."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from geomcli.schema import SCHEMA_VERSION
from geomcli.server_patch import faults, state
from geomcli.server_patch.texts import TokenTexts, token_pieces
from geomcli.server_patch.values import Value, spliced


class Collector:
    """A token whose value is missing gets an entry that says so: a value's step shows a gap before it, the number of
    generated tokens one at the end.
    """

    def __init__(self) -> None:
        self._tokens: dict[int, int] = {}  # tokens accounted for, by choice
        self._texts: dict[int, TokenTexts] = {}

    def new_entries(self, index: int, values: Sequence[Value], total: int) -> list[bytes]:
        """JSON of the entries of choice `index` up to its `total`-th token; values: those since the last call."""
        texts = self._texts.get(index)
        if texts is None:
            texts = self._texts[index] = TokenTexts(state.main.tokenizer)
        entries: list[bytes] = []
        zones: list[str] = []
        size, errors, done = 0, 0, self._tokens.get(index, 0)
        for value in values:
            for step in range(done + 1, value.step):
                entries.append(_lost(index, step))
                errors += 1
            done = value.step
            # The text of a token that was not captured is needed to decode the next ones.
            text = _push(texts, value.token_id)
            if value.body:
                entries.append(_finish(index, value, text))
                errors += value.failed
                size += value.size
                if value.zone:
                    zones.append(value.zone)
        for step in range(done + 1, total + 1):
            entries.append(_lost(index, step))
            errors += 1
        self._tokens[index] = max(done, total)
        text_size = sum(map(len, entries))
        state.main.counters.add(
            entries=len(entries), errors=errors, engine_bytes=size, json_bytes=text_size, zones=zones
        )
        return entries


def _finish(index: int, value: Value, text: str | None) -> bytes:
    pieces = None
    if value.prompt_ids is not None:
        try:
            pieces = token_pieces(state.main.tokenizer, value.prompt_ids)
        except Exception:
            faults.report("a prompt has no texts")
    return spliced(index, value.body, text, pieces, prompt=value.prompt_ids is not None)


def _push(texts: TokenTexts, token_id: int) -> str | None:
    try:
        return texts.push(token_id)
    except Exception:
        faults.report("a token has no text")
        return None


def _lost(index: int, step: int) -> bytes:
    """The entry of a token for which the scheduler could not even say its id."""
    entry = {"index": index, "decode_step": step, "step": step, "token_id": None, "flags": ["error"],
             "schema": SCHEMA_VERSION, "bytes": 0, "token": None}  # fmt: skip
    return orjson.dumps(entry)
