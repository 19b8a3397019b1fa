"""Where text goes: stdout is data, stderr is narration. Colours of zones for both."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator
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


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # Rich would end the program with 1, whatever its result


def narrator() -> Console:
    return _Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def speaker() -> Console:
    console = _Console(highlight=False, soft_wrap=True, emoji=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH  # a pipe gets whole lines
    return console


def fail(error: GeomError) -> None:
    """One line: what is wrong, and the command that mends it."""
    console = narrator()
    try:
        console.print(f"[bold red]geom:[/] {marked(error.message)}")
        if error.mend:
            console.print(f"      [dim]try:[/] {marked(error.mend)}")
    except BrokenPipeError:
        drop_unread()  # the exit code says it, too


def marked(value: object) -> str:
    """A value of a server, a trace or this machine inside Rich markup: shown as it is, none of it acts."""
    return escape(printable(str(value)))


def write_data(text: str) -> None:
    """JSON on stdout: UTF-8, whatever the terminal's encoding is."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace"))
    sys.stdout.buffer.flush()


def print_json(value: Any) -> None:
    """`json_text` on stdout."""
    write_data(json_text(value))


def json_text(value: Any) -> str:
    """A value as JSON that every reader takes: null for numbers that are not finite."""
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    return text + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def unread() -> Iterator[None]:
    """Around what is printed in front of a result: readers that went away (`| grep -q`) take nothing from it."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        drop_unread()


def drop_unread() -> None:
    """What stdout and stderr hold for readers that went away goes nowhere, also in the interpreter's exit."""
    for stream in filter(None, (sys.__stdout__, sys.__stderr__)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
