"""What the endpoints of /v1/attention answer, as SGLang's OpenAPI page (/openapi.json) describes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from geomcli.server_patch.server_options import MAX_TOP_K, Mode

Count = Annotated[int, Field(ge=0)]


class _Document(BaseModel):
    """Closed: a field that is sent and not described is a fault of the description."""

    model_config = ConfigDict(extra="forbid")


class Heads(_Document):
    seen: Annotated[int, Field(ge=0, description="query heads that are captured, of all ranks")]
    total: Annotated[int, Field(ge=0, description="query heads of the model")]


class Features(_Document):
    include_prompt_attention: bool
    head_filtering: Annotated[bool, Field(description="attention_capture_head_ids")]
    prompt_tokens: Annotated[bool, Field(description="attention_prompt_tokens")]
    head_stats: Annotated[bool, Field(description="attention_head_stats")]
    logit_stats: Annotated[bool, Field(description="attention_logit_stats")]
    moe_routing: Annotated[bool, Field(description="return_moe_routing")]
    derotation: Annotated[bool, Field(description="attention_derotate")]
    firewall: Annotated[bool, Field(description="attention_firewall")]
    auto_sampling: Annotated[bool, Field(description="attention_auto_sampling")]
    spectral_radix: bool
    spectral_decode: bool
    logit_lens: bool


class Guardrails(_Document):
    max_concurrent_capture: Annotated[int, Field(ge=0, description="sequences that are captured at once, 0 = no limit")]
    requires_api_key: Annotated[bool, Field(description="any key, SGLang's own --api-key included")]
    attention_key_header: Annotated[str | None, Field(description="header of attention's own key; null without one")]
    disabled_in_production: bool
    cors_origins: list[str]
    system_prompt_masked: bool
    fingerprint_only: bool
    max_entries: Annotated[int, Field(ge=0, description="entries of a request, 0 = all")]
    max_fingerprint_steps: Annotated[int, Field(ge=0, description="output tokens, 0 = all")]
    stride: Annotated[int, Field(ge=1, description="every Nth output token is captured")]
    window: Annotated[int, Field(ge=0, description="keys: the last N, 0 = all")]


class Firewall(_Document):
    action: Literal["log_only", "early_stop", "re_route"]
    window_size: Annotated[int, Field(ge=2, description="tokens that drift is taken over")]
    variance_threshold: Annotated[float, Field(description="score at which to halt, of the compass a drift")]
    consecutive: Annotated[int, Field(ge=1, description="scores in a row that halt")]
    detector: str
    calibrated: Annotated[bool, Field(description="whether the threshold is one of geom calibrate")]


class Ranking(_Document):
    weight: Annotated[float, Field(gt=0, le=1, description="of received attention against recency")]
    stride: Annotated[int, Field(ge=1, description="every Nth output token, of requests that did not ask")]


class Hooks(_Document):
    applied: list[str]
    missing: list[str]


class Sidecar(_Document):
    sent: Annotated[int, Field(ge=0, description="fingerprints handed over to the socket")]
    dropped: Annotated[int, Field(ge=0, description="fingerprints for which there was no sidecar, or no room in it")]


class Counters(_Document):
    requests: Annotated[int, Field(ge=0, description="requests that asked and were captured")]
    entries: Count
    errors: Annotated[int, Field(ge=0, description="tokens and answers whose capture failed")]
    refused: Annotated[dict[str, Count], Field(description="requests by the reason of their refusal")]
    active_captures: Annotated[int, Field(ge=0, description="sequences that are captured now")]
    waiting_requests: Annotated[int, Field(ge=0, description="requests of which values wait for their answer")]


class Eviction(_Document):
    """Of tokens of running requests."""

    retention_ratio: Annotated[float, Field(gt=0, le=1, description="share of the text so far that stays")]
    least: Annotated[int, Field(ge=1, description="tokens that stay however short the text is")]
    recent: Annotated[int, Field(ge=1, description="newest tokens, which stay")]
    queries: Annotated[int, Field(ge=1, description="newest queries that a score looks at")]


class Capabilities(_Document):
    """What is true of the running process: docs/wire.md, Capabilities."""

    supported: Annotated[bool, Field(description="capture is on, and every hook applied")]
    wire: Annotated[int, Field(ge=1, alias="schema", description="version of the wire format")]
    modes: list[Mode]
    default_mode: Mode
    max_top_k: Annotated[int, Field(ge=0, le=MAX_TOP_K, description="links of an entry, 0 where none leave the server")]
    max_layers: Count
    layers_captured: Annotated[list[Count], Field(description="ids of layers, ascending")]
    layers_total: Count
    heads: Heads
    backend: Annotated[str | None, Field(description="SGLang's attention backend; null while capture is off")]
    source: Annotated[
        Literal["recompute", "probe", "tap"] | None,
        Field(description="where logits come from; null while capture is off"),
    ]
    cuda_graph: bool
    engine_deviations: Annotated[list[str], Field(description="where SGLang's attention is not the model's own")]
    sglang: Annotated[str, Field(description="SGLang's version")]
    plugin: Annotated[str, Field(description="the plugin's version")]
    ruleset: Annotated[str, Field(description="rules of the zones")]
    sink_tokens: Annotated[int, Field(ge=0, description="first positions that count as sinks")]
    chunk_size: Annotated[int, Field(ge=1, description="keys that are handled at a time")]
    features: Features
    guardrails: Guardrails
    firewall: Annotated[Firewall | None, Field(description="what watches every answer; null without one")]
    detectors: Annotated[dict[str, bool], Field(description="whether there is a calibration of each")]
    auto_sampling: Annotated[bool, Field(description="whether zones choose for requests that set neither value")]
    prefix_cache: Annotated[Ranking | None, Field(description="its ranking; null where SGLang's own policy holds")]
    eviction: Annotated[Eviction | None, Field(description="null where running requests keep every token")]
    hooks: Hooks
    sidecar: Annotated[Sidecar | None, Field(description="null without --attention-sidecar-url")]
    counters: Counters


class Refusal(_Document):
    """How SGLang's server words an error."""

    object: Literal["error"]
    message: str
    type: str
    param: str | None
    code: int


class Unauthorized(_Document):
    """How the check of SGLang's own --api-key words it."""

    error: str


def responses(*, attention_key: bool, engine_key: bool) -> dict[int | str, dict[str, Any]]:
    """Statuses of a read, and their bodies, where attention has a key of its own or SGLang has one."""
    found: dict[int | str, dict[str, Any]] = {200: {"model": Capabilities}}
    refusals = [*([Refusal] if attention_key else []), *([Unauthorized] if engine_key else [])]
    if refusals:
        model: Any = refusals[0] if len(refusals) == 1 else Refusal | Unauthorized
        found[401] = {"model": model, "description": "Unauthorized: no key, or the wrong one"}
    return found
