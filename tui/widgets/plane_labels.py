"""Names on a plane of cells: the letter of each at its place, its words beside it where they cover nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from geomcli.tui.grouping import Label
from geomcli.tui.widgets.grid import Window

_REACH = 3  # rows above and below a place in which its words may stand


class Written(NamedTuple):
    """Text from a column on; `zone` whose colour it has, "" for a letter at its place."""

    column: int
    text: str
    zone: str


def written(labels: Sequence[Label], window: Window, occupied: NDArray[np.float64]) -> dict[int, list[Written]]:
    """Row -> what is written there. occupied [rows, columns]: what it costs to cover a cell, 0 where it is empty.

    No two names overlap; of a name's texts the longest is taken for which there is room.
    """
    rows, columns = occupied.shape
    made: dict[int, list[Written]] = {}
    places = []
    taken = np.zeros(occupied.shape, dtype=bool)
    for label in labels:
        column = math.floor((label.x - window.left) / (window.right - window.left) * columns)
        row = math.floor((window.top - label.y) / (window.top - window.bottom) * rows)
        if 0 <= row < rows and 0 <= column <= columns - len(label.name) and not taken[row, column]:
            made.setdefault(row, []).append(Written(column, label.name, ""))
            taken[row, column : column + len(label.name)] = True
            places.append((label, row, column))
    for label, row, column in places:
        for text in label.texts:
            spots = [spot for spot in _spots(label.name, text, row, column) if _is_free(spot, taken)]
            if spots:
                at, first, said = min(spots, key=lambda spot: _cost(spot, row, occupied))
                made.setdefault(at, []).append(Written(first, said, label.zone))
                taken[at, first : first + len(said)] = True
                break
    return made


_Spot = tuple[int, int, str]  # row, column, text


def _spots(name: str, text: str, row: int, column: int) -> Iterator[_Spot]:
    """Right and left of a letter; above and below it, with the letter before the words."""
    yield row, column + len(name) + 1, text
    yield row, column - 1 - len(text), text
    said = f"{name} {text}"
    for delta in range(1, _REACH + 1):
        for at in (row - delta, row + delta):
            for first in (column, column - len(said) // 2, column - len(said) + 1):
                yield at, first, said


def _is_free(spot: _Spot, taken: NDArray[np.bool_]) -> bool:
    """Whether a text is inside, with a cell between it and any other on its row."""
    row, first, text = spot
    end = first + len(text)
    if not (0 <= row < taken.shape[0] and first >= 0 and end <= taken.shape[1]):
        return False
    beside = taken[row, max(0, first - 1) : end + 1]
    return not beside.any()


def _cost(spot: _Spot, row: int, occupied: NDArray[np.float64]) -> float:
    at, first, text = spot
    return float(occupied[at, max(0, first - 1) : first + len(text) + 1].sum()) + 2.0 * abs(at - row)
