"""What is on screen as text for elsewhere: a token's records as JSON, a turn's question as a command."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from geomcli.schema import Message
from geomcli.tui.turn import Token, Turn

# Request fields -> options of `geom run`.
_OPTIONS = {"max_tokens": "--max-tokens", "temperature": "--temp", "top_p": "--top-p", "top_k_attention": "--top-k"}


def token_json(turn: Turn, token: Token) -> str:
    """The token's own record and its step, as the trace has them."""
    record = next((r for r in turn.trace.tokens[token.index :] if r.get("index") == token.index), {})
    return json.dumps({"trace_id": turn.id, "token": record, "step": token.step or None}, ensure_ascii=False, indent=2)


def command(turn: Turn, base_url: str) -> str:
    """A shell line that asks the same again: `geom run` for one question, `curl` for a chat."""
    messages: list[Message] = [{"role": str(m["role"]), "content": str(m["content"])} for m in turn.prompt]
    fields: Mapping[str, Any] = turn.trace.header.get("capture") or {}
    roles = [message["role"] for message in messages]
    if roles in (["user"], ["system", "user"]):
        return _geom_run(messages, fields, turn.model, base_url)
    body = {"model": turn.model, "messages": messages, "stream": True, **fields}
    data = shlex.quote(json.dumps(body, ensure_ascii=False))
    return f"curl -N {base_url}/v1/chat/completions -H 'Content-Type: application/json' -d {data}"


def _geom_run(messages: list[Message], fields: Mapping[str, Any], model: str, base_url: str) -> str:
    words = ["geom", "run", messages[-1]["content"], "--base-url", base_url]
    if model:
        words += ["--model", model]
    if len(messages) > 1:
        words += ["--system", messages[0]["content"]]
    for field, option in _OPTIONS.items():
        if fields.get(field) is not None:
            words += [option, f"{fields[field]:g}"]
    if layers := fields.get("attention_capture_layer_ids"):
        words += ["--layers", ",".join(map(str, layers))]
    if fields.get("attention_derotate"):
        words.append("--derotate")
    if fields.get("attention_sketch_mode"):
        words += ["--capture", "sketch"]
    elif fields.get("attention_fingerprint_mode"):
        words += ["--capture", "fingerprint"]
    return shlex.join(words)
