"""Memory shared by the scheduler, which fills it in order, and by whoever builds entries, who empties it in order.

A device copies into it directly, so that the scheduler touches no byte of what it sends.
"""

from __future__ import annotations

import mmap
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HEADER_BYTES = mmap.PAGESIZE
_ALIGNMENT = 64


class Ring:
    """`size` bytes behind a header that says how many were read since the beginning. One writer, one reader."""

    def __init__(self, file: int, size: int) -> None:
        self.file, self.size = file, size
        shared = mmap.mmap(file, _HEADER_BYTES + size)
        self._read: NDArray[np.int64] = np.frombuffer(shared, dtype=np.int64, count=1)
        self.data: NDArray[np.uint8] = np.frombuffer(shared, dtype=np.uint8, offset=_HEADER_BYTES)
        self._written = 0
        self._skipped = 0

    @classmethod
    def create(cls, size: int) -> Ring:
        """A ring of a file without a name: gone with the last process that has it."""
        size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        file = os.memfd_create("geom")
        os.ftruncate(file, _HEADER_BYTES + size)
        return cls(file, size)

    def reserve(self, n_bytes: int) -> tuple[int, int] | None:
        """Start and end of so many contiguous bytes, counted since the beginning; None while too much is unread."""
        n_bytes = -(-n_bytes // _ALIGNMENT) * _ALIGNMENT
        unread_from, start = max(int(self._read[0]), self._skipped), self._written
        if unread_from == start:
            # Nothing waits: from the front, so that a quiet server's ring stays small.
            start += -start % self.size
            self._skipped = unread_from = start
        elif start % self.size + n_bytes > self.size:
            start += -start % self.size
        if start + n_bytes - unread_from > self.size:
            return None
        self._written = start + n_bytes
        return start, self._written

    def view(self, start: int, n_bytes: int) -> NDArray[np.uint8]:
        """The bytes that were reserved at `start`."""
        at = start % self.size
        return self.data[at : at + n_bytes]

    def release(self, end: int) -> None:
        """Reader: everything before `end` may be overwritten."""
        self._read[0] = end

    def forget(self) -> None:
        """Writer: nobody will read what was written so far."""
        self._skipped = self._written


def address_of(array: NDArray[Any]) -> int:
    """Where the array's memory begins in this process."""
    return int(array.ctypes.data)
