"""Reports a hook body that raised: counted always, logged with its traceback only now and then.

A fault in the capture path repeats with every token; a log line for each would be a fault of its own.
"""

from __future__ import annotations

import logging
from collections import Counter

logger = logging.getLogger("geom")

_ALWAYS = 10
_THEN_EVERY = 1000
_seen: Counter[str] = Counter()


def report(what: str) -> None:
    """Log the exception being handled; `what` says which step failed."""
    if (count := _count(what)) is not None:
        logger.exception("geom: %s (%s. time)", what, count)


def note(what: str) -> None:
    """The same for a fault that is no exception."""
    if (count := _count(what)) is not None:
        logger.error("geom: %s (%s. time)", what, count)


def total() -> int:
    """Faults of this process so far, logged or not."""
    return sum(_seen.values())


def _count(what: str) -> int | None:
    """How often this was seen, None when it need not be said again."""
    _seen[what] += 1
    count = _seen[what]
    return count if count <= _ALWAYS or count % _THEN_EVERY == 0 else None
