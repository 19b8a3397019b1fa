"""A server that speaks the project's stream and answers questions by a function of the prompt."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.stand_in import Answers, listening

LAYERS, HEADS = (3, 7), 2
CAPABILITIES: dict[str, Any] = {
    "supported": True, "modes": ["raw", "sketch", "fingerprint"], "layers_captured": list(LAYERS),
    "heads": {"seen": HEADS, "total": HEADS}, "features": {"head_stats": True, "logit_stats": False}, "plugin": "0",
}  # fmt: skip
PROMPT_LENGTH = 9


class Served:
    """url; bodies: of the chats so far; refuse_after: chats that are answered before the others are cut off; busy: how
    many chats are answered 429 first.
    """

    def __init__(self) -> None:
        self.url = ""
        self.bodies: list[dict[str, Any]] = []
        self.refuse_after: int | None = None
        self.busy = 0


def entry(step: int, token: str) -> dict[str, Any]:
    row = {"token_positions": [0, PROMPT_LENGTH + step - 2], "attention_scores": [0.75, 0.25],
           "topk_logits": [0.0, -1.0986123], "logsumexp_candidates": 0.6931472}  # fmt: skip
    scalars = {name: [0.1 * step, 0.2 * step] for name in ("entropy", "sink", "prev", "lookback")}
    return {
        "decode_step": step, "token_id": step, "token": token, "prompt_len": PROMPT_LENGTH,
        "query_position": PROMPT_LENGTH + step - 2, "flags": [], "mode": "raw", "layer_id": LAYERS[-1],
        "heads": {"seen": HEADS, "total": HEADS}, "fingerprint": [0.05] * 20, "drift": None, "sink_mass": 0.5,
        "head_stats": {str(layer): scalars for layer in LAYERS}, "layers": {str(layer): row for layer in LAYERS}, **row,
    }  # fmt: skip


def logprob(token: str) -> dict[str, Any]:
    return {"token": token, "logprob": -0.6931472,
            "top_logprobs": [{"token": token, "logprob": -0.6931472},
                             {"token": "?", "logprob": -1.3862944}]}  # fmt: skip


@contextmanager
def serving(answer: Callable[[str], list[str]], capabilities: dict[str, Any] = CAPABILITIES) -> Iterator[Served]:
    """`answer`: the tokens of an answer to a prompt."""
    state, lock = Served(), threading.Lock()

    class Handler(Answers):
        def do_GET(self) -> None:
            known = {"/v1/models": {"data": [{"id": "m"}]}, "/v1/attention/capabilities": capabilities}
            self.send("application/json", json.dumps(known[self.path]))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                if state.busy:
                    state.busy -= 1
                    self.send("application/json", json.dumps({"error": {"message": "later"}}), status=429)
                    return
                state.bodies.append(body)
                cut_off = state.refuse_after is not None and len(state.bodies) > state.refuse_after
            tokens = answer(body["messages"][-1]["content"])
            events: list[Any] = [
                {"choices": [{"index": 0, "delta": {"content": token}, "logprobs": {"content": [logprob(token)]}}],
                 "attention_tokens": [entry(step, token)]}
                for step, token in enumerate(tokens, 1)
            ]  # fmt: skip
            events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            events.append({"choices": [], "usage": {"completion_tokens": len(tokens), "prompt_tokens": PROMPT_LENGTH}})
            lines = [f"data: {json.dumps(event)}\n\n" for event in events]
            self.send("text/event-stream", lines[0] if cut_off else "".join([*lines, "data: [DONE]\n\n"]))

    with listening(Handler) as state.url:
        yield state
