"""`GET /v1/attention/capabilities`: what is true of the running process."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import msgspec
from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.security import APIKeyHeader, HTTPBearer

from geomcli import __version__
from geomcli.eviction.retention import LEAST, RECENT, WINDOW
from geomcli.schema import ATTENTION_KEY_HEADER, CAPABILITIES_PATH, CAPTURE_MODES, SCHEMA_VERSION
from geomcli.server_patch import arrivals, documents, firewall_options, guards, hooks, state
from geomcli.server_patch.exchange import Exchange
from geomcli.server_patch.firewall_options import Guard
from geomcli.server_patch.metrics import Metrics
from geomcli.server_patch.server_options import MAX_TOP_K, silent_stride
from geomcli.zones import ZONES_V1


def capabilities() -> dict[str, Any]:
    """The capabilities document of docs/wire.md section 4."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    main = state.main
    options, info = main.options, main.info
    applied = sorted({h.target for h in hooks.hooks_for(hooks.MAIN)} & HookRegistry._patched)
    missing = sorted({h.target for h in hooks.hooks_for(hooks.MAIN)} - HookRegistry._patched)
    modes = ["fingerprint"] if options.fingerprint_only else list(CAPTURE_MODES)
    more_than_fingerprints = options.enabled and not options.fingerprint_only
    return {
        "supported": options.enabled and not missing and not info.get("hooks", {}).get("missing"),
        "schema": SCHEMA_VERSION,
        "modes": modes if options.enabled else [],
        "default_mode": options.default_mode,
        "max_top_k": MAX_TOP_K if more_than_fingerprints else 0,
        "max_layers": len(main.shape.layers_captured),
        "layers_captured": list(main.shape.layers_captured),
        "layers_total": main.shape.layers_total,
        "heads": {"seen": main.shape.heads_total, "total": main.shape.heads_total},
        "backend": info.get("backend"),
        "source": info.get("source"),
        "cuda_graph": info.get("cuda_graph", False),
        "engine_deviations": info.get("deviations", []),
        "sglang": version("sglang"),
        "plugin": __version__,
        "ruleset": ZONES_V1.name,
        "sink_tokens": options.sink_tokens,
        "chunk_size": options.chunk_size,
        "features": {
            "include_prompt_attention": options.enabled,
            "head_filtering": options.enabled,
            "prompt_tokens": more_than_fingerprints,
            "head_stats": more_than_fingerprints and options.retention is None,
            "logit_stats": more_than_fingerprints,
            "moe_routing": bool(main.shape.moe_layers) and more_than_fingerprints,
            "derotation": options.enabled and not options.fingerprint_only and not main.shape.not_derotated,
            "firewall": options.enabled,
            "auto_sampling": options.enabled,
            "spectral_radix": options.ranks,
            "spectral_decode": options.enabled and options.retention is not None,
            "logit_lens": False,
        },
        "guardrails": {
            "max_concurrent_capture": options.max_concurrent,
            "requires_api_key": bool(main.key) or main.bearer_taken,
            "attention_key_header": ATTENTION_KEY_HEADER if main.key else None,
            "disabled_in_production": options.disable_in_production,
            "cors_origins": options.cors_origins.split(","),
            "system_prompt_masked": options.mask_system_prompt,
            "fingerprint_only": options.fingerprint_only,
            "max_entries": options.max_entries,
            "max_fingerprint_steps": options.max_steps,
            "stride": options.stride,
            "window": options.window,
        },
        "firewall": None if options.guard is None else _firewall(options.guard),
        "detectors": {
            name: any(one.detector == name for one in options.calibrations) for name in firewall_options.DETECTORS
        },
        "auto_sampling": options.enabled and options.auto_sampling,
        "prefix_cache": {"weight": options.spectral_weight, "stride": silent_stride(options)}
        if options.ranks
        else None,
        "eviction": _eviction(options.retention) if options.enabled else None,
        "hooks": {
            "applied": applied + info.get("hooks", {}).get("applied", []),
            "missing": missing + info.get("hooks", {}).get("missing", []),
        },
        "sidecar": None if main.pusher is None else {"sent": main.pusher.sent, "dropped": main.pusher.dropped},
        "counters": {
            **main.counters.as_dict(),
            "refused": dict(main.counters.refused),
            "active_captures": guards.active(),
            "waiting_requests": arrivals.waiting(),
        },
    }


def _eviction(ratio: float | None) -> dict[str, Any] | None:
    if ratio is None:
        return None
    return {"retention_ratio": ratio, "least": LEAST, "recent": RECENT, "queries": WINDOW}


async def require_key(request: Request) -> None:
    """HTTP 401 without the key of --attention-api-key."""
    try:
        guards.require_key(request.scope)
    except guards.Refused as refused:
        state.main.counters.refuse(refused.reason)
        raise HTTPException(refused.status_code, str(refused)) from None


def _firewall(guard: Guard) -> dict[str, Any]:
    """Without where its calibration lies."""
    told = msgspec.to_builtins(guard)
    return {name: told[name] for name in documents.Firewall.model_fields}


def install(*, metrics: bool) -> None:
    """Add the routes and what goes on around them; SGLang's own --api-key protects them like every other.

    `metrics`: whether /metrics is served.
    """
    from sglang.srt.entrypoints.http_server import app

    router = APIRouter(
        dependencies=[Depends(require_key), *(Depends(scheme) for scheme in _key_schemes())], tags=["attention"]
    )
    router.add_api_route(
        CAPABILITIES_PATH,
        capabilities,
        methods=["GET"],
        response_model=None,
        responses=documents.responses(attention_key=bool(state.main.key), engine_key=state.main.bearer_taken),
        summary="What can be captured, and under which guards",
    )
    app.include_router(router)
    app.add_middleware(Exchange, metrics=Metrics() if metrics else None)


def _key_schemes() -> list[APIKeyHeader | HTTPBearer]:
    """Where the key may be, for the OpenAPI page; `require_key` looks for itself."""
    if not state.main.key:
        return []
    header = APIKeyHeader(name=ATTENTION_KEY_HEADER, scheme_name="AttentionKey", auto_error=False)
    # A bearer token is SGLang's own key where it has one.
    bearer = HTTPBearer(scheme_name="AttentionBearer", auto_error=False)
    return [header] if state.main.bearer_taken else [header, bearer]
