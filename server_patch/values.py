"""One output token of a request that asked: as the scheduler sends it, and as the main process keeps it.

The scheduler sends the bytes of records and does nothing else for it: whatever it computes between two steps the GPU
waits for. Plain tuples travel, pickled with the tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import orjson

PARAMS_KEY = "__geom__"  # in sampling_params.custom_params, on the way to the scheduler
INFO_KEY = "geom"  # among SGLang's customized_info, on the way back
NOT_CAPTURED, CAPTURED, FAILED, STOPPED = range(4)


class Sent(NamedTuple):
    """One output token on its way from the scheduler; of one that was not captured only the first two are known."""

    step: int  # 1-based, as `decode_step`
    token_id: int
    kind: int = NOT_CAPTURED
    request: tuple[str, int, int] = ("", 0, 0)  # its CaptureOptions as JSON, its prompt's length, its stamp
    thinking: bool = False
    flags: tuple[str, ...] = ()  # raised on every entry of its step
    records: bytes = b""  # int32 [layers, words] of kernels.layout, cut behind what the mode needs
    heads: bytes | None = None  # float32 [wanted layers, 4, heads]: entropy, sink, prev, lookback
    prompt_ids: list[int] | None = None  # with the first token of a request that asked for its prompt's texts
    routing: bytes | None = None  # int32 [layers with experts, 2, k]: experts, bits of their float32 weights

    @property
    def options(self) -> str:
        return self.request[0]

    @property
    def prompt_len(self) -> int:
        return self.request[1]

    @property
    def stamp(self) -> int:
        """Names the request on the device."""
        return self.request[2]

    @property
    def query_position(self) -> int:
        return self.request[1] + self.step - 2


class Value(NamedTuple):
    """One output token; `body` is its entry's JSON without braces, empty for a token whose step was not captured."""

    step: int
    token_id: int
    failed: bool = False
    body: bytes = b""
    prompt_ids: list[int] | None = None


def spliced(index: int, body: bytes, token: str | None, prompt_tokens: list[str] | None, *, prompt: bool) -> bytes:
    """JSON of the entry as it leaves the server: with its choice's index and its token's text."""
    more = b',"prompt_tokens":' + orjson.dumps(prompt_tokens) if prompt else b""
    return b'{"index":%d,%b,"token":%b%b}' % (index, body, orjson.dumps(token), more)
