"""What the fields of a trace's records may hold, by kind; fields that are not named here are left as they are."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from geomcli.fingerprint import FINGERPRINT_SIZE

_Int = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]  # what the store can hold
_Index = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
# Far above every number of attention, and far below what overflows when such numbers are added or squared.
_Number = _Int | Annotated[float, msgspec.Meta(ge=-1e30, le=1e30)]
_Share = Annotated[float, msgspec.Meta(ge=-0.001, le=1.001)]  # in [0, 1], from whoever rounds as they like


class Header(msgspec.Struct, gc=False, tag_field="record_type", tag="header"):
    version: str
    trace_id: str
    model: str
    created: _Int = 0
    ruleset: str = ""
    capture: dict[str, Any] = {}


class Message(msgspec.Struct, gc=False, tag_field="record_type", tag="message"):
    role: str
    content: str
    id: str | _Int | None = None


class Token(msgspec.Struct, gc=False, tag_field="record_type", tag="token"):
    index: _Index
    text: str | None = None
    tokenId: _Int | None = None  # noqa: N815
    segmentId: str | None = None  # noqa: N815


class _Heads(msgspec.Struct):
    seen: _Int
    total: _Int


class Step(msgspec.Struct, gc=False, tag_field="record_type", tag="step"):
    tokenIndex: _Index  # noqa: N815
    decode_step: _Int | None = None
    heads: _Heads | None = None
    mode: str | None = None
    bytes: _Int | None = None
    prompt_tokens: list[str | None] | None = None
    moe: dict[str, Any] | None = None
    attention: dict[str, Any] | None = None
    fingerprint: (
        Annotated[list[_Share], msgspec.Meta(min_length=FINGERPRINT_SIZE, max_length=FINGERPRINT_SIZE)] | None
    ) = None
    zone: str | None = None
    zone_confidence: _Number | None = None
    drift: _Number | None = None
    ripple: _Number | None = None
    sink_mass: _Number | None = None
    entropy_bits: _Number | None = None
    compass: str | None = None
    think_phase: str | None = None
    flags: list[str] = []
    layer_id: _Int | None = None
    prompt_len: _Int | None = None
    kv: Any = None
    ruleset: Any = None
    schema: Any = None


class Segment(msgspec.Struct, gc=False, tag_field="record_type", tag="segment"):
    id: str
    type: str
    start: _Index
    end: _Index


class Metrics(msgspec.Struct, gc=False, tag_field="record_type", tag="metrics"):
    tokens: _Int | None = None
    zoneCounts: dict[str, _Int] | None = None  # noqa: N815
    dominantZone: str | None = None  # noqa: N815
    avgEntropy: _Number | None = None  # noqa: N815
    maxDrift: _Number | None = None  # noqa: N815
    promptTokens: _Int | None = None  # noqa: N815
    tokensPerSecond: _Number | None = None  # noqa: N815
    attentionBytes: _Int | None = None  # noqa: N815
    flags: dict[str, _Int] = {}
    error: str | None = None


KINDS: dict[str, type[msgspec.Struct]] = {
    "header": Header,
    "message": Message,
    "token": Token,
    "step": Step,
    "segment": Segment,
    "metrics": Metrics,
}

AnyRecord = Header | Message | Token | Step | Segment | Metrics
