"""The 16 log-distance bins of a token or a mean, one histogram or two over each other."""

from __future__ import annotations

from collections.abc import Sequence

from rich.style import Style
from rich.text import Text

from geomcli.display import BARS
from geomcli.fingerprint import LOCAL_BINS, LONG_BINS, MID_BINS, N_BINS
from geomcli.tui.themes import Paint

# First distance of some bins, as the axis names them.
_TICKS = {0: "0", 3: "8", 8: "256", 12: "4k", 15: "32k+"}
_BANDS = ((LOCAL_BINS, "zone-syntax-floor"), (MID_BINS, "zone-semantic-bridge"), (LONG_BINS, "zone-long-range"))


def histogram(
    values: Sequence[float], paint: Paint, *, width: int, height: int = 3, other: Sequence[float] | None = None
) -> list[Text]:
    """`height` rows of bars and one of distances for masses [16] (sum 1 or 0), bands in the zones' colours.

    `other`: a second histogram [16] drawn as a mark at its height, for comparison. The highest bar fills all rows.
    """
    column = max(1, width // N_BINS)
    top = max(*values, *(other or ()), 1e-9)
    steps = height * (len(BARS))
    filled = [0 if v <= 0 else max(1, round(v / top * steps)) for v in values]
    marks = [0 if v <= 0 else max(1, round(v / top * steps)) for v in other] if other is not None else None
    rows = []
    for row in range(height - 1, -1, -1):
        text = Text()
        for n in range(N_BINS):
            level = min(len(BARS), max(0, filled[n] - row * len(BARS)))
            glyph, style = BARS[level - 1] if level else " ", _band_style(n, paint)
            if marks is not None and row * len(BARS) < marks[n] <= (row + 1) * len(BARS):
                glyph, style = ("━" if level < len(BARS) else "▓"), paint.fore("foreground", bold=True)
            text.append(glyph * max(1, column - (column > 1)) + " " * (column > 1), style)
        rows.append(text)
    return [*rows, _axis(column, paint)]


def _band_style(number: int, paint: Paint) -> Style:
    for bins, name in _BANDS:
        if bins.start <= number < bins.stop:
            return paint.fore(name)
    return Style()


def _axis(column: int, paint: Paint) -> Text:
    line = ""
    for number, name in _TICKS.items():
        at = number * column
        if at >= len(line) + bool(line):
            line = line.ljust(at) + name
    return Text(line[: column * N_BINS + 3], paint.fore("muted"))
