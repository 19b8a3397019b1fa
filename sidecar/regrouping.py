"""Groupings that HTTP asks for: one at a time, and one that waits for each model, however many ask for it."""

from __future__ import annotations

import asyncio

from anyio import CapacityLimiter, to_thread

from geomcli.sidecar.grouping import Grouping
from geomcli.sidecar.traffic import Traffic


class Regrouping:
    """For one event loop. What came before it was asked for is in what is answered."""

    def __init__(self, grouping: Grouping) -> None:
        self._grouping = grouping
        self._one = CapacityLimiter(1)
        self._waiting: dict[str, asyncio.Task[Traffic | None]] = {}

    async def of(self, model: str | None = None) -> Traffic | None:
        """`Grouping.recluster`; UnknownModel at once."""
        traffic = self._grouping.of(model)
        if traffic is None:
            return None
        task = self._waiting.get(traffic.model)
        if task is None:
            task = self._waiting[traffic.model] = asyncio.create_task(self._run(traffic.model))
        return await asyncio.shield(task)  # whoever leaves ends it for nobody else

    async def _run(self, model: str) -> Traffic | None:
        async with self._one:
            del self._waiting[model]
            # A thread of its own limit: it must not wait for others, and they not for it.
            return await to_thread.run_sync(self._grouping.recluster, model, limiter=CapacityLimiter(1))
