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
    _seen[what] += 1
    count = _seen[what]
    if count <= _ALWAYS or count % _THEN_EVERY == 0:
        logger.exception("geom: %s (%s. time)", what, count)
