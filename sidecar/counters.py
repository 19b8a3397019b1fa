"""What happened, counted; written by one thread each, read by all."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field


@dataclass
class Counters:
    """received: messages that were taken; malformed: frames that were none; stored: rows in the store, without
    duplicates; dropped: messages that were given up because the store could not be written for too long.
    """

    received: int = 0
    malformed: int = 0
    oversized: int = 0
    stored: int = 0
    duplicates: int = 0
    dropped: int = 0
    write_errors: int = 0
    started: float = field(default_factory=time.time)

    def as_dict(self) -> dict[str, int]:
        return {name: value for name, value in asdict(self).items() if name != "started"}
