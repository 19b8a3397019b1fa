"""One output token of a request that asked: as entries are built from it, and as the main process keeps it."""

from __future__ import annotations

import hashlib
import sys
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

SILENT = "0:"  # begins the parameter of a request of which nothing leaves the server
PARAMS_KEY = "__geom__"  # in sampling_params.custom_params, on the way to the scheduler
RETENTION_KEY = "__geom_kv__"  # beside it: the share of its KV that a request keeps
_NAME_LETTERS = 64
LOGIT_STATISTICS = ("logprob", "entropy_bits", "margin")
NOT_CAPTURED, CAPTURED, FAILED, STOPPED = range(4)


def parameter_of(obj: Any) -> str | None:
    """Our parameter on a request's object of the main process; None where it did not ask for entries."""
    params = getattr(obj, "sampling_params", None)
    custom = params.get("custom_params") if isinstance(params, dict) else None
    found = custom.get(PARAMS_KEY) if isinstance(custom, dict) else None
    return None if found is None or found.startswith(SILENT) else found


def key_and_options(encoded: str, rid: str) -> tuple[str, str]:
    """From a request's parameter: what the request is called between the processes, and its CaptureOptions as JSON.

    Clients may use a request id again, and one parameter may belong to many requests; together they name one. An id of
    any length has a name of at most 64 letters behind the number.
    """
    serial, options = encoded.split(":", 1)
    name = rid if len(rid) <= _NAME_LETTERS else hashlib.sha256(rid.encode(errors="replace")).hexdigest()
    return f"{serial}/{name}", sys.intern(options)


def request_of(key: str) -> str:
    """The request's id, of a name that `key_and_options` gave; of a longer id than a name has letters, its digest."""
    return key.split("/", 1)[-1]


class Token(NamedTuple):
    """One output token; of one that was not captured only the first three are known."""

    step: int  # 1-based, as `decode_step`
    token_id: int
    kind: int
    stamp: int = 0  # names its request on the device
    prompt_len: int = 0
    flags: tuple[str, ...] = ()  # raised on every entry of its step
    records: NDArray[np.int32] | None = None  # [layers, words] of kernels.layout, cut behind what the mode needs
    heads: NDArray[Any] | None = None  # float [wanted layers, 4, heads]: entropy, sink, prev, lookback
    derotated: NDArray[np.float32] | None = None  # [wanted layers, 2, top_k]: content and position of each link
    routing: NDArray[np.int32] | None = None  # [layers with experts, 2, k]: experts, bits of their float32 weights
    logits: NDArray[np.float32] | None = None  # [3] of LOGIT_STATISTICS, nan where they are not known
    judged: tuple[str, float | None, bool] | None = None  # a firewall's status, score and whether it halts here
    sampled: tuple[str, float, float] | None = None  # by which zone, with which temperature and top_p

    @property
    def query_position(self) -> int:
        return self.prompt_len + self.step - 2


class Value(NamedTuple):
    """One output token; `body` is its entry's JSON without braces, empty for a token whose step was not captured."""

    step: int
    token_id: int
    failed: bool = False
    body: bytes = b""
    prompt_ids: list[int | None] | None = None
    zone: str = ""
    size: int = 0  # bytes that left the device for it
    pushed: bytes = b""  # its message for the sidecar


def spliced(
    index: int, value: Value, token: str | None, *, thinking: bool, prompt_tokens: list[str | None] | None
) -> bytes:
    """JSON of the entry as it leaves the server: with its choice's index, its token's text and phase."""
    more = b',"prompt_tokens":' + orjson.dumps(prompt_tokens) if value.prompt_ids is not None else b""
    phase = b"think" if thinking else b"output"
    return b'{"index":%d,%b,"think_phase":"%b","token":%b%b}' % (index, value.body, phase, orjson.dumps(token), more)
