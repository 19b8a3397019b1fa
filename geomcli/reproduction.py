"""The command that asks for a trace again: `geom run …` where it can say the whole request, else `curl`.

The request is what the trace's header and messages hold. Keys are never written out: a command names the variables
they are read from. An answer repeats itself only as far as its sampling does.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable
from typing import Any

from geomcli.errors import TraceError
from geomcli.recommendation import capture_mode
from geomcli.schema import ATTENTION_KEY_HEADER, Record
from geomcli.trace import Trace

_CHAT_PATH = "/v1/chat/completions"
_RECORD_FIELDS = {"record_type", "id", "reasoning"}


def request_body(trace: Trace) -> dict[str, Any]:
    """The body of the chat request that a trace answers; TraceError when the trace does not hold its prompt."""
    messages = [{k: v for k, v in m.items() if k not in _RECORD_FIELDS} for m in trace.prompt]
    if not messages:
        raise TraceError("the trace holds no prompt: there is no request to repeat.")
    return {
        "model": trace.header.get("model", ""),
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        **(trace.header.get("capture") or {}),
    }


def command(trace: Trace, *, base_url: str | None = None) -> str:
    """One line for a shell: `geom run` when it sends exactly this request, else `curl`."""
    return run_command(trace, base_url=base_url) or curl_command(trace, base_url=base_url)


def run_command(trace: Trace, *, base_url: str | None = None) -> str | None:
    """The `geom run` line that sends this request, to a server with the same capabilities; None when none does.

    It cannot say several turns, messages that are not text, fields other than its options, or an argument with a NUL.
    """
    body = request_body(trace)
    prompt = _system_and_user(body["messages"])
    options = _options(trace.header.get("capture") or {})
    if prompt is None or options is None or not body["model"]:
        return None
    system, user = prompt
    words = ["geom", "run", "-m", str(body["model"]), "--no-stdin"]
    if system is not None:
        words += ["-s", system]
    words += options
    if base_url is not None:
        words += ["--base-url", base_url]
    words += ["--", user]
    return shlex.join(words) if all(map(_is_argument, words)) else None


def curl_command(trace: Trace, *, base_url: str | None = None, keys: bool = False) -> str:
    """The `curl` line that sends this request. `keys`: headers that read GEOM_API_KEY and GEOM_ATTENTION_KEY."""
    url = (base_url or "http://127.0.0.1:30000").rstrip("/") + _CHAT_PATH
    words = ["curl", "-N", shlex.quote(url), "-H", shlex.quote("Content-Type: application/json")]
    if keys:
        words += ["-H", '"Authorization: Bearer $GEOM_API_KEY"', "-H", f'"{ATTENTION_KEY_HEADER}: $GEOM_ATTENTION_KEY"']
    # ASCII: no terminal's encoding, and no character that a shell cannot hold, comes in between.
    return " ".join([*words, "--data-raw", shlex.quote(json.dumps(request_body(trace)))])


def token_json(trace: Trace, index: int) -> str:
    """One token as JSON: trace_id, model, the token, its steps, its segment. TraceError when there is no such token."""
    token = next((t for t in trace.tokens if t["index"] == index), None)
    if token is None:
        raise TraceError(f"the trace has no token #{index}.", f"a number below {len(trace.tokens)}")
    segment = next((s for s in trace.segments if s["id"] == token.get("segmentId")), None)
    document = {
        "trace_id": trace.header.get("trace_id"),
        "model": trace.header.get("model"),
        "token": _without_kind(token),
        "steps": [_without_kind(step) for step in trace.steps if step["tokenIndex"] == index],
        "segment": None if segment is None else _without_kind(segment),
    }
    return json.dumps(document, indent=2, ensure_ascii=False)


def _system_and_user(messages: list[dict[str, Any]]) -> tuple[str | None, str] | None:
    """(system message or None, prompt) when `geom run` can send these messages."""
    if [m["role"] for m in messages] not in (["user"], ["system", "user"]):
        return None
    if any(set(m) != {"role", "content"} or not isinstance(m["content"], str) for m in messages):
        return None
    system = messages[0]["content"] if len(messages) == 2 else None
    user = messages[-1]["content"]
    return None if system == "" or not user.strip() else (system, user)


def _options(fields: dict[str, Any]) -> list[str] | None:
    """The options of `geom run` that make it send these fields; None when none do."""
    mode = capture_mode(fields)
    fits: dict[str, Callable[[Any], bool]] = {
        "max_tokens": lambda v: _is_int(v) and 1 <= v < 2**31,
        "temperature": lambda v: _is_number(v) and v >= 0,
        "top_p": lambda v: _is_number(v) and 0 <= v <= 1,
        "top_k_attention": _is_int,
        "attention_capture_layer_ids": lambda v: isinstance(v, list) and bool(v) and all(map(_is_int, v)),
        "attention_derotate": lambda v: v is True,
        "attention_head_stats": lambda v: v is True and fields.get("attention_logit_stats") is True,
        "attention_logit_stats": lambda v: v is True and fields.get("attention_head_stats") is True,
        "spectral_retention_ratio": lambda v: _is_number(v) and 0 < v <= 1,
        # What it sends of itself, for the mode or because the server can do it.
        "return_attention_tokens": lambda v: v is True,
        "attention_fingerprint_mode": lambda v: v is (mode == "fingerprint"),
        "attention_sketch_mode": lambda v: v is True and mode == "sketch",
        "attention_prompt_tokens": lambda v: v is True and mode == "raw",
        "return_moe_routing": lambda v: v is True,
    }
    needed = {"max_tokens", "temperature", "return_attention_tokens"}
    needed.add("attention_sketch_mode" if mode == "sketch" else "attention_fingerprint_mode")
    if not needed <= set(fields) or ("attention_fingerprint_mode" in fields) == (mode == "sketch"):
        return None
    if not all(name in fits and fits[name](value) for name, value in fields.items()):
        return None
    words = ["--max-tokens", str(fields["max_tokens"]), "--temp", repr(float(fields["temperature"]))]
    if "top_p" in fields:
        words += ["--top-p", repr(float(fields["top_p"]))]
    words += ["--capture", str(mode)]
    if "top_k_attention" in fields:
        words += ["--top-k", str(fields["top_k_attention"])]
    if "attention_capture_layer_ids" in fields:
        words += ["--layers", ",".join(map(str, fields["attention_capture_layer_ids"]))]
    if "spectral_retention_ratio" in fields:
        words += ["--spectral-retention-ratio", repr(float(fields["spectral_retention_ratio"]))]
    words += ["--derotate"] if "attention_derotate" in fields else []
    return [*words, "--stats"] if "attention_logit_stats" in fields else words


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (_is_int(value) and abs(value) < 2**53) or (isinstance(value, float) and math.isfinite(value))


def _is_argument(word: str) -> bool:
    """Whether a shell can hand it to a program, which reads it back as it was."""
    try:
        word.encode()
    except UnicodeError:
        return False
    return "\0" not in word


def _without_kind(record: Record) -> Record:
    return {name: value for name, value in record.items() if name != "record_type"}
