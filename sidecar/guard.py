"""What is asked of a request before anything of it is parsed: the key, and a body of bearable length."""

from __future__ import annotations

import hmac
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# 1,000 vectors of 20 numbers are 640 KiB where each has 17 digits, an exponent and a line of its own.
LONGEST_BODY = 1 << 20


class Guard:
    """ASGI middleware: 401 without the key, its body unread; 413 where a body is longer than `longest` bytes.

    `key`: "" asks for none; `open_paths` need none.
    """

    def __init__(
        self, app: ASGIApp, key: str = "", open_paths: Collection[str] = (), longest: int = LONGEST_BODY
    ) -> None:
        self._app, self._key, self._open, self._longest = app, key.encode(), frozenset(open_paths), longest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if self._key and scope["path"] not in self._open and not self._allowed(headers.get("authorization", "")):
            refusal = JSONResponse(
                {"detail": "this sidecar wants its key: Authorization: Bearer KEY."},
                401,
                {"WWW-Authenticate": "Bearer"},
            )
            await refusal(scope, receive, send)
            return
        said = headers.get("content-length", "")
        body = None if said.isdecimal() and int(said) > self._longest else await self._body(receive)
        if body is None:
            await JSONResponse({"detail": f"the body is longer than {self._longest} bytes."}, 413)(scope, receive, send)
            return

        replayed = False

        async def again() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return body

        await self._app(scope, again, send)

    def _allowed(self, header: str) -> bool:
        scheme, _, credentials = header.partition(" ")
        # Headers come as Latin-1.
        given = credentials.strip().encode("latin-1", "replace")
        return scheme.lower() == "bearer" and hmac.compare_digest(given, self._key)

    async def _body(self, receive: Receive) -> Message | None:
        """The whole body as one message, or the client's leaving; None where it is too long."""
        parts, length = [], 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return message
            length += len(message.get("body", b""))
            if length > self._longest:
                return None
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                return {"type": "http.request", "body": b"".join(parts), "more_body": False}
