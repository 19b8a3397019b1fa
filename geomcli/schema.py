"""Shapes of what travels: entries on the wire, records of a trace. Plain dictionaries with typed keys.

Dictionaries rather than objects on purpose: a field that a newer server sends must survive every hop.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

ATTENTION_PATH = "/v1/attention/"
CAPABILITIES_PATH = f"{ATTENTION_PATH}capabilities"
ATTENTION_KEY_HEADER = "X-Attention-Key"
SCHEMA_VERSION = 1
CAPTURE_MODES = ("raw", "sketch", "fingerprint")
TRACE_VERSION = "1.0"

# Fields of a raw entry that describe its links; they sit under `attention` in a trace's step record.
LINK_FIELDS = (
    "token_positions",
    "attention_scores",
    "topk_logits",
    "logsumexp_candidates",
    "topk_mass",
    "layers",
    "layer_sketches",
    "head_stats",
    "derotated",
)


class Heads(TypedDict):
    seen: int
    total: int


class KeyValues(TypedDict):
    """What a step attended to of a text from which tokens leave; ranges of positions are half-open."""

    kept: int
    freed: int
    share: float
    left: NotRequired[list[list[int]]]
    gone: NotRequired[list[list[int]]]


class Entry(TypedDict, total=False):
    """One output token's attention; docs/wire.md section 3."""

    index: int
    decode_step: int
    step: int
    token_id: int
    token: str | None
    prompt_tokens: list[str | None] | None
    query_position: int
    prompt_len: int
    think_phase: Literal["think", "output"]
    layer_id: int
    heads: Heads
    ruleset: str
    schema: int
    flags: list[str]
    mode: Literal["raw", "sketch", "fingerprint"]
    fingerprint: list[float]
    manifold: str
    zone: str
    zone_confidence: float
    sink_mass: float
    drift: float | None
    compass: Literal["OK", "WARN", "HALT"]
    ripple: float | None
    bytes: int
    token_positions: list[int]
    attention_scores: list[float]
    topk_logits: list[float]
    logsumexp_candidates: float
    topk_mass: float
    entropy_bits: float
    layers: dict[str, Any]
    layer_sketches: dict[str, Any]
    head_stats: dict[str, Any]
    derotated: dict[str, list[float]]
    logit_stats: dict[str, float] | None
    moe: dict[str, Any] | None
    kv: KeyValues


Record = dict[str, Any]


class Message(TypedDict):
    role: str
    content: str


def has_numbers(entry: Entry) -> bool:
    """Whether the entry carries a fingerprint with mass in it (not failed, not stopped, not empty)."""
    return entry.get("fingerprint") is not None and "empty" not in entry.get("flags", ())
