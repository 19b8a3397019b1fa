"""One bar for a value in [0, 1], with a tick where its threshold is."""

from __future__ import annotations

from rich.style import Style
from rich.text import Text

from geomcli.display import bar
from geomcli.tui.themes import Paint


def meter(
    label: str,
    value: float | None,
    threshold: float | None,
    paint: Paint,
    *,
    width: int,
    style: Style,
    label_width: int = 8,
) -> Text:
    """`label`, the value ("-" where there is none), a bar of what is left of `width`, a tick at the threshold."""
    text = Text(f"{label[:label_width]:<{label_width}}", paint.fore("muted"))
    text.append("   - " if value is None else f"{value:5.2f}"[-5:], paint.fore("foreground"))
    text.append(" ")
    room = max(4, width - label_width - 6 - (5 if threshold is not None else 0))
    line = bar(value or 0.0, width=room)
    if threshold is None:
        return text.append(line, style)
    tick = min(room - 1, int(threshold * room))
    over = value is not None and value >= threshold
    text.append(line[:tick], style)
    text.append("┃" if over else "┆", paint.fore("foreground", bold=over))
    text.append(line[tick + 1 :], style)
    return text.append(f" {threshold:.2f}"[:5], paint.fore("muted"))
