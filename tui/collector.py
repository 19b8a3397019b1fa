"""Garbage collection that does not stop a stream: long traces are millions of objects, none of which is garbage."""

from __future__ import annotations

import gc

# Young objects as often as ever. A full collection looks at everything there is, for a quarter of a second and longer
# with 10,000 tokens: never by itself.
_YOUNG, _MIDDLE, _FULL = 2000, 10, 1_000_000


class Collector:
    """From `begin` to `end` full collections happen only when `rest` is called."""

    def __init__(self) -> None:
        self._before: tuple[int, int, int] | None = None

    def begin(self) -> None:
        """What has been imported by now stays, and is not looked at again."""
        self._before = gc.get_threshold()
        gc.freeze()
        gc.set_threshold(_YOUNG, _MIDDLE, _FULL)

    def rest(self) -> None:
        """Nothing is being written: collect everything once. What is left, traces above all, is not looked at again."""
        if self._before is not None:
            gc.collect()
            gc.freeze()

    def end(self) -> None:
        """As it was before."""
        if self._before is not None:
            gc.set_threshold(*self._before)
            gc.unfreeze()
            self._before = None
