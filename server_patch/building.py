"""Tokens and what was found for them become the JSON of entries, all requests of a batch in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import orjson

from geomcli.server_patch import faults
from geomcli.server_patch.answers import Answer
from geomcli.server_patch.entries import build_entries, error_entry, stopped_entry
from geomcli.server_patch.sidecar_push import packed
from geomcli.server_patch.step_numbers import CapturedToken, numbers_of
from geomcli.server_patch.values import CAPTURED, NOT_CAPTURED, STOPPED, Token, Value


def build(
    answers: Sequence[tuple[Answer, Sequence[Token]]],
    layers: tuple[int, ...],
    between: Callable[[], None] = lambda: None,
    model: str = "",
) -> list[list[Value]]:
    """Values of each answer's tokens, in order; `layers` are those that the server captures.

    `between` is called now and then: many tokens take a while. model: what messages for the sidecar call it; without
    there are none.
    """
    entries: list[dict[int, dict[str, Any]]] = [{} for _ in answers]
    captured = [[n for n, token in enumerate(tokens) if token.kind == CAPTURED] for _, tokens in answers]
    # Compass and ripple move token by token: each pass takes one token of every answer.
    for turn in range(max(map(len, captured), default=0)):
        at = [(i, places[turn]) for i, places in enumerate(captured) if turn < len(places)]
        due = [CapturedToken(answers[i][0], answers[i][1][n]) for i, n in at]
        for (i, n), entry in zip(at, _entries(due, layers), strict=True):
            entries[i][n] = entry
        between()
    return [
        [_value(answer, token, of_answer.get(n), model) for n, token in enumerate(tokens)]
        for (answer, tokens), of_answer in zip(answers, entries, strict=True)
    ]


def _entries(due: list[CapturedToken], layers: tuple[int, ...]) -> list[dict[str, Any]]:
    """Error entries when the numbers cannot be had."""
    contexts = [_context(one.token) for one in due]
    try:
        return build_entries(contexts, due, numbers_of(due, layers))
    except Exception:
        faults.report("the entries of a step could not be built")
        return [error_entry(context, one.options) for context, one in zip(contexts, due, strict=True)]


def _value(answer: Answer, token: Token, entry: dict[str, Any] | None, model: str) -> Value:
    if token.kind == NOT_CAPTURED:
        return Value(token.step, token.token_id)
    if entry is None:
        without = stopped_entry if token.kind == STOPPED else error_entry
        entry = without(_context(token), answer.options)
    body = orjson.dumps(entry)[1:-1]
    failed, zone = "error" in entry["flags"], entry.get("zone", "")
    pushed = packed(model, answer.request, entry) if model else b""
    return Value(token.step, token.token_id, failed, body, None, zone, entry["bytes"], pushed)


def _context(token: Token) -> dict[str, Any]:
    return {
        "decode_step": token.step,
        "step": token.step,
        "token_id": token.token_id,
        "query_position": token.query_position,
        "prompt_len": token.prompt_len,
    }
