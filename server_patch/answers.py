"""What one answer carries from entry to entry."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from geomcli.compass import Compass
from geomcli.server_patch import head_numbers
from geomcli.server_patch.presence import Presence
from geomcli.server_patch.request_options import CaptureOptions
from geomcli.server_patch.values import CAPTURED, FAILED, NOT_CAPTURED, STOPPED, Token
from geomcli.trackers import Trackers

trackers = Trackers()  # of this process, which builds in one thread


class Found(NamedTuple):
    """A row of a step: records [layers, words], of heads either their sums or their finished statistics."""

    flags: tuple[str, ...]
    windows: tuple[int, ...]  # of the captured layers in this kind of step
    records: NDArray[np.int32]
    heads: NDArray[np.float32] | None  # [layers, H, HEAD_WORDS]
    head_statistics: NDArray[np.float32] | None  # [layers, 4, heads]
    derotated: NDArray[np.float32] | None  # [layers, 2, KEEP]: content and position of each link
    routing: NDArray[np.int32] | None  # [layers with experts, 2, k]: experts, bits of their float32 weights
    logits: NDArray[np.float32] | None = None  # see values.Token, as the rest
    judged: tuple[str, float | None, bool] | None = None
    sampled: tuple[str, float, float] | None = None


class Answer:
    """The request's options, its compass, its place among the trackers, which it gives back when it is forgotten."""

    def __init__(self, options: str, prompt_len: int, request: str = "") -> None:
        self.request = request  # its id, as the sidecar is told
        self._tracker: int | None = None
        self.options = msgspec.json.decode(options, type=CaptureOptions)
        self.prompt_len = prompt_len
        self.compass = Compass()  # only judges: `trackers` hold the history
        self.presence = Presence()
        self.stamp = 0
        self._found: dict[int, Found] = {}  # by length, until their tokens come
        self._tokens = 0

    @property
    def tracker(self) -> int:
        if self._tracker is None:
            self._tracker = trackers.open()
        return self._tracker

    def __del__(self) -> None:
        if self._tracker is not None:
            trackers.close(self._tracker)

    def add(self, length: int, found: Found) -> None:
        """A row with this request's stamp; what a later step still holds of an earlier one changes nothing."""
        if length >= self.prompt_len + self._tokens:
            self._found.setdefault(length, found)

    def tokens(self, first: int, ids: list[int], layers: tuple[int, ...]) -> list[Token]:
        """The output tokens from the `first` (0-based) on, with what was found for them."""
        made = []
        if first == 0:
            self.presence.begin()
        self.presence.forget(self.prompt_len + first)
        for index, token_id in enumerate(ids, first):
            length = self.prompt_len + index
            found, kind = self._found.get(length), CAPTURED
            if not self.options.captures(index):
                kind = STOPPED if self.options.stops_at(index) else NOT_CAPTURED
            elif found is None:
                kind = FAILED
            about = (index + 1, token_id, kind, self.stamp, self.prompt_len)
            if kind == CAPTURED and found is not None:
                heads = self._heads(found, length, layers) if self.options.head_stats else None
                routing = found.routing if self.options.moe_layers else None
                scores = self._derotated(found, layers)
                logits = found.logits if self.options.logit_stats else None
                token = Token(*about, found.flags, found.records, heads, scores, routing, logits)
                made.append(token._replace(judged=found.judged, sampled=found.sampled))
            else:
                made.append(Token(*about))
        self._tokens = first + len(ids)
        if self._found:
            least = self.prompt_len + self._tokens
            self._found = {length: found for length, found in self._found.items() if length >= least}
        return made

    def _derotated(self, found: Found, layers: tuple[int, ...]) -> Any:
        if not self.options.derotate or found.derotated is None:
            return None
        return found.derotated[[layers.index(layer) for layer in self.options.layers], :, : self.options.top_k]

    def _heads(self, found: Found, length: int, layers: tuple[int, ...]) -> Any:
        if found.head_statistics is not None:
            return head_numbers.of_statistics(found.head_statistics, self.options, layers)
        if found.heads is None:
            return None
        return head_numbers.of_sums(found.heads, found.windows, self.options, layers, self.prompt_len, length)
