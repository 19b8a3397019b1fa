"""Async client of a server with the plugin: capabilities, and chat whose chunks carry attention.

httpx and httpx-sse; knows the wire format, nothing of terminals or stores.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Literal

import httpx
import msgspec
from httpx_sse import SSEError, aconnect_sse

from geomcli.config import is_loopback
from geomcli.errors import RequestRefused, ServerUnreachable, UsageError
from geomcli.fingerprint import FINGERPRINT_SIZE
from geomcli.schema import ATTENTION_KEY_HEADER, CAPABILITIES_PATH, Entry, Message

_CONNECT_SECONDS = 5.0
_SILENCE_SECONDS = 300.0  # a long prompt on a CPU says nothing for minutes


_Int = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]  # what the store can hold


class _Heads(msgspec.Struct):
    seen: _Int
    total: _Int


class _Sketch(msgspec.Struct):
    top_hubs: list[tuple[_Int, float]] = []


class WireEntry(msgspec.Struct):
    """The fields of an entry that geom reads itself; the entry travels on as it came, whatever else it has."""

    decode_step: _Int = 1
    token_id: _Int | None = None
    token: str | None = None
    prompt_tokens: list[str | None] | None = None
    prompt_len: _Int | None = None
    think_phase: Literal["think", "output"] = "output"
    layer_id: _Int | None = None
    heads: _Heads | None = None
    flags: list[str] = []
    mode: str = ""
    fingerprint: Annotated[list[float], msgspec.Meta(min_length=FINGERPRINT_SIZE)] = []
    zone: str = ""
    zone_confidence: float = 0.0
    sink_mass: float | None = None
    drift: float | None = None
    compass: str = ""
    bytes: _Int = 0
    token_positions: list[_Int] = []
    topk_logits: list[float] = []
    logsumexp_candidates: float = 0.0
    entropy_bits: float = 0.0
    layers: dict[str, Any] | None = None
    layer_sketches: dict[str, _Sketch] | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Logprobs(msgspec.Struct):
    content: list[dict[str, Any]] | None = None


class _Choice(msgspec.Struct):
    index: _Int = 0
    delta: _Delta | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    matched_stop: str | _Int | None = None


class _Usage(msgspec.Struct):
    completion_tokens: _Int = 0
    prompt_tokens: _Int | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] | None = None
    attention_tokens: list[WireEntry] | None = None
    usage: _Usage | None = None


class _Eviction(msgspec.Struct):
    retention_ratio: float


class _Capabilities(msgspec.Struct):
    modes: list[str] | None = None
    features: dict[str, Any] | None = None
    eviction: _Eviction | None = None


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a stream, reduced to what a viewer needs. logprobs: OpenAI's, one object a token, if asked for."""

    index: int = 0
    text: str = ""
    reasoning: str = ""
    entries: tuple[Entry, ...] = ()
    finish_reason: str | None = None
    matched_stop: str | int | None = None
    usage: dict[str, Any] | None = None
    attention_bytes: int = 0  # size of attention_tokens as JSON
    logprobs: tuple[dict[str, Any], ...] = ()


