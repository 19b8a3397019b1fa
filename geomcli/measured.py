"""Numbers of files and servers: what no measurement gives counts as not measured.

Sums and squares of what is left stay far from the ends of a float.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST = 1e30  # beyond this a value is damage, whatever its unit


def measured(values: Any) -> NDArray[np.float64]:
    """The values as floats of the same shape, nan where one is None, not finite or beyond LARGEST."""
    made = np.array(values, dtype=np.float64)
    made[~(np.abs(made) <= LARGEST)] = np.nan
    return made


def number(value: float | None) -> float | None:
    """The value, None where `measured` would give nan."""
    return value if value is not None and abs(value) <= LARGEST else None
