"""What one answer carries from entry to entry."""

from __future__ import annotations

import msgspec

from geomcli.compass import Compass
from geomcli.server_patch.options import CaptureOptions
from geomcli.trackers import Trackers

trackers = Trackers()  # of this process, which builds in one thread


class Answer:
    """The request's options, its compass, its place among the trackers, which it gives back when it is forgotten."""

    def __init__(self, encoded: str) -> None:
        self._tracker: int | None = None
        self.options = msgspec.json.decode(encoded, type=CaptureOptions)
        self.compass = Compass()  # only judges: `trackers` hold the history

    @property
    def tracker(self) -> int:
        if self._tracker is None:
            self._tracker = trackers.open()
        return self._tracker

    def __del__(self) -> None:
        if self._tracker is not None:
            trackers.close(self._tracker)
