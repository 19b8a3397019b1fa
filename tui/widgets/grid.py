"""Points of a plane in the cells of a window: which are in each, of which kind most, what comes next in a direction."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from textual.geometry import Size

_MARGIN = 0.04  # of the plane, left free around the points
# Bits of a braille pattern by row (4) and column (2) of the dot.
_DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])


class Window(NamedTuple):
    """The part of the plane that is shown."""

    left: float
    right: float
    bottom: float
    top: float

    def zoomed(self, factor: float, x: float, y: float) -> Window:
        """A window `factor` times as fine, in which (x, y) stays where it is."""
        return Window(
            x - (x - self.left) / factor,
            x + (self.right - x) / factor,
            y - (y - self.bottom) / factor,
            y + (self.top - y) / factor,
        )

    def around(self, x: float, y: float) -> Window:
        """The same size, moved so that (x, y) is inside; in the middle if it was not."""
        if self.left <= x <= self.right and self.bottom <= y <= self.top:
            return self
        half_x, half_y = (self.right - self.left) / 2, (self.top - self.bottom) / 2
        return Window(x - half_x, x + half_x, y - half_y, y + half_y)


def window_of(xy: NDArray[np.float64]) -> Window:
    """All finite points [n, 2] with a margin; a square of side 2 where they do not spread."""
    xy = xy[np.isfinite(xy).all(axis=1)]
    if not len(xy):
        return Window(-1.0, 1.0, -1.0, 1.0)
    low, high = xy.min(axis=0), xy.max(axis=0)
    spread = high - low
    pad = np.where(spread > 1e-9, spread * _MARGIN, 1.0)
    (left, bottom), (right, top) = (low - pad).tolist(), (high + pad).tolist()
    return Window(left, right, bottom, top)


class Grid:
    """Which point is in which cell. cell [n]: row * columns + column, -1 out of the window; kinds [n]: 0 or more."""

    def __init__(self, xy: NDArray[np.float64], kinds: NDArray[np.int64], window: Window, size: Size) -> None:
        self.columns, self.rows = max(1, size.width), max(1, size.height)
        self.window = window
        u = (xy[:, 0] - window.left) / (window.right - window.left)
        v = (window.top - xy[:, 1]) / (window.top - window.bottom)
        inside = (u >= 0) & (u < 1) & (v >= 0) & (v < 1)  # nan is not
        self.u, self.v = np.where(inside, u, 0.0), np.where(inside, v, 0.0)
        column = (self.u * self.columns).astype(np.int64)
        row = (self.v * self.rows).astype(np.int64)
        self.cell = np.where(inside, row * self.columns + column, -1)
        self.inside = inside
        number = int(kinds.max(initial=0)) + 1
        counts = np.bincount(self.cell[inside] * number + kinds[inside], minlength=self.columns * self.rows * number)
        by_kind = counts.reshape(-1, number)
        self.counts: NDArray[np.int64] = by_kind.sum(axis=1)  # [cells]
        self.kinds: NDArray[np.int64] = by_kind.argmax(axis=1)  # [cells], of most points

    def dots(self) -> NDArray[np.int64]:
        """[cells]: the braille pattern of the points in each."""
        fine_column = (self.u * self.columns * 2).astype(np.int64)
        fine_row = (self.v * self.rows * 4).astype(np.int64)
        fine = (fine_row * self.columns * 2 + fine_column)[self.inside]
        filled = np.bincount(fine, minlength=self.columns * self.rows * 8) > 0
        blocks = filled.reshape(self.rows, 4, self.columns, 2).transpose(0, 2, 1, 3)
        patterns: NDArray[np.int64] = (blocks * _DOTS).sum(axis=(2, 3)).reshape(-1)
        return patterns

    def means(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """[cells]: mean of the values [n] of the points in each, nan where there is none."""
        known = self.inside & np.isfinite(values)
        size = self.columns * self.rows
        total = np.bincount(self.cell[known], weights=values[known], minlength=size)
        number = np.bincount(self.cell[known], minlength=size)
        means: NDArray[np.float64] = np.divide(total, number, out=np.full(size, np.nan), where=number > 0)
        return means

    def members(self, cell: int) -> list[int]:
        """The points in a cell."""
        return np.flatnonzero(self.cell == cell).tolist() if cell >= 0 else []

    def toward(self, cell: int, dx: int, dy: int) -> int | None:
        """The nearest cell with points to the right (dx = 1), left, below (dy = 1) or above; what lies ahead before
        what lies more to the side. A row counts as two columns, as high as it is.
        """
        occupied = np.flatnonzero(self.counts)
        right = occupied % self.columns - cell % self.columns
        down = (occupied // self.columns - cell // self.columns) * 2
        along, across = right * dx + down * dy, np.abs(right * dy) + np.abs(down * dx)
        ahead = along > 0
        if not ahead.any():
            return None
        if (straight := ahead & (across <= along)).any():
            ahead = straight
        cost = np.where(ahead, along + 2 * across, np.iinfo(np.int64).max)
        return int(occupied[int(cost.argmin())])
