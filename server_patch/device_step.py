"""Scheduler process: the records of one step on their way from the device into the memory that their reader shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from geomcli.server_patch import faults
from geomcli.server_patch.head_numbers import of_many
from geomcli.server_patch.logit_statistics import Logits
from geomcli.server_patch.observed import Row
from geomcli.server_patch.publisher import Part, Publisher, Reservation
from geomcli.server_patch.request_state import population
from geomcli.server_patch.scheduler_state import scheduler
from geomcli.server_patch.zone_sampling import Sampled


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
    kept: dict[str, Any] = field(default_factory=dict)  # by name, where a row is watched
    sampled: tuple[Sampled, ...] = ()

    def watched_rows(self) -> tuple[Row, ...]:
        return self.watched

    def watched_records(self) -> NDArray[np.int32]:
        found = self._host("records")
        return np.zeros((len(scheduler.layers), 0, 0), dtype=np.int32) if found is None else found

    def watched_heads(self, rows: Sequence[Row], lengths: Sequence[int]) -> list[NDArray[np.float32] | None]:
        """[wanted layers, 4, heads] of each of some watched rows, of so many keys."""
        sums = self._host("heads")
        made: list[NDArray[np.float32] | None] = [None] * len(rows)
        if sums is None:
            return made
        alike: dict[tuple[Any, ...], list[int]] = {}
        for n, row in enumerate(rows):
            options = row.state.options
            alike.setdefault((options.layers, options.heads, options.mask_prefix, options.window), []).append(n)
        prompts = np.array([len(row.request.origin_input_ids) for row in rows])
        keys = np.array(lengths)
        for places in alike.values():
            options = rows[places[0]].state.options
            some = sums[:, [rows[n].at for n in places]]
            found = of_many(some, self.windows, options, scheduler.layers, prompts[places], keys[places])
            for n, one in zip(places, found, strict=True):
                made[n] = one
        return made

    def watched_logits(self) -> NDArray[np.float32] | None:
        """[rows, 3]"""
        found = self._host("logits")
        return None if found is None else found[0]

    def _host(self, name: str) -> NDArray[Any] | None:
        if name not in self.kept:
            return None
        if self.copied is not None:
            self.copied.synchronize()
        return np.asarray(self.kept[name])

    def publish(self, publisher: Publisher, judged: tuple[Any, ...] = ()) -> None:
        if self.at is None:
            return
        if self.copied is not None:
            self.copied.synchronize()
        self.source = ()
        publisher.publish(self.at, self.flags, self.windows, judged, self.sampled)

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
    logits: Logits | None = None
    prefill: bool = False
    sampled: tuple[Sampled, ...] = ()  # what rows whose zone chooses are sampled with
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
        watched = tuple(Row(*one) for one in self.asking if one[2].options.observed)
        at: Reservation | None = None
        kept: dict[str, Any] = {}
        parts: list[Any] = []
        silent = bool(watched) and not population.read
        if scheduler.publisher is not None and not silent:
            at, kept, parts = self._published(scheduler.publisher)
        if watched and not kept:
            # Nobody reads this step, or not on this rank.
            arrays = {name: array for name, array in self._arrays().items() if name != "derotated"}
            for name, array in arrays.items():
                host = torch.empty(array.shape, dtype=array.dtype, pin_memory=array.device.type == "cuda")
                kept[name] = host.copy_(array, non_blocking=True)
            parts = [*arrays.values()]
        copied = None
        if parts and self.records.device.type == "cuda":
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
        kept = kept if watched else {}
        return HostStep(at, self.flags, self.windows, copied, tuple(parts), watched, kept, self.sampled)

    def _arrays(self) -> dict[str, torch.Tensor]:
        """The tables of all rows, by name; not the routing."""
        logits = None if self.logits is None else self.logits.found
        every = {"records": self.records, "heads": self.heads, "derotated": self.derotated, "logits": logits}
        return {name: array for name, array in every.items() if array is not None}

    def _published(self, publisher: Publisher) -> tuple[Reservation | None, dict[str, Any], list[Any]]:
        """Start the copies into the shared memory: where, each one's place there, and what is being copied."""
        arrays = self._arrays()
        if self.routing is not None:
            arrays["routing"] = self.routing.transpose(0, 1).contiguous()
        at = publisher.reserve([Part(name, _kind(array), tuple(array.shape)) for name, array in arrays.items()])
        if at is None:
            return None, {}, []
        views = dict(zip(arrays, publisher.views(at), strict=True))
        for name, view in views.items():
            torch.from_numpy(view).copy_(arrays[name], non_blocking=True)
        return at, views, [*arrays.values()]


def _kind(tensor: torch.Tensor) -> str:
    return "int32" if tensor.dtype == torch.int32 else "float32"
