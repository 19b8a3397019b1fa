"""Scheduler process: two CUDA graphs for each batch size, so that a step nobody asked about is the plain server's own.

SGLang keys its decode graphs by shape. Each shape is recorded twice, without capture and with it, and the key says
which; a step replays the one with capture only when one of its rows is to be captured.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from geomcli.server_patch.scheduler_state import scheduler

LABEL = "geom"
# Backends whose graphs of one shape share what is planned before a replay. Flashinfer plans for the last one alone: its
# single graph serves every step.
_TWICE = ("triton", "fa3")


def around_capture_one_shape(
    original: Callable[..., Any], runner: Any, size: int, forward: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """Record the shape without capture, then with it."""
    if scheduler.device is None:
        return original(runner, size, forward, *args, **kwargs)
    if scheduler.backend in _TWICE:
        original(runner, size, forward, *args, **kwargs)

    def captured(*inputs: Any, **named: Any) -> Any:
        output = forward(*inputs, **named)
        scheduler.device.join()
        return output

    # SGLang looks at its parameters.
    setattr(captured, "__signature__", inspect.signature(forward))  # noqa: B010
    scheduler.recording = True
    try:
        return original(runner, size, captured, *args, **kwargs)
    finally:
        scheduler.recording = False


def after_make_graph_key(key: Any, _runner: Any, *_: Any, **__: Any) -> Any:
    """The key of the graph with capture while it is recorded, and for a step that is captured; else None: as it was."""
    if scheduler.device is None or scheduler.backend not in _TWICE:
        return None
    if not scheduler.recording and scheduler.current is None:
        return None
    return dataclasses.replace(
        key, variant_label=LABEL if key.variant_label is None else f"{key.variant_label}+{LABEL}"
    )
