"""The HTTP server, which gives up groupings as soon as it is to end: their answers would keep it."""

from __future__ import annotations

import socket

import uvicorn
from fastapi import FastAPI

from geomcli.sidecar.service import Service

_GRACE_SECONDS = 3  # for answers that are under way


class HttpServer(uvicorn.Server):
    def __init__(self, app: FastAPI, service: Service) -> None:
        super().__init__(
            uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=_GRACE_SECONDS)
        )
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.grouping.give_up()
        await super().shutdown(sockets)
