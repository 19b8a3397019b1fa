"""Scheduler process: the records of one step on their way from the device into the memory that their reader shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from geomcli.server_patch import faults
from geomcli.server_patch.publisher import Part, Publisher, Reservation
from geomcli.server_patch.request_state import population
from geomcli.server_patch.scheduler_state import scheduler
from geomcli.server_patch.watching import Row


@dataclass
class HostStep:
    """On the host once `copied` has happened; without a place it is lost.

    Until then it keeps what is being copied: freed, that memory could be given to a later step on another stream.
    """

    at: Reservation | None = None
    flags: tuple[str, ...] = ()
    windows: tuple[int, ...] = ()
    copied: Any = None
    source: tuple[Any, ...] = ()
    watched: tuple[Row, ...] = ()
    words: Any = None  # records [layers, rows, words], where a row is watched

    def watched_rows(self) -> tuple[Row, ...]:
        return self.watched

    def watched_records(self) -> NDArray[np.int32]:
        if self.words is None:
            return np.zeros((len(scheduler.layers), 0, 0), dtype=np.int32)
        if self.copied is not None:
            self.copied.synchronize()
        found: NDArray[np.int32] = np.asarray(self.words)
        return found

    def publish(self, publisher: Publisher, judged: tuple[Any, ...] = ()) -> None:
        if self.at is None:
            return
        if self.copied is not None:
            self.copied.synchronize()
        self.source = ()
        publisher.publish(self.at, self.flags, self.windows, judged)

    def consume(self, _batch: Any, _commits: Any) -> None:
        """Records are sent before the tokens are committed (results.py); nothing is left to do afterwards."""


@dataclass
class DeviceStep:
    """What is captured of one forward pass, and after sampling the records of the whole batch.

    records: int32 [layers, rows, words]. Where a row asks for them heads: float32 [layers, rows, H, words], and
    derotated: float32 [layers, rows, 2, KEEP], content and position of each link; routing: of moe.Routing.rows. `flags`
    are raised on every entry of the step, `windows` are the captured layers' sliding windows in this kind of step. A
    step with an `error` has no records that anybody may read.
    """

    flags: tuple[str, ...] = ()
    windows: tuple[int, ...] = ()
    asking: tuple[tuple[int, Any, Any], ...] = ()  # row, request, state: of several ranks, which all know them
    records: Any = None
    heads: Any = None
    derotated: Any = None
    routing: Any = None
    prefill: bool = False
    error: str | None = None

    @property
    def wants_routing(self) -> bool:
        return population.routed > 0

    def copy_to_host(self, _copy_tensor: Callable[[Any], Any]) -> HostStep:
        """Start the copy on the current stream. Never raises: nobody above would catch it."""
        try:
            return self._copied()
        except Exception:
            faults.report("a step's records could not be copied; its tokens carry error entries")
            return HostStep()

    def _copied(self) -> HostStep:
        if self.records is None or self.error is not None:
            return HostStep()
        watched = tuple(Row(*one) for one in self.asking if one[2].options.guard is not None or one[2].options.ranked)
        at, words = None, None
        parts: list[Any] = []
        silent = bool(watched) and not population.read
        if scheduler.publisher is not None and not silent:
            at, words, parts = self._published(scheduler.publisher)
        if watched and words is None:
            # Nobody reads this step, or not on this rank.
            words = torch.empty(self.records.shape, dtype=torch.int32, pin_memory=self.records.device.type == "cuda")
            words.copy_(self.records, non_blocking=True)
            parts = [self.records]
        copied = None
        if parts and self.records.device.type == "cuda":
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
        return HostStep(at, self.flags, self.windows, copied, tuple(parts), watched, words if watched else None)

    def _published(self, publisher: Publisher) -> tuple[Reservation | None, Any, list[Any]]:
        """Start the copies into the shared memory: where, the records' place there, and what is being copied."""
        arrays = [("records", self.records), ("heads", self.heads), ("derotated", self.derotated)]
        if self.routing is not None:
            arrays.append(("routing", self.routing.transpose(0, 1).contiguous()))
        parts = [(Part(name, _kind(array), tuple(array.shape)), array) for name, array in arrays if array is not None]
        at = publisher.reserve([part for part, _ in parts])
        if at is None:
            return None, None, []
        views = publisher.views(at)
        for view, (_, array) in zip(views, parts, strict=True):
            torch.from_numpy(view).copy_(array, non_blocking=True)
        return at, views[0], [array for _, array in parts]


def _kind(tensor: torch.Tensor) -> str:
    return "int32" if tensor.dtype == torch.int32 else "float32"
