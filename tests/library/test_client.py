"""The client against servers that misbehave: every failure is one sentence of the right kind."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from geomcli.client import Chunk, Client
from geomcli.errors import GeomError, RequestRefused, ServerUnreachable

EVENT = 'data: {"choices": [{"index": 0, "delta": {"content": "a"}}], "attention_tokens": [{"decode_step": 1}]}\n\n'
DONE = "data: [DONE]\n\n"


def client(answer: Callable[[httpx.Request], httpx.Response]) -> Client:
    return Client("http://server:1", api_key="k", transport=httpx.MockTransport(answer))


def stream(text: str, status: int = 200, content_type: str = "text/event-stream") -> Client:
    return client(lambda _: httpx.Response(status, text=text, headers={"content-type": content_type}))


async def chunks(of: Client) -> list[Chunk]:
    async with of:
        return [chunk async for chunk in of.chat([{"role": "user", "content": "Hi"}], model="m")]


async def test_a_sound_stream() -> None:
    found = await chunks(stream(EVENT + EVENT + DONE))
    assert [(c.text, [e["decode_step"] for e in c.entries]) for c in found] == [("a", [1])] * 2
    assert found[0].attention_bytes > 0


@pytest.mark.parametrize(
    ("server", "kind", "said"),
    [
        (stream(EVENT), ServerUnreachable, "closed the stream before its end"),
        (stream(EVENT + "data: {broken\n\n"), ServerUnreachable, "not JSON"),
        (stream(EVENT + 'data: {"error": {"message": "no memory"}}\n\n'), ServerUnreachable, "broke off: no memory"),
        (stream('data: {"error": {"code": 5}}\n\n'), ServerUnreachable, "broke off: .*code"),
        (stream('data: {"choices": [null]}\n\n'), ServerUnreachable, r"cannot read: .*choices\[0\]"),
        (stream('data: {"attention_tokens": [1]}\n\n'), ServerUnreachable, "cannot read: .*attention_tokens"),
        (stream("<html>", content_type="text/html"), ServerUnreachable, "connection to http://server:1 was lost"),
        (stream('{"error": {"message": "top_k"}}', 400, "application/json"), RequestRefused, "refused .*: top_k"),
        (stream('{"message": "who"}', 401, "application/json"), RequestRefused, "wants a key: who.*GEOM_API_KEY"),
        (stream('{"message": "X-Attention-Key"}', 401, "application/json"), RequestRefused, "GEOM_ATTENTION_KEY"),
        (stream('{"message": "3 at once"}', 429, "application/json"), ServerUnreachable, "is busy: 3 at once"),
        (stream("upstream", 502, "text/plain"), ServerUnreachable, "HTTP 502: upstream"),
    ],
    ids=[
        "truncated",
        "not-json",
        "error-event",
        "error-without-text",
        "no-choice",
        "no-entry",
        "no-stream",
        "refused",
        "unauthorized",
        "no-attention-key",
        "too-many",
        "bad-gateway",
    ],
)
async def test_a_broken_stream_is_a_sentence(server: Client, kind: type[GeomError], said: str) -> None:
    with pytest.raises(kind, match=said):
        await chunks(server)


async def test_what_was_lost_on_the_way_is_named() -> None:
    def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    def silent(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("silence", request=request)

    with pytest.raises(ServerUnreachable, match="no server answers at http://server:1"):
        await client(away).capabilities()
    with pytest.raises(ServerUnreachable, match="does not answer in time"):
        await client(silent).model()


async def test_capabilities_of_a_server_that_is_not_ours() -> None:
    with pytest.raises(ServerUnreachable, match="without geom's plugin"):
        await stream("", 404).capabilities()
    with pytest.raises(ServerUnreachable, match="did not answer with a JSON object"):
        await stream("[1]", 200, "application/json").capabilities()
    with pytest.raises(ServerUnreachable, match="serves no model"):
        await stream('{"data": []}', 200, "application/json").model()
    with pytest.raises(ServerUnreachable, match="serves no model"):
        await stream('{"data": [{"id": 5}]}', 200, "application/json").model()
    with pytest.raises(ServerUnreachable, match="capabilities that geom cannot read"):
        await stream('{"modes": 5}', 200, "application/json").capabilities()


async def test_fields_of_a_newer_server_survive() -> None:
    event = 'data: {"attention_tokens": [{"decode_step": 1, "new": [1, null]}], "choices": null, "new": 5}\n\n'
    found = await chunks(stream(event + DONE))
    assert found[0].entries == ({"decode_step": 1, "new": [1, None]},)


async def test_the_key_is_sent() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(
            200, json={name: request.headers.get(name) for name in ("Authorization", "X-Attention-Key")}
        )

    assert await client(answer).capabilities() == {"Authorization": "Bearer k", "X-Attention-Key": None}
    both = Client("http://server:1", attention_key="a", transport=httpx.MockTransport(answer))
    assert await both.capabilities() == {"Authorization": None, "X-Attention-Key": "a"}
