"""Main process: who may ask for attention, and how many may at once.

A request is checked when its fields are read, and what it occupies hangs on its ASGI scope, so that it is given back
when the exchange ends, however that happens (`exchange.py`).
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, MutableMapping
from threading import Lock
from typing import Any

from geomcli.schema import ATTENTION_KEY_HEADER
from geomcli.server_patch import state
from geomcli.server_patch.request_options import ASK, ASKING

Scope = MutableMapping[str, Any]
_CAPTURE, _HEADERS = "geom.capture", "geom.headers"  # on the scope
_RETRY_SECONDS = 1


class Refused(ValueError):
    """A request that a guard turns away; `reason` is one of `REASONS`."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status_code = status  # SGLang answers a ValueError with it, 400 without
        self.reason = reason


REASONS = ("key", "production", "limit", "invalid")


class Capture:
    """What one request occupies: `width` captures, until its exchange ends or SGLang has finished it.

    The second matters where a client does not read: its exchange then goes on for as long as it likes.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self._manager: Any = None
        self._rids: set[str] = set()

    def watch(self, manager: Any, rids: set[str]) -> None:
        """`rids`: names of the request's sequences, which are added while outputs come."""
        self._manager, self._rids = manager, rids

    @property
    def over(self) -> bool:
        known = {} if self._manager is None else self._manager.rid_to_state
        return len(self._rids) >= self.width and not any(rid in known for rid in self._rids.copy())


_running: set[Capture] = set()
_lock = Lock()  # SGLang converts requests in threads


def active() -> int:
    """Sequences that are being captured."""
    with _lock:
        return _active()


def _active() -> int:
    _running.difference_update([capture for capture in _running if capture.over])
    return sum(capture.width for capture in _running)


def path_of(scope: Scope) -> str:
    """The path that routes are matched with, behind the one that --fastapi-root-path puts in front."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


def asks(body: Mapping[str, Any]) -> bool:
    """Whether any field asks for something that is captured; a wrong type asks too."""
    return any(body.get(name) not in (None, False) for name in ASKING)


def width_of(body: Mapping[str, Any]) -> int:
    """Sequences that the request captures at once: prompts of its batch times choices of each.

    Never raises: a body of the wrong shape is refused by SGLang.
    """
    sampling = body.get("sampling_params")
    several = sampling if isinstance(sampling, list) else [sampling]
    choices = [body.get("n"), *(one.get("n") for one in several if isinstance(one, dict))]
    prompts = max(_batch_of(body.get(name)) for name in ("prompt", "text", "input_ids", "input_embeds"))
    return prompts * max(map(_count_of, choices))


def _count_of(n: Any) -> int:
    """How many choices SGLang makes of this `n`: its models take "8" and 8.0 for 8."""
    if n is None or isinstance(n, int):
        return max(1, n or 1)
    from pydantic import TypeAdapter, ValidationError

    try:
        return max(1, TypeAdapter(int).validate_python(n))
    except ValidationError:
        return 1


def _batch_of(prompt: Any) -> int:
    """A text, a list of ids and a list of vectors are one prompt; a list of such is a batch."""
    innermost, depth = prompt, 0
    while isinstance(innermost, list) and innermost:
        innermost, depth = next((one for one in innermost if one != []), innermost[0]), depth + 1
    of_one = 0 if isinstance(innermost, str) else 2 if isinstance(innermost, float) else 1
    return len(prompt) if depth > of_one else 1


def check(scope: Scope) -> None:
    """Refused without the key that the server wants, and where capture is switched off."""
    require_key(scope)
    if state.main.options.disable_in_production:
        raise Refused(
            403,
            "production",
            f"{ASK}: capture is switched off on this server (--attention-disable-in-production); "
            "it was started without GEOM_DEBUG=1",
        )


def require_key(scope: Scope) -> None:
    """Refused unless the request carries the key of --attention-api-key, if there is one."""
    key = state.main.key
    if not key or _carries(scope, key.encode()):
        return
    bearer = "" if state.main.bearer_taken else " or as Authorization: Bearer KEY"
    scope[_HEADERS] = [(b"www-authenticate", b"Bearer")]
    raise Refused(
        401,
        "key",
        "attention on this server needs the key of its flag --attention-api-key: "
        f"send it in the header {ATTENTION_KEY_HEADER}{bearer}",
    )


def _carries(scope: Scope, key: bytes) -> bool:
    given = []
    for name, value in scope["headers"]:
        if name == ATTENTION_KEY_HEADER.lower().encode():
            given.append(value)
        elif name == b"authorization" and not state.main.bearer_taken:
            scheme, _, token = value.partition(b" ")
            if scheme.lower() == b"bearer":
                given.append(token.strip())
    return any(hmac.compare_digest(one, key) for one in given)


def enter(scope: Scope, width: int) -> None:
    """Occupy `width` captures for the request of this scope, once; Refused when that is more than the limit."""
    if _CAPTURE in scope:
        return
    limit = state.main.options.max_concurrent
    flag = f"--attention-max-concurrent-capture {limit}"
    if limit and width > limit:
        raise Refused(
            400, "limit", f"{ASK}: {width} captures in one request (prompts x choices), but the server has {flag}"
        )
    with _lock:
        running = _active() if limit else 0
        if limit and running + width > limit:
            scope[_HEADERS] = [(b"retry-after", b"%d" % _RETRY_SECONDS)]
            raise Refused(
                429,
                "limit",
                f"{ASK}: {running} captures are running and the server allows {limit} at once ({flag}); "
                "try again when one has ended",
            )
        scope[_CAPTURE] = Capture(width)
        _running.add(scope[_CAPTURE])


def capture_of(scope: Scope) -> Capture | None:
    """What the request of this scope occupies, if it does."""
    found: Capture | None = scope.get(_CAPTURE)
    return found


def leave(scope: Scope) -> None:
    """Give back what the request of this scope occupies; that may be done again."""
    if (capture := capture_of(scope)) is not None:
        with _lock:
            _running.discard(capture)


def headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    """Headers that belong on the answer to this request."""
    found: list[tuple[bytes, bytes]] = scope.get(_HEADERS, [])
    return found
