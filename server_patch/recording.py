"""Scheduler process: launches that must neither end the server nor be lost from a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

from geomcli.server_patch import faults
from geomcli.server_patch.scheduler_state import scheduler


def recording() -> bool:
    """Whether a CUDA graph with capture is being recorded or warmed up; a step that asks is never a recording."""
    return scheduler.recording and scheduler.current is None


def guarded(launch: Callable[[], None]) -> None:
    """Run it. A failure marks the step; while a graph is recorded it stops the server: every replay would fail."""
    try:
        launch()
    except Exception as error:
        if recording():
            raise SystemExit(f"geom: the capture kernels cannot be recorded ({error}).") from error
        faults.report("a layer of a step could not be captured")
        if scheduler.current is not None and hasattr(scheduler.current, "error"):
            scheduler.current.error = type(error).__name__
