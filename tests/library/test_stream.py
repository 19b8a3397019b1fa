"""Entries on the chunks of a stream: on the one that carries their token, whatever the chunk looks like."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from geomcli.server_patch.requests import OPTIONS_ATTRIBUTE, PENDING_ATTRIBUTE
from geomcli.server_patch.stream import around_stream

HEAD = {"id": "a", "object": "chat.completion.chunk", "created": 1, "model": "m"}
FIRST = {**HEAD, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
USAGE = {**HEAD, "choices": [], "usage": {"total_tokens": 2}}
TRICKY = '"role":"x" "choices":[{"index":5,}\n\n\ufffd'


def token(text: str, index: int = 0, **more: Any) -> dict[str, Any]:
    return {**HEAD, **more, "choices": [{"index": index, "delta": {"role": None, "content": text}}]}


def event(document: Any) -> str:
    return f"data: {orjson.dumps(document).decode()}\n\n"


async def streamed(*steps: tuple[str, dict[int, list[bytes]]]) -> list[str]:
    """What leaves when, before each chunk, these entries have come."""
    pending: dict[int, list[bytes]] = {}
    adapted = SimpleNamespace(**{OPTIONS_ATTRIBUTE: object(), PENDING_ATTRIBUTE: pending})

    async def chunks(*_: Any) -> AsyncIterator[str]:
        for chunk, entries in steps:
            for index, more in entries.items():
                pending.setdefault(index, []).extend(more)
            yield chunk

    return [chunk async for chunk in around_stream(chunks, None, adapted, None, None)]


def read(chunk: str) -> tuple[dict[str, Any], Any]:
    """A chunk as SGLang wrote it, and its entries."""
    assert chunk.startswith("data: ")
    assert chunk.endswith("}\n\n")
    document = orjson.loads(chunk.removeprefix("data: "))
    return document, document.pop("attention_tokens", None)


@pytest.mark.parametrize("pretty", [False, True], ids=["as SGLang writes it", "in other words"])
async def test_entries_leave_with_their_choice_and_not_with_the_role(pretty: bool) -> None:
    def written(document: Any) -> str:
        return event(document).replace('"index":', '"index": ') if pretty else event(document)

    found = await streamed(
        (written(FIRST), {0: [b'{"n":1}']}),
        (written(token(TRICKY)), {1: [b'{"n":2,"token":"\xc3\xa4"}']}),
        (written(token("b")), {}),
        (written(token("c", 1)), {1: [b'{"n":3}']}),
        (written(USAGE), {0: [b'{"n":4}']}),
        ("event: other\ndata: {}\n\n", {}),
        ("data: [DONE]\n\n", {}),
    )
    assert [read(chunk) for chunk in found[:5]] == [
        (FIRST, None),
        (token(TRICKY), [{"n": 1}]),
        (token("b"), None),
        (token("c", 1), [{"n": 2, "token": "ä"}, {"n": 3}]),
        (USAGE, None),
    ]
    assert found[5] == "event: other\ndata: {}\n\n"
    assert read(found[6]) == ({**HEAD, "choices": []}, [{"n": 4}])
    assert found[7:] == ["data: [DONE]\n\n"]


async def test_a_chunk_that_cannot_be_read_leaves_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    found = await streamed((event(FIRST), {}), ("data: oops\n\n", {0: [b"{}"]}), (event(token("a")), {}))
    assert found[1] == "data: oops\n\n"
    assert read(found[2])[1] == [{}]
    assert "left without its entries" in caplog.text
