"""`GET /v1/attention/capabilities`: what is true of the running process."""

from __future__ import annotations

from typing import Any

from geomcli import __version__
from geomcli.schema import CAPABILITIES_PATH, CAPTURE_MODES, SCHEMA_VERSION
from geomcli.server_patch import hooks, state
from geomcli.server_patch.options import MAX_TOP_K
from geomcli.zones import ZONES_V1


def capabilities() -> dict[str, Any]:
    """The capabilities document of docs/wire.md section 4."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    main = state.main
    options, info = main.options, main.info
    applied = sorted({h.target for h in hooks.hooks_for(hooks.MAIN)} & HookRegistry._patched)
    missing = sorted({h.target for h in hooks.hooks_for(hooks.MAIN)} - HookRegistry._patched)
    modes = ["fingerprint"] if options.fingerprint_only else list(CAPTURE_MODES)
    return {
        "supported": options.enabled and not missing and not info.get("hooks", {}).get("missing"),
        "schema": SCHEMA_VERSION,
        "modes": modes if options.enabled else [],
        "default_mode": options.default_mode,
        "max_top_k": MAX_TOP_K,
        "max_layers": len(main.shape.layers_captured),
        "layers_captured": list(main.shape.layers_captured),
        "layers_total": main.shape.layers_total,
        "heads": {"seen": main.shape.heads_total, "total": main.shape.heads_total},
        "backend": info.get("backend"),
        "source": info.get("source"),
        "cuda_graph": info.get("cuda_graph", False),
        "engine_deviations": info.get("deviations", []),
        "sglang": info.get("sglang"),
        "plugin": __version__,
        "ruleset": ZONES_V1.name,
        "sink_tokens": options.sink_tokens,
        "features": {
            "include_prompt_attention": True,
            "head_filtering": True,
            "prompt_tokens": not options.fingerprint_only,
            "head_stats": not options.fingerprint_only,
            "moe_routing": bool(main.shape.moe_layers) and not options.fingerprint_only,
            "derotation": False,
            "firewall": False,
            "auto_sampling": False,
            "spectral_radix": False,
            "spectral_decode": False,
            "logit_lens": False,
        },
        "guardrails": {
            "max_concurrent_capture": 0,
            "requires_api_key": main.requires_api_key,
            "system_prompt_masked": False,
            "fingerprint_only": options.fingerprint_only,
            "max_entries": options.max_entries,
            "max_fingerprint_steps": options.max_steps,
            "stride": options.stride,
            "window": options.window,
        },
        "hooks": {
            "applied": applied + info.get("hooks", {}).get("applied", []),
            "missing": missing + info.get("hooks", {}).get("missing", []),
        },
        "counters": main.counters.as_dict(),
    }


def install() -> None:
    """Add the route; SGLang's own --api-key protects it like every other."""
    from sglang.srt.entrypoints.http_server import app

    app.add_api_route(CAPABILITIES_PATH, capabilities, methods=["GET"])