class Client:
    """`async with Client(base_url) as client:`; every failure is a GeomError with one sentence.

    `api_key` is the server's own (`--api-key`), `attention_key` the one that attention needs (`--attention-api-key`).
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str = "",
        attention_key: str = "",
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        if attention_key:
            headers[ATTENTION_KEY_HEADER] = attention_key
        try:
            self._http = httpx.AsyncClient(
                base_url=self.base_url,
                headers=headers,
                timeout=httpx.Timeout(_SILENCE_SECONDS, connect=_CONNECT_SECONDS),
                transport=transport,
                trust_env=not is_loopback(self.base_url),
            )
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            # The base URL has been checked: what is left are the proxies that the environment names.
            why = str(error).split(". ")[0].rstrip(".")
            raise UsageError(
                f"a proxy that the environment names cannot be used: {why}.",
                "unset ALL_PROXY HTTP_PROXY HTTPS_PROXY, or put the server into NO_PROXY",
            ) from None

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def capabilities(self) -> dict[str, Any]:
        """The server's capabilities document; ServerUnreachable when it is not there or has no plugin."""
        response = await self._get(CAPABILITIES_PATH)
        if response.status_code == 404:
            raise ServerUnreachable(
                f"{self.base_url} is a server without geom's plugin.", "geom serve (or pip install geomcli there)"
            )
        document = _object(self._checked(response))
        try:
            msgspec.convert(document, _Capabilities)
        except msgspec.ValidationError as error:
            raise ServerUnreachable(f"{self.base_url} has capabilities that geom cannot read: {error}.") from None
        return document

    async def model(self) -> str:
        """Name of the first model that the server serves."""
        document = _object(self._checked(await self._get("/v1/models")))
        try:
            name = document["data"][0]["id"]
        except (LookupError, TypeError):
            name = None
        if not isinstance(name, str):
            raise ServerUnreachable(f"{self.base_url} serves no model.", "geom serve")
        return name

    async def chat(
        self, messages: Sequence[Message], *, model: str, fields: Mapping[str, Any] | None = None
    ) -> AsyncGenerator[Chunk, None]:
        """Stream one answer. `fields`: further request fields, sampling and attention alike.

        RequestRefused when the server answers 4xx, ServerUnreachable when it is away or goes away in mid-stream.
        """
        body = {
            "model": model,
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            **(fields or {}),
        }
        done = False
        try:
            async with aconnect_sse(self._http, "POST", "/v1/chat/completions", json=body) as source:
                if source.response.status_code != httpx.codes.OK:
                    await source.response.aread()
                    self._checked(source.response)
                async with aclosing(source.aiter_sse()) as events:
                    async for event in events:
                        if event.data == "[DONE]":
                            done = True
                            break
                        if not event.data:
                            continue  # a sign of life: events without data are none, says the standard
                        yield _chunk(event.data)
        except (httpx.HTTPError, SSEError) as error:
            raise self._gone(error) from None
        if not done:
            raise ServerUnreachable(f"{self.base_url} closed the stream before its end.", "geom serve")

    async def _get(self, path: str) -> httpx.Response:
        try:
            return await self._http.get(path, timeout=_CONNECT_SECONDS * 2)
        except httpx.HTTPError as error:
            raise self._gone(error) from None

    def _gone(self, error: Exception) -> ServerUnreachable:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return ServerUnreachable(f"no server answers at {self.base_url}.", "geom serve")
        if isinstance(error, httpx.TimeoutException):
            return ServerUnreachable(f"{self.base_url} does not answer in time.", "geom serve")
        return ServerUnreachable(f"the connection to {self.base_url} was lost ({type(error).__name__}).", "geom serve")

    def _checked(self, response: httpx.Response) -> httpx.Response:
        if response.is_success:
            return response
        message = _error_message(response)
        if response.status_code == 401:
            variable = "GEOM_ATTENTION_KEY" if ATTENTION_KEY_HEADER in message else "GEOM_API_KEY"
            raise RequestRefused(f"{self.base_url} wants a key: {message}", f"{variable}=… geom …")
        if response.status_code == 429:
            raise ServerUnreachable(f"{self.base_url} is busy: {message}", "the same again in a moment")
        if response.is_client_error:
            raise RequestRefused(f"the server refused the request: {message}")
        raise ServerUnreachable(f"{self.base_url} failed with HTTP {response.status_code}: {message}")


def _object(response: httpx.Response) -> dict[str, Any]:
    try:
        return msgspec.json.decode(response.content, type=dict[str, Any])
    except msgspec.MsgspecError:
        raise ServerUnreachable(f"{response.url} did not answer with a JSON object.") from None


def _error_message(response: httpx.Response) -> str:
    try:
        document = msgspec.json.decode(response.content)
    except msgspec.MsgspecError:
        return response.text[:200] or response.reason_phrase
    if isinstance(document, dict):
        error = document.get("error", document)
        if isinstance(error, dict):
            return str(error.get("message") or error.get("detail") or error)[:400]
        return str(error)[:400]
    return str(document)[:400]


def _chunk(data: str) -> Chunk:
    try:
        document = msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.MsgspecError:
        raise ServerUnreachable("the server sent an event that is not JSON.") from None
    if (error := document.get("error")) is not None:
        message = (error.get("message") or error) if isinstance(error, dict) else error
        raise ServerUnreachable(f"the server broke off: {message}")
    entries = document.get("attention_tokens") or []
    try:
        event = msgspec.convert(document, _Event)
    except msgspec.ValidationError as error:
        raise ServerUnreachable(f"the server sent an event that geom cannot read: {error}.") from None
    choice = event.choices[0] if event.choices else _Choice()
    delta = choice.delta or _Delta()
    return Chunk(
        index=choice.index,
        text=delta.content or "",
        reasoning=delta.reasoning_content or "",
        entries=tuple(entries),
        finish_reason=choice.finish_reason,
        matched_stop=choice.matched_stop,
        usage=document.get("usage"),
        attention_bytes=len(msgspec.json.encode(entries)) if entries else 0,
        logprobs=tuple((choice.logprobs and choice.logprobs.content) or ()),
    )
