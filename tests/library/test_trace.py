"""Records of a stream: every token at its own index, whatever part of them was captured."""

from __future__ import annotations

from typing import Any

from geomcli.client import Chunk
from geomcli.links import strongest_links, texts_by_position
from geomcli.trace import Trace, TraceBuilder


def entry(step: int, token: str | None, **more: Any) -> Any:
    return {"decode_step": step, "token": token, "token_id": step, "prompt_len": 10, "flags": [], **more}


def trace_of(*chunks: Chunk, tokens: int) -> Trace:
    builder = TraceBuilder([{"role": "user", "content": "Hi"}], model="m")
    records = builder.start()
    for chunk in (*chunks, Chunk(finish_reason="stop", usage={"completion_tokens": tokens})):
        records += builder.add(chunk)
    return Trace(records + builder.finish())


def shape(trace: Trace) -> tuple[list[tuple[int, str | None]], list[int]]:
    return [(t["index"], t["text"]) for t in trace.tokens], [s["tokenIndex"] for s in trace.steps]


def test_every_third_step_captured() -> None:
    chunks = []
    for n, letter in enumerate("abcdefgh"):
        chunks.append(Chunk(text=letter, entries=(entry(n + 1, letter),) if n % 3 == 0 else ()))
    trace = trace_of(*chunks, tokens=8)
    assert shape(trace) == (list(enumerate("abcdefgh")), [0, 3, 6])
    assert texts_by_position(trace) == {10 + n: letter for n, letter in enumerate("abcdefgh")}
    assert trace.metrics["tokens"] == 8


def test_several_tokens_in_a_chunk_keep_their_places() -> None:
    trace = trace_of(
        Chunk(text="abc", entries=(entry(1, "a"), entry(3, "c"))),
        Chunk(text="de", entries=(entry(5, "e"),)),
        Chunk(text="fg"),
        Chunk(text="hi", entries=(entry(9, "i"),)),
        tokens=10,
    )
    tokens, steps = shape(trace)
    assert [index for index, _ in tokens] == list(range(10))
    assert steps == [0, 2, 4, 8]
    assert [text for index, text in tokens if index in steps] == ["a", "c", "e", "i"]
    assert "".join(text or "" for _, text in tokens[3:]) == "defghi"


def test_text_goes_on_behind_the_last_entry() -> None:
    stopped = {"decode_step": 2, "token": "b", "flags": ["capture_stopped"], "bytes": 0}
    trace = trace_of(
        Chunk(text="a", entries=(entry(1, "a"),)),
        Chunk(text="b", entries=(stopped,)),  # type: ignore[arg-type]
        Chunk(text="c"),
        Chunk(text="d"),
        tokens=4,
    )
    assert shape(trace) == (list(enumerate("abcd")), [0, 1])


def test_entries_that_come_behind_their_text_are_not_counted_twice() -> None:
    trace = trace_of(
        Chunk(text="a", entries=(entry(1, "a"),)),
        Chunk(text="bc"),
        Chunk(entries=(entry(2, "b"), entry(3, "c"))),
        Chunk(reasoning="d", entries=(entry(4, "d"),)),
        tokens=4,
    )
    assert shape(trace) == (list(enumerate("abcd")), [0, 1, 2, 3])


def test_a_position_that_cannot_be_is_not_believed() -> None:
    trace = trace_of(Chunk(text="a", entries=(entry(10**12, "a"),)), tokens=10**12)
    assert shape(trace) == ([(0, "a")], [0])


def test_a_lost_entry_at_the_start_hides_nothing_else() -> None:
    lost: Any = {"decode_step": 1, "token_id": None, "flags": ["error"], "bytes": 0, "token": None}
    trace = trace_of(Chunk(text="a", entries=(lost,)), Chunk(text="b", entries=(entry(2, "b"),)), tokens=2)
    assert shape(trace)[1] == [0, 1]
    assert texts_by_position(trace)[11] == "b"
    assert texts_by_position(Trace()) == {}


def test_links_of_raw_and_sketch_steps() -> None:
    raw = {"attention": {"token_positions": [4, 1], "topk_logits": [0.0, -1.0], "logsumexp_candidates": 0.0}}
    assert [position for position, _ in strongest_links(raw)] == [4, 1]
    assert strongest_links(raw)[0][1] == 1.0
    sketch = {"layer_id": 3, "attention": {"layer_sketches": {"3": {"top_hubs": [[7, 0.5]]}, "1": {"top_hubs": []}}}}
    assert strongest_links(sketch) == [(7, 0.5)]
    assert strongest_links({"attention": None}) == []
