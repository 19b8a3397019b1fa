"""Request fields for what a user wants to see and a server can capture."""

from __future__ import annotations

from typing import Any

from geomcli.errors import ServerUnreachable, UsageError
from geomcli.firewall import EARLY_STOP, LOG_ONLY, RE_ROUTE

# As `geom run --firewall` names them.
FIREWALL_ACTIONS = {"stop": EARLY_STOP, "log": LOG_ONLY, "reroute": RE_ROUTE}


def check_firewall(given: str | None) -> None:
    """UsageError where a user asks for an action that there is not."""
    if given is not None and given not in FIREWALL_ACTIONS:
        raise UsageError(f"--firewall must be {', '.join(FIREWALL_ACTIONS)}, got {given!r}.", "--firewall log")


def attention_fields(
    capabilities: dict[str, Any],
    *,
    capture: str | None,
    top_k: int | None,
    layers: list[int] | None,
    derotate: bool = False,
    statistics: bool = False,
    firewall: str | None = None,
    detector: str | None = None,
    auto_sampling: bool = False,
    retention: float | None = None,
) -> dict[str, Any]:
    """Request fields for what the user wants and the server has; ServerUnreachable when it captures nothing.

    statistics: of heads and logits; firewall: one of FIREWALL_ACTIONS, None for what the server does by itself;
    detector: what that watches with; auto_sampling: by zone; retention: share of its KV that the request keeps.
    UsageError names the option that the server cannot serve while keys leave.
    """
    if not capabilities.get("supported"):
        guardrails = capabilities.get("guardrails")
        if isinstance(guardrails, dict) and guardrails.get("disabled_in_production"):
            raise ServerUnreachable(
                "this server was started with --attention-disable-in-production.", "GEOM_DEBUG=1 geom serve …"
            )
        raise ServerUnreachable(
            "this server does not capture attention.", "geom serve, without --no-return-attention-tokens"
        )
    modes = capabilities.get("modes") or []
    mode = capture or ("raw" if "raw" in modes else "fingerprint")
    fields: dict[str, Any] = {"return_attention_tokens": True}
    if mode == "fingerprint":
        fields["attention_fingerprint_mode"] = True
    elif mode == "sketch":
        fields["attention_sketch_mode"] = True
    else:
        fields["attention_fingerprint_mode"] = False
        if (capabilities.get("features") or {}).get("prompt_tokens"):
            fields["attention_prompt_tokens"] = True
    if (capabilities.get("features") or {}).get("moe_routing"):
        fields["return_moe_routing"] = True
    if top_k is not None:
        fields["top_k_attention"] = top_k
    if layers is not None:
        fields["attention_capture_layer_ids"] = layers
    eviction = capabilities.get("eviction")
    if eviction is not None:
        for option, given in (("--derotate", derotate), ("--stats", statistics)):
            if given:
                raise UsageError(
                    f"{option} cannot be had of this server: it evicts keys of running requests.",
                    f"leave {option} out, or geom serve without --spectral-evict-decode",
                )
    if retention is not None:
        if eviction is None:
            raise ServerUnreachable(
                "this server evicts nothing from running requests.", "geom serve --spectral-evict-decode"
            )
        if not 0 < retention <= eviction["retention_ratio"]:
            raise UsageError(
                f"--spectral-retention-ratio must be above 0 and at most {eviction['retention_ratio']}, the server's, "
                f"got {retention}."
            )
        fields["spectral_retention_ratio"] = retention
    if derotate:
        fields["attention_derotate"] = True
    if statistics:
        missing = [name for name in ("head_stats", "logit_stats") if not (capabilities.get("features") or {}).get(name)]
        if missing:
            raise ServerUnreachable(f"this server has no {' and no '.join(missing)}.", "geom serve of this release")
        fields |= {"attention_head_stats": True, "attention_logit_stats": True}
    if firewall is not None:
        if not (capabilities.get("features") or {}).get("firewall"):
            raise ServerUnreachable("this server has no firewall.", "geom serve of this release")
        fields["attention_firewall"] = {"action": FIREWALL_ACTIONS[firewall]}
        if detector is not None:
            fields["attention_firewall"]["detector"] = detector
    if auto_sampling:
        if not (capabilities.get("features") or {}).get("auto_sampling"):
            raise ServerUnreachable("this server has no zone-based sampling.", "geom serve of this release")
        fields["attention_auto_sampling"] = True
    return fields
