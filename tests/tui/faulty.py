"""A server over a real socket that does one wrong thing: what SGLang rarely does, but the app has to survive."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

CAPABILITIES = {
    "supported": True,
    "modes": ["raw", "fingerprint"],
    "features": {"prompt_tokens": True, "firewall": True},
}
FINGERPRINT = [0.5, 0.5, 0.0, 0.25, 0.5, 0, 0, 0.5, *[0] * 12]
CUT = object()  # the connection ends here


def entry(step: int, token: str, **more: Any) -> dict[str, Any]:
    return {
        "decode_step": step, "token_id": step, "token": token, "prompt_len": 3, "flags": [], "mode": "raw",
        "heads": {"seen": 9, "total": 9}, "layer_id": 29, "fingerprint": FINGERPRINT, "zone": "semantic_bridge",
        "zone_confidence": 0.2, "drift": None, "compass": "OK", "bytes": 100, "token_positions": [0, 1],
        "attention_scores": [0.6, 0.4], "topk_logits": [-1.0, -1.4], "logsumexp_candidates": 0.0, **more,
    }  # fmt: skip


def event(text: str, *entries: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}}], "attention_tokens": list(entries), **more}


class Server:
    """`answer`: what the next answers stream, events or raw text; `asked`: the bodies that came."""

    def __init__(self) -> None:
        self.answer: Sequence[Any] = ()
        self.pause = 0.0
        self.asked: list[dict[str, Any]] = []
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def die(self) -> None:
        """Stop in the middle of whatever is being answered."""
        await self.stop()
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await self._answer(reader, writer)
        finally:
            self._writers.discard(writer)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split()[1]
        length = next((int(h.split(":")[1]) for h in head.splitlines() if h.lower().startswith("content-length")), 0)
        body = await reader.readexactly(length)
        if path == "/v1/chat/completions":
            self.asked.append(json.loads(body))
            await self._stream(writer)
        else:
            document = CAPABILITIES if path.endswith("capabilities") else {"data": [{"id": "tiny"}]}
            await self._send(writer, "application/json", json.dumps(document))
        writer.close()

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        )
        for item in self.answer:
            if item is CUT:
                writer.transport.abort()
                return
            text = item if isinstance(item, str) else json.dumps(item)
            data = f"data: {text}\n\n".encode()
            writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            try:
                await writer.drain()
            except ConnectionError:
                return
            await asyncio.sleep(self.pause)
        writer.write(b"0\r\n\r\n")

    async def _send(self, writer: asyncio.StreamWriter, kind: str, text: str) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n"
        writer.write((head + text).encode())
        await writer.drain()


@asynccontextmanager
async def serving(*answer: Any, pause: float = 0.0) -> AsyncIterator[Server]:
    server = Server()
    server.answer, server.pause = answer, pause
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
