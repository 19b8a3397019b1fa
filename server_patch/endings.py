"""How a firewall ends an answer: with the token that SGLang is about to take in, and a reason that nobody wrote.

SGLang cuts an answer at what `matched` of its reason says, where that is a text that the answer has. So our name
travels as a list of numbers, which its detokenizer leaves alone, and is a text again in the main process.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

_OURS = -1  # in front of the name's bytes: SGLang's own lists are of token ids
_FINISH = "update_finish_state"


def end(request: Any, matched: str) -> None:
    """Let SGLang end a request with its next token, unless that token ends it anyhow: its own reason stays."""
    setattr(request, _FINISH, functools.partial(_finish, request, reason_of(matched)))


def _finish(request: Any, reason: Any, *args: Any, **kwargs: Any) -> None:
    delattr(request, _FINISH)  # SGLang's own is the class's
    getattr(request, _FINISH)(*args, **kwargs)
    if not request.finished():
        request.finished_reason = reason


def reason_of(matched: str) -> Any:
    """A finish reason of SGLang's."""
    return _reason_class()(matched)


@functools.cache
def _reason_class() -> type[Any]:
    from sglang.srt.managers.schedule_batch import FINISH_MATCHED_STR

    class Reason(FINISH_MATCHED_STR):  # type: ignore[misc]
        def to_json(self) -> dict[str, Any]:
            return {**super().to_json(), "matched": [_OURS, *self.matched.encode()]}

    return Reason


def named(reasons: Iterable[Any]) -> None:
    """In the main process: our names as texts, in place."""
    for reason in reasons:
        found = reason.get("matched") if isinstance(reason, dict) else None
        if isinstance(found, list) and found[:1] == [_OURS]:
            reason["matched"] = bytes(found[1:]).decode()
