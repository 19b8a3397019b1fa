"""Traces made without a server, for tests of what reads traces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import zstandard
from hypothesis import strategies as st

from geomcli.client import Chunk
from geomcli.fingerprint import fingerprint_from_histogram, rounded
from geomcli.schema import Message
from geomcli.trace import Trace, TraceBuilder
from geomcli.zones import classify

HELLO: list[Message] = [{"role": "user", "content": "Hello  there"}]


def histogram(*masses: float, first: int = 0) -> np.ndarray:
    """A histogram [16] of sum 1 with these masses from bin `first` on."""
    h = np.zeros(16)
    h[first : first + len(masses)] = masses
    return h / h.sum()


LOCAL = histogram(4, 3, 3)
MID = histogram(1, 2, 2, 1, first=3)
LONG = histogram(1, 2, 1, first=9)
FLAT = histogram(*[1] * 16)


def numbers(hist: np.ndarray, **more: Any) -> dict[str, Any]:
    """The fields of an entry that come from its histogram [16]."""
    fingerprint = fingerprint_from_histogram(hist)
    decision = classify(fingerprint)
    return {
        "fingerprint": rounded(fingerprint),
        "zone": decision.zone,
        "zone_confidence": round(decision.confidence, 6),
        "ruleset": decision.ruleset,
        "drift": None,
        "compass": "OK",
        "bytes": 80,
        **more,
    }


def entry(step: int, token: str | None, hist: np.ndarray | None = None, **more: Any) -> dict[str, Any]:
    """One entry; without a histogram it carries no numbers."""
    made = {} if hist is None else numbers(hist)
    return {
        "index": 0, "decode_step": step, "token_id": sum(map(ord, token or "")), "token": token, "prompt_len": 10,
        "query_position": 8 + step, "think_phase": "output", "layer_id": 29, "heads": {"seen": 9, "total": 9},
        "mode": "fingerprint", "schema": 1, "flags": [], **made, **more,
    }  # fmt: skip


def records(
    entries: Sequence[dict[str, Any]],
    *,
    messages: list[Message] = HELLO,
    model: str = "m",
    capture: dict[str, Any] | None = None,
    trace_id: str | None = None,
    end: bool = True,
) -> list[dict[str, Any]]:
    """The records of an answer with these entries; without its end when it was cut off."""
    builder = TraceBuilder(messages, model=model, capture=capture, trace_id=trace_id)
    made = builder.start()
    for e in entries:
        made += builder.add(Chunk(text=e["token"] or "", entries=(e,)))  # type: ignore[arg-type]
    if not end:
        return made
    made += builder.add(Chunk(finish_reason="stop", usage={"completion_tokens": len(entries)}))
    return made + builder.finish()


def in_blocks(text: bytes, size: int = 1000) -> bytes:
    """Compressed with Zstandard in blocks that can be read one after the other, as those of a long file are."""
    packer = zstandard.ZstdCompressor().compressobj()
    made = b""
    for start in range(0, len(text), size):
        made += packer.compress(text[start : start + size]) + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    return made + packer.flush()


def trace(texts: Sequence[str | None], hists: Sequence[np.ndarray | None], **more: Any) -> Trace:
    """A whole trace: a text and a histogram (or none) for each token."""
    pairs = enumerate(zip(texts, hists, strict=True), 1)
    return Trace(records([entry(n, text, hist) for n, (text, hist) in pairs], **more))


def cache_fields(length: int, gone: int, **named: list[list[int]]) -> dict[str, Any]:
    """The `kv` of an entry whose step had a text of `length`, of which `gone` tokens had left; left, gone: ranges."""
    return {"kv": {"kept": length - gone, "freed": gone, "share": round((length - gone) / length, 6), **named}}


def evicted(tokens: int = 12, **more: Any) -> list[dict[str, Any]]:
    """An answer behind a prompt of 10 tokens: before token 4 positions 4, 5 and 11 left, before token 8 13 and 14."""
    made = []
    for n in range(tokens):
        gone = 0 if n < 4 else 3 if n < 8 else 5
        named = {4: [[4, 6], [11, 12]], 8: [[13, 15]]}.get(n)
        fields = cache_fields(10 + n, gone, **({} if named is None else {"left": named}))
        made.append(entry(n + 1, f" t{n}", LOCAL, **fields, **more))
    return made


@st.composite
def traces(draw: Any, *, most: int = 12) -> Trace:
    """Traces of one model with one fingerprint at least."""
    texts = draw(st.lists(st.sampled_from(["a", "b", " c", "d\n", None]), min_size=1, max_size=most))
    some = st.none() | st.lists(st.integers(0, 9), min_size=16, max_size=16).filter(any).map(lambda h: histogram(*h))
    hists = draw(st.lists(some, min_size=len(texts), max_size=len(texts)))
    if all(h is None for h in hists):
        hists[0] = LOCAL
    return trace(texts, hists)
