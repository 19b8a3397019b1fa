"""What share of a running request's KV stays: the server's flags and one request's field as checked values. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FIELD = "spectral_retention_ratio"
FLAG, RATIO_FLAG = "--spectral-evict-decode", "--spectral-retention-ratio"
DEFAULT_RATIO = 0.3
SAFE_RATIO = 0.5  # measured: docs/eviction.md, "What it costs an answer"
# Request fields whose numbers need every key's place, or the rotation of links to be undone.
UNDER_EVICTION = ("attention_derotate", "attention_head_stats")


def of_flags(evict: bool, ratio: float) -> float | None:
    """The server's ratio, None where nothing is evicted; ValueError names the flag."""
    if not 0 < ratio <= 1:
        raise ValueError(f"{RATIO_FLAG} must be above 0 and at most 1, got {ratio}")
    return ratio if evict else None


def warning(ratio: float | None) -> str:
    """What is to be expected of a share that small; "" where nothing is."""
    if ratio is None or ratio >= SAFE_RATIO:
        return ""
    default = " (the default)" if ratio == DEFAULT_RATIO else ""
    return (
        f"{RATIO_FLAG} {ratio}{default}: where less than {SAFE_RATIO} stays, answers lose facts of their text that "
        f"nothing pointed at when tokens left (docs/eviction.md says how many); safer: {RATIO_FLAG} {SAFE_RATIO}"
    )


def of_request(body: Mapping[str, Any], server: float | None) -> float | None:
    """The share that a request asks to keep, None if it leaves that to the server; never more than the server keeps.

    ValueError names the field.
    """
    given = body.get(FIELD)
    if given is None:
        return None
    if server is None:
        raise ValueError(f"{FIELD}: this server evicts nothing from running requests; start it with {FLAG}")
    number = isinstance(given, int | float) and not isinstance(given, bool)
    if not number or not 0 < given <= server:
        raise ValueError(f"{FIELD} must be above 0 and at most {server}, the server's {RATIO_FLAG}, got {given!r:.40}")
    return float(given)


def check(given: Mapping[str, Any], server: float | None) -> None:
    """ValueError for what cannot be told of a request whose keys leave."""
    if server is None:
        return
    for name in UNDER_EVICTION:
        if given.get(name):
            raise ValueError(f"{name} cannot be had where keys leave ({FLAG}); leave it out")
