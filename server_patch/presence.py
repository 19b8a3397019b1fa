"""What of a text is in the KV cache, as the scheduler says it, and what an answer's entries have said of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
_NONE: Mask = np.empty(0, dtype=np.bool_)


class _Held(NamedTuple):
    length: int  # of the text when tokens left; steps of a longer text saw it
    gone: Mask  # [length]
    left: int  # how many those are


def packed(places: NDArray[np.int64], length: int) -> bytes:
    """A bit for each token of a text of `length`, 1 for those at `places`."""
    there = np.zeros(length, dtype=np.bool_)
    there[places] = True
    return np.packbits(there).tobytes()


class Presence:
    """Of one answer. Entries name what left since the entry before, or, where tokens have come back or it is not known
    what was said, everything that is not there."""

    def __init__(self) -> None:
        self._known: list[_Held] = []
        self._said: Mask | None = None  # gone, by the entries so far

    def begin(self) -> None:
        """The answer's first token comes: nothing was said before."""
        self._said = _NONE

    def add(self, length: int, mask: bytes) -> None:
        """From the next step on the tokens that `packed` names are held."""
        there = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), count=length).astype(np.bool_)
        self._known.append(_Held(length, ~there, length - int(there.sum())))

    def tell(self, length: int, kept: int) -> dict[str, list[list[int]]]:
        """What the entry of a step of `length` tokens, of which it attended to `kept`, says beside the numbers.

        Empty where nothing changed, or where it is not known which tokens these are.
        """
        gone = self._gone(length, length - kept)
        if gone is None:
            return {}
        said, self._said = self._said, gone
        if said is gone:
            return {}
        if said is None:
            return {"gone": ranges(gone)}
        before, now = _of_one_length(said, gone)
        if (before & ~now).any():
            return {"gone": ranges(gone)}
        left = ranges(now & ~before)
        return {"left": left} if left else {}

    def _gone(self, length: int, count: int) -> Mask | None:
        if count == 0:
            return _NONE
        # A step that SGLang took back and did again saw what was there before, so the count chooses, too.
        for place in range(len(self._known) - 1, -1, -1):
            held = self._known[place]
            if held.length < length and held.left == count:
                del self._known[:place]
                return held.gone
        return None

    def forget(self, length: int) -> None:
        """Entries to come are of steps of at least `length` tokens."""
        old = 0
        # One step may be under way while tokens leave.
        while old + 1 < len(self._known) and self._known[old + 1].length < length - 1:
            old += 1
        del self._known[:old]


def ranges(mask: Mask) -> list[list[int]]:
    """Half-open [start, end] of the runs of a mask, ascending."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    made: list[list[int]] = edges.reshape(-1, 2).tolist()
    return made


def _of_one_length(one: Mask, other: Mask) -> tuple[Mask, Mask]:
    size = max(one.shape[0], other.shape[0])
    padded = [np.concatenate([mask, np.zeros(size - mask.shape[0], dtype=np.bool_)]) for mask in (one, other)]
    return padded[0], padded[1]
