"""Scheduler process: what of one running request's KV is still there."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geomcli.compass import OK
from geomcli.eviction.retention import Retention
from geomcli.server_patch import faults
from geomcli.server_patch.presence import packed
from geomcli.server_patch.request_state import state_of
from geomcli.server_patch.scheduler_state import scheduler
from geomcli.server_patch.values import RETENTION_KEY

_ATTRIBUTE = "_geom_held"
_NONE: NDArray[np.int64] = np.empty(0, dtype=np.int64)


class Scoring(NamedTuple):
    """Scores [n] of the first n keys on their way."""

    n: int
    found: Future[NDArray[np.float32]]


class Change(NamedTuple):
    """What the kernels of capture are to be told on the forward stream before the request's next step: on the device,
    the places of the keys that stayed."""

    places: Any
    slot: int
    gone: int


class Held:
    """The request's tokens by where they stand in its text. Lives on SGLang's Req."""

    def __init__(self, retention: Retention) -> None:
        self.retention = retention
        self.clear()

    def clear(self) -> None:
        """Nothing has left, or it will be computed again."""
        self.evictions = 0
        self.gone = 0
        self.listed = _NONE  # places of what the last eviction left; what came later follows without a gap
        self.scoring: Scoring | None = None
        self.waited = 0
        self.change: Change | None = None
        self.barred = False  # by us from the prefix cache
        self.first_query = 0  # since this place every query is in the ring
        self.next_query = -1

    def text(self, physical: int) -> int:
        """Length of the text of which `physical` tokens are there."""
        return physical + self.gone

    def places(self, physical: int) -> NDArray[np.int64]:
        """Where in the text each of the `physical` tokens stands, ascending."""
        later = np.arange(self.listed.shape[0], physical, dtype=np.int64) + self.gone
        return np.concatenate([self.listed, later])

    def mask(self) -> bytes:
        """Of the text when tokens left last: which of its `text(listed)` tokens stayed, a bit each."""
        return packed(self.listed, self.text(self.listed.shape[0]))

    def left(self, physical: int, stay: NDArray[np.int64]) -> None:
        """Of `physical` tokens only `stay` (ascending indices) are there any more."""
        text = self.text(physical)
        self.listed = self.places(physical)[stay]
        self.gone = text - stay.shape[0]
        self.evictions += 1


def held_of(request: Any) -> Held | None:
    """None for a request from which nothing leaves."""
    try:
        known: Held | None = getattr(request, _ATTRIBUTE)
        return known
    except AttributeError:
        pass
    found = None
    try:
        found = _held(request)
    except Exception:
        faults.report("a request's share of KV could not be read; all of it stays")
    setattr(request, _ATTRIBUTE, found)
    return found


def _held(request: Any) -> Held | None:
    ratio = scheduler.options.retention
    if ratio is None or any(_is_given(request, name) for name in _WHOLE):
        return None
    asked = (getattr(request.sampling_params, "custom_params", None) or {}).get(RETENTION_KEY)
    ratio = ratio if asked is None else min(ratio, float(asked))
    return None if ratio >= 1 else Held(Retention(ratio, sinks=scheduler.evictor.sinks))


# What SGLang reads the whole row of a request for, or rewrites it with.
_WHOLE = (
    "session", "beam_group", "multimodal_inputs", "input_embeds", "positional_embed_overrides", "return_routed_experts",
)  # fmt: skip


def _is_given(request: Any, name: str) -> bool:
    value = getattr(request, name, None)
    return value is not None and value is not False


def text_length(request: Any, physical: int) -> int:
    """Length of the request's text of which `physical` tokens are there."""
    held = None if scheduler.evictor is None else held_of(request)
    return physical if held is None else held.text(physical)


def is_paused(request: Any) -> bool:
    """Whether the request's firewall sees it drift: what it has left, it keeps."""
    state = state_of(request)
    return state is not None and state.watched is not None and state.watched.status != OK
