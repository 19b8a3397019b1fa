"""The same app in a browser: textual-serve on this machine only, for pages that it served itself."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Sequence

from aiohttp import web
from textual_serve.server import Server

HOST = "127.0.0.1"


class LocalServer(Server):
    """Starts a process of the app for every browser that comes.

    Any page in a browser may open a socket to this machine: only those that came from here may drive the app. And
    nothing of the page comes from elsewhere.
    """

    def __init__(self, command: str, port: int) -> None:
        super().__init__(command, host=HOST, port=port, title="geom")
        self._origins = {f"http://{name}:{port}" for name in (HOST, "localhost")}
        self._open: set[asyncio.Task[object]] = set()

    async def _make_app(self) -> web.Application:
        app = await super()._make_app()
        app.on_response_prepare.append(self._only_from_here)
        return app

    async def _only_from_here(self, _request: web.Request, response: web.StreamResponse) -> None:
        page, socket = self.public_url, self.public_url.replace("http", "ws", 1)
        response.headers["Content-Security-Policy"] = (
            f"default-src {page} 'unsafe-inline' data: blob:; connect-src {page} {socket}; frame-ancestors 'none'"
        )

    async def handle_websocket(self, request: web.Request) -> web.WebSocketResponse:
        if request.headers.get("Origin") not in self._origins:
            raise web.HTTPForbidden(text="geom: this page may not drive the explorer.")
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            return await super().handle_websocket(request)
        finally:
            self._open.discard(task)

    async def on_shutdown(self, app: web.Application) -> None:
        await super().on_shutdown(app)
        # Else a page that is still open would hold the server for a minute.
        for task in self._open:
            task.cancel()


def serve(arguments: Sequence[str], port: int) -> None:
    """Serve `geom ARGUMENTS` on this machine until Ctrl-C. OSError when the port is taken."""
    LocalServer(shlex.join([sys.executable, "-P", "-m", "geomcli", *arguments]), port).serve()
