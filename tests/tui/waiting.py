"""Waiting for what an app does beside its keys."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


async def until(met: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until something is so; AssertionError when it never is, which other work on the machine must not decide."""
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.02)
