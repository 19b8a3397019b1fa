"""What a firewall is to do: the server's flags and one request's field as checked values. Pure, as options.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from geomcli.compass import DRIFT_WINDOW, HALT_THRESHOLD
from geomcli.firewall import ACTIONS, EARLY_STOP, LOG_ONLY, Action, check_threshold

FIELD = "attention_firewall"
FLAG, WINDOW_FLAG, THRESHOLD_FLAG = (
    "--attention-firewall",
    "--attention-firewall-window",
    "--attention-firewall-threshold",
)
OFF = "off"
CHOICES = (OFF, *ACTIONS)
DETECTORS = ("compass",)
MIN_WINDOW, MAX_WINDOW = 2, 1024
KEYS = ("action", "detector", "window_size", "variance_threshold")
# Request fields that change which attention a firewall sees.
SEEN_BY = (
    "attention_tokens_stride",
    "attention_tokens_window",
    "attention_mask_prefix",
    "attention_capture_layer_ids",
    "attention_capture_head_ids",
)


class Guard(msgspec.Struct, frozen=True):
    """window_size: tokens that drift is taken over; variance_threshold: drift at which to halt."""

    action: Action
    window_size: int = DRIFT_WINDOW
    variance_threshold: float = HALT_THRESHOLD
    detector: str = DETECTORS[0]


def of_flags(action: str, window: int, threshold: float) -> Guard | None:
    """The server's own, None for `off`; ValueError names the flag."""
    if action not in CHOICES:
        raise ValueError(f"{FLAG} must be one of {', '.join(CHOICES)}, got {action}")
    if not MIN_WINDOW <= window <= MAX_WINDOW:
        raise ValueError(f"{WINDOW_FLAG} must be {MIN_WINDOW}..{MAX_WINDOW}, got {window}")
    if not 0 < threshold < 1:
        raise ValueError(f"{THRESHOLD_FLAG} must be above 0 and below 1, got {threshold}")
    if action != OFF:
        check_threshold(threshold, window, THRESHOLD_FLAG)
    return None if action == OFF else Guard(action, window, threshold)  # type: ignore[arg-type]


def of_request(body: Mapping[str, Any], server: Guard | None) -> Guard | None:
    """What watches this request's answer, None if nothing does; it may be stricter than the server's, never less.

    ValueError names the field, and the key in it.
    """
    given = body.get(FIELD)
    if given is None:
        return server
    if given is False:
        if server is not None:
            raise ValueError(f"{FIELD}: this server watches every answer ({FLAG} {server.action})")
        return None
    if given is not True and not isinstance(given, dict):
        raise ValueError(f"{FIELD} must be true, false or an object with some of {', '.join(KEYS)}")
    made = _guard({} if given is True else given, server)
    if server is not None:
        _compare(made, server)
    return made


def seen_by(given: Mapping[str, Any], server: Guard | None, own: Mapping[str, int]) -> None:
    """ValueError for a field that would change what the server's own firewall sees; own: the server's values."""
    if server is None:
        return
    for name in SEEN_BY:
        if name in given and given[name] != own.get(name):
            raise ValueError(
                f"{name} would change what this server's firewall ({FLAG} {server.action}) sees; leave it out"
            )


def _guard(given: Mapping[str, Any], server: Guard | None) -> Guard:
    for key in given:
        if key not in KEYS:
            raise ValueError(f"{FIELD}.{key} is not one of {', '.join(KEYS)}")
    default = server or Guard(EARLY_STOP)
    action, detector = given.get("action", default.action), given.get("detector", default.detector)
    window, threshold = (given.get(key, getattr(default, key)) for key in KEYS[2:])
    if action not in ACTIONS:
        raise ValueError(f"{FIELD}.action must be one of {', '.join(ACTIONS)}, got {action!r:.40}")
    if detector not in DETECTORS:
        raise ValueError(f"{FIELD}.detector must be one of {', '.join(DETECTORS)}, got {detector!r:.40}")
    if isinstance(window, bool) or not isinstance(window, int) or not MIN_WINDOW <= window <= MAX_WINDOW:
        raise ValueError(f"{FIELD}.window_size must be an integer in {MIN_WINDOW}..{MAX_WINDOW}, got {window!r:.40}")
    number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    if not number or not 0 < threshold < 1:
        raise ValueError(f"{FIELD}.variance_threshold must be a number above 0 and below 1, got {threshold!r:.40}")
    check_threshold(threshold, window, f"{FIELD}.variance_threshold")
    return Guard(action, window, float(threshold), detector)


def _compare(asked: Guard, server: Guard) -> None:
    if asked.action == LOG_ONLY != server.action:
        raise ValueError(f"{FIELD}.action: this server ends drifting answers ({FLAG} {server.action})")
    if asked.window_size != server.window_size:
        raise ValueError(
            f"{FIELD}.window_size: this server takes drift over {server.window_size} tokens ({WINDOW_FLAG})"
        )
    if asked.variance_threshold > server.variance_threshold:
        raise ValueError(
            f"{FIELD}.variance_threshold must be at most {server.variance_threshold}, the server's {THRESHOLD_FLAG}"
        )
