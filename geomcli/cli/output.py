"""Where text goes: stdout is data, stderr is narration. Zone glyphs and colours for both."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape

from geomcli.errors import GeomError
from geomcli.zones import UNKNOWN

# Zone -> glyph, Rich style. Never colour alone; the hues stay apart under red-green colour blindness.
ZONE_STYLES = {
    "syntax_floor": ("▂", "blue"),
    "semantic_bridge": ("◆", "yellow"),
    "long_range": ("⟷", "cyan"),
    "structure_ripple": ("≋", "magenta"),
    "diffuse": ("░", "red"),
    UNKNOWN: ("·", "default"),
}
_SPARKS = "▁▂▃▄▅▆▇█"
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_PIPE_WIDTH = 1000
# C0 and DEL have pictures of their own; C1, which an 8-bit terminal takes for escapes, has none.
_SYMBOLS = {c: 0x2400 + c for c in range(0x20) if chr(c) not in "\n\t"}
_SYMBOLS |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def narrator() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def speaker() -> Console:
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH  # a pipe gets whole lines
    return console


def fail(error: GeomError) -> None:
    """One line: what is wrong, and the command that mends it."""
    console = narrator()
    console.print(f"[bold red]geom:[/] {marked(error.message)}")
    if error.mend:
        console.print(f"      [dim]try:[/] {marked(error.mend)}")


def printable(text: str) -> str:
    """Text of a model for a terminal: control characters as visible symbols, so that none of them acts."""
    return text.translate(_SYMBOLS)


def marked(value: object) -> str:
    """A value of a server, a trace or this machine inside Rich markup: shown as it is, none of it acts."""
    return escape(printable(str(value)))


def write_data(text: str) -> None:
    """JSON on stdout: UTF-8, whatever the terminal's encoding is."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace"))
    sys.stdout.buffer.flush()


def print_json(value: Any) -> None:
    write_data(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sparkline(values: list[float | None], *, top: float = 1.0, width: int = 60) -> str:
    """One row of bars for values in [0, top]; blanks where there is none. Longer series are thinned by their maxima."""
    if len(values) > width:
        groups = [values[i * len(values) // width : (i + 1) * len(values) // width] for i in range(width)]
        values = [max((v for v in group if v is not None), default=None) for group in groups]
    steps = len(_SPARKS) - 1
    return "".join(" " if v is None else _SPARKS[min(steps, max(0, round(v / top * steps)))] for v in values)


def bar(value: float, *, top: float = 1.0, width: int = 12) -> str:
    """A bar of `width` cells for a value in [0, top], in eighths of a cell."""
    eighths = round(min(1.0, max(0.0, value / top)) * width * 8) if top > 0 else 0
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width)


def human_bytes(count: int) -> str:
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:.1f} kB" if count < 1_000_000 else f"{count / 1e6:.1f} MB"
