"""What travels from the scheduler to the main process for one output token of a request that asked.

An entry is turned into JSON in the scheduler, whose work the GPU's hides, and only spliced by the main process, which
writes every stream. Plain tuples: they are pickled with the tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson


class Value(NamedTuple):
    """One output token; `body` is its entry's JSON without braces, empty for a token whose step was not captured."""

    step: int  # 1-based, as `decode_step`
    token_id: int
    failed: bool = False
    body: bytes = b""
    prompt_ids: list[int] | None = None  # on the first entry of a request that asked for its prompt's texts


def packed(entry: dict[str, Any], prompt_ids: list[int] | None) -> tuple[Any, ...]:
    """`entry` as a plain tuple in the order of Value."""
    body = orjson.dumps(entry)[1:-1]
    return (entry["decode_step"], entry["token_id"], "error" in entry["flags"], body, prompt_ids)


def spliced(index: int, body: bytes, token: str | None, prompt_tokens: list[str] | None, *, prompt: bool) -> bytes:
    """JSON of the entry as it leaves the server: with its choice's index and its token's text."""
    more = b',"prompt_tokens":' + orjson.dumps(prompt_tokens) if prompt else b""
    return b'{"index":%d,%b,"token":%b%b}' % (index, body, orjson.dumps(token), more)
