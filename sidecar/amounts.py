"""How much came of each model lately, also of those that nothing else is kept of."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection

HALF_LIFE = 600.0  # seconds
_MOST = 1000  # models


class Amounts:
    """Messages of each model, half as many after HALF_LIFE; of models beyond the most, the smallest are forgotten."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._of: dict[str, tuple[float, float]] = {}  # amount, and when that was so

    def __getitem__(self, model: str) -> float:
        amount, at = self._of.get(model, (0.0, 0.0))
        return amount * math.exp2((at - self._clock()) / HALF_LIFE)

    def add(self, model: str, messages: int) -> None:
        self._of[model] = self[model] + messages, self._clock()
        if len(self._of) > _MOST:
            others = [name for name in self._of if name != model]
            for name in sorted(others, key=self.__getitem__)[: len(self._of) - _MOST]:
                del self._of[name]

    def least(self, models: Collection[str]) -> str:
        """Of these models, the one of the smallest amount, the first of several."""
        return min(models, key=self.__getitem__)
