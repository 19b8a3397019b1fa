"""Main process: what happens around a whole HTTP exchange, as an ASGI middleware inside of SGLang's own key check.

CORS of /v1/attention/*, the status of a streamed /generate before its stream begins, headers of refusals, and the end
of an exchange, at which everything that its request occupied is given back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from geomcli.schema import ATTENTION_KEY_HEADER, ATTENTION_PATH
from geomcli.server_patch import guards, state
from geomcli.server_patch.metrics import Metrics
from geomcli.server_patch.request_options import ASKING, FIELDS
from geomcli.server_patch.requests import options_of_body
from geomcli.server_patch.server_options import parse_origins

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_PREFLIGHT_SECONDS = 600
_NAMES = tuple(name.encode() for name in {*FIELDS, *ASKING})


class Exchange:
    """The middleware. `metrics` is None where the server has none."""

    def __init__(self, app: Any, metrics: Metrics | None = None) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: guards.Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = guards.path_of(scope)
        if self._metrics is not None and path.startswith("/metrics"):
            self._metrics.publish()
        sending = _with_headers(scope, send, cors=path.startswith(ATTENTION_PATH))
        try:
            if path.startswith(ATTENTION_PATH) and scope["method"] == "OPTIONS" and _header(scope, b"origin"):
                await _preflight(scope, send)
            elif path == "/generate":
                await self._generate(scope, receive, sending)
            else:
                await self._app(scope, receive, sending)
        finally:
            guards.leave(scope)

    async def _generate(self, scope: guards.Scope, receive: Receive, send: Send) -> None:
        """A stream's status is sent before SGLang reads it: what is refused has to be refused here."""
        messages = await _body(receive)
        data = b"".join(message.get("body", b"") for message in messages)
        try:
            if any(name in data for name in _NAMES):
                options_of_body(orjson.loads(data), scope)
        except orjson.JSONDecodeError:
            pass  # compressed, or what SGLang's own parser is to judge; the fields are checked once more behind it
        except ValueError as error:
            status = getattr(error, "status_code", 400)
            await _answer(send, status, {"error": {"message": str(error), "code": status}})
            return

        async def again() -> Message:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, again, send)


async def _body(receive: Receive) -> list[Message]:
    messages = [await receive()]
    while messages[-1]["type"] == "http.request" and messages[-1].get("more_body"):
        messages.append(await receive())
    return messages


def _header(scope: guards.Scope, name: bytes) -> bytes:
    return next((value for known, value in scope["headers"] if known == name), b"")


def _with_headers(scope: guards.Scope, send: Send, *, cors: bool) -> Send:
    def sending(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            found = list(message.get("headers", ()))
            if cors:
                # SGLang allows every origin everywhere.
                found = [
                    h for h in found if not h[0].lower().startswith(b"access-control-") and h[0].lower() != b"vary"
                ]
                found += _cors(scope)
            message["headers"] = [*found, *guards.headers(scope)]
        return send(message)

    return sending


def _cors(scope: guards.Scope) -> list[tuple[bytes, bytes]]:
    """Headers by which a browser lets a page of the request's origin read the answer; no cookies are involved."""
    vary = (b"vary", b"Origin")
    origins, origin = parse_origins(state.main.options.cors_origins), _header(scope, b"origin")
    if origins is None:
        return [(b"access-control-allow-origin", b"*"), vary]
    if origin.decode("latin-1").lower() in origins:
        return [(b"access-control-allow-origin", origin), vary]
    return [vary]


async def _preflight(scope: guards.Scope, send: Send) -> None:
    headers = _cors(scope)
    if len(headers) == 1:
        origin = _header(scope, b"origin").decode("latin-1")[:200]
        message = f"origin {origin!r} is not among this server's --attention-cors-origins"
        await _answer(send, 403, {"error": {"message": message, "code": 403}}, headers)
        return
    allowed = f"{ATTENTION_KEY_HEADER}, Authorization, Content-Type".encode()
    headers += [
        (b"access-control-allow-methods", b"GET, OPTIONS"),
        (b"access-control-allow-headers", allowed),
        (b"access-control-max-age", b"%d" % _PREFLIGHT_SECONDS),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _answer(send: Send, status: int, document: Any, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    body = orjson.dumps(document)
    sized = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": [*sized, *(headers or [])]})
    await send({"type": "http.response.body", "body": body})
