"""Points in time as people type them: an age (`7d`, `12h`, `30m`), a day, or a day and a time (local)."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from geomcli.errors import UsageError

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_AGE = re.compile(r"(\d{1,6})([mhdw])")
_DAY = re.compile(r"\d{4}-?\d{2}-?\d{2}|\d{4}-?W\d{2}-?\d")


def milliseconds(text: str, *, now: datetime, end: bool = False) -> int:
    """Epoch ms of a moment; a day alone is its beginning, or with `end` its last millisecond. UsageError."""
    try:
        if age := _AGE.fullmatch(text.strip()):
            moment = now - timedelta(**{_UNITS[age[2]]: int(age[1])})
        else:
            moment = datetime.fromisoformat(text.strip())
            if end and _DAY.fullmatch(text.strip()):
                moment += timedelta(days=1, milliseconds=-1)
        return int(moment.timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"{text!r} is no time.", "7d, 12h, 30m, 2026-11-20 or 2026-11-20T18:30") from None
