"""Numbers of a trace as typed columns in one compressed block, for a page that reads them with typed arrays.

A column is little-endian and starts at a multiple of 4 bytes. Types: `unit` (16 bits, a value of [0, 1] in steps of
1/65534, 65535 where there is none), `u8`, `u16`, `u32`, `f32` (nan where there is none).
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from geomcli.measured import measured

_UNITS = 65534
_NONE = 65535
_TYPES = {"unit": "<u2", "u8": "<u1", "u16": "<u2", "u32": "<u4", "f32": "<f4"}


class Columns:
    """Collects columns. `manifest`: name -> [type, first byte, how many values]."""

    def __init__(self) -> None:
        self.manifest: dict[str, tuple[str, int, int]] = {}
        self._blocks: list[bytes] = []
        self._size = 0

    def add(self, name: str, kind: str, values: Sequence[float | None] | Sequence[int]) -> None:
        """Add a column; values that its type cannot hold are cut off at its ends."""
        wanted = np.dtype(_TYPES[kind])
        numbers = measured(values)
        made: Any
        if kind == "f32":
            made = numbers.astype(wanted)
        elif kind == "unit":
            scaled = np.round(np.clip(np.nan_to_num(numbers), 0.0, 1.0) * _UNITS)
            made = np.where(np.isnan(numbers), _NONE, scaled).astype(wanted)
        else:
            made = np.clip(np.nan_to_num(numbers), 0, np.iinfo(wanted).max).astype(wanted)
        self.manifest[name] = (kind, self._size, len(values))
        block = made.tobytes()
        block += b"\0" * (-len(block) % 4)
        self._blocks.append(block)
        self._size += len(block)

    def packed(self) -> str:
        """All columns, zlib-compressed, in base64."""
        return base64.b64encode(zlib.compress(b"".join(self._blocks), 9)).decode("ascii")
