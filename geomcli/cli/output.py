"""Where text goes: stdout is data, stderr is narration. Colours of zones for both."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape

from geomcli.display import ZONE_GLYPHS, printable
from geomcli.errors import GeomError
from geomcli.zones import UNKNOWN

# The hues stay apart under red-green colour blindness.
_STYLES = {
    "syntax_floor": "blue",
    "semantic_bridge": "yellow",
    "long_range": "cyan",
    "structure_ripple": "magenta",
    "diffuse": "red",
    UNKNOWN: "default",
}
ZONE_STYLES = {zone: (glyph, _STYLES[zone]) for zone, glyph in ZONE_GLYPHS.items()}
_PIPE_WIDTH = 1000


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
