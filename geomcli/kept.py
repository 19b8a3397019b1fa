"""Which tokens of a text had left the KV cache when a step ran, from what a trace's steps say (docs/wire.md, `kv`)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import msgspec

from geomcli.schema import Record

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Ranges = list[tuple[_Count, _Count]]


class Cache(msgspec.Struct, frozen=True):
    """Of one step: tokens of the text that it attended to, and tokens that had left before it.

    `left`: half-open ranges of those that left since the step before; `gone`, where it is not None, of all of them.
    """

    kept: _Count
    freed: _Count
    left: _Ranges = []
    gone: _Ranges | None = None

    @property
    def share(self) -> float:
        """Of the text that was held, in [0, 1]."""
        return self.kept / max(1, self.kept + self.freed)


def cache_of(step: Mapping[str, Any]) -> Cache | None:
    """What a step says of the cache; None where nothing leaves, or where it cannot be read."""
    return read_cache(step.get("kv"))


def last_cache(steps: Sequence[Mapping[str, Any]]) -> Cache | None:
    """What the last of a trace's steps that says anything of the cache says of it."""
    return next((found for step in reversed(steps) if (found := cache_of(step)) is not None), None)


def read_cache(kv: Any) -> Cache | None:
    """The same of the step's `kv` alone."""
    try:
        return None if kv is None else msgspec.convert(kv, Cache)
    except msgspec.ValidationError:
        return None


class _Stretch:
    """Steps through which tokens only leave. `runs`: (start, end, step that first went without), ascending."""

    def __init__(self, step: int, *, known: bool) -> None:
        self.step, self.known = step, known
        self.runs: list[tuple[int, int, int]] = []
        self.count = 0  # tokens in them

    def take(self, ranges: Iterable[tuple[int, int]], step: int) -> bool:
        """False where one of them is none, or had left already."""
        for start, end in ranges:
            at = bisect_right(self.runs, start, key=lambda run: run[0])
            before = self.runs[at - 1][1] if at else 0
            behind = self.runs[at][0] if at < len(self.runs) else end
            if not before <= start < end <= behind:
                return False
            self.runs.insert(at, (start, end, step))
            self.count += end - start
        return True

    def left_at(self, position: int) -> int | None:
        at = bisect_right(self.runs, position, key=lambda run: run[0]) - 1
        return self.runs[at][2] if at >= 0 and position < self.runs[at][1] else None


class Kept:
    """What the steps of one trace say, taken in their order, also while it grows. Steps go by their `tokenIndex`.

    Nothing is guessed: where not as many tokens were named as a step says have left (an entry is missing; fingerprints
    and masked answers name none), it is unknown which they are, until a step names all of them.
    """

    def __init__(self, steps: Iterable[Record] = ()) -> None:
        self._stretches = [_Stretch(-1, known=True)]
        self.last: Cache | None = None  # of the last step that says something of it
        for step in steps:
            self.add(step)

    def add(self, step: Record) -> None:
        """Take the next step; one that says nothing of the cache changes nothing."""
        cache = cache_of(step)
        if cache is None:
            return
        self.last = cache
        number, now = int(step["tokenIndex"]), self._stretches[-1]
        named = cache.left
        if cache.gone is not None or (not cache.freed and (now.count or not now.known)):
            now, named = self._begin(number, known=True), cache.gone or []
        if now.known and not (now.take(named, number) and now.count == cache.freed):
            if now.step == number:
                now.known = False
            else:
                self._begin(number, known=False)

    def _begin(self, step: int, *, known: bool) -> _Stretch:
        self._stretches.append(_Stretch(step, known=known))
        return self._stretches[-1]

    def left_at(self, position: int, step: int | None = None) -> int | None:
        """The first step to go without a position of the text, as `step` (the last one by default) has it; None where
        the position is there, or where it is not known."""
        stretch = self._stretch(step)
        found = stretch.left_at(position) if stretch.known else None
        return None if found is None or (step is not None and found > step) else found

    def kept(self, position: int, step: int | None = None) -> bool | None:
        """Whether `step` (the last one by default) had a position of the text; None where it is not known."""
        return self.left_at(position, step) is None if self._stretch(step).known else None

    def gone(self, step: int | None = None) -> list[tuple[int, int]] | None:
        """Half-open ranges of the positions that `step` (the last one by default) went without, ascending; None where
        they are not known."""
        stretch = self._stretch(step)
        if not stretch.known:
            return None
        return [(start, end) for start, end, left in stretch.runs if step is None or left <= step]

    def counted(self, start: int, end: int, step: int | None = None) -> int | None:
        """How many of the positions [start, end) `step` (the last one by default) went without; None where it is not
        known."""
        gone = self.gone(step)
        return None if gone is None else sum(max(0, min(end, last) - max(start, first)) for first, last in gone)

    def _stretch(self, step: int | None) -> _Stretch:
        if step is None:
            return self._stretches[-1]
        return self._stretches[max(0, bisect_right(self._stretches, step, key=lambda one: one.step) - 1)]
