"""Pictures of the app (SVG) that a person has looked at: a test fails when the app draws something else.

`make snapshots` writes them anew. Those that the README and the documentation show are in docs/screenshots.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from textual.widgets import Input, TextArea

from geomcli.tui.app import GeomApp

WRITE = "GEOM_WRITE_SNAPSHOTS"
KEPT = Path(__file__).parent / "snapshots"
SHOWN = Path(__file__).parents[2] / "docs" / "screenshots"


def picture(app: GeomApp) -> str:
    """What is on screen as SVG, without anything to be fetched, with a cursor that does not blink."""
    for field in app.screen.query("Input, TextArea").results():
        if isinstance(field, Input | TextArea):
            field.cursor_blink = False
    svg = app.export_screenshot(title="geom tui")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    svg = svg.replace("font-family: Fira Code", "font-family: 'DejaVu Sans Mono', Menlo, Consolas")
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def words(svg: str) -> list[str]:
    """The lines of text of a picture, for the message of a test that fails."""
    rows: dict[float, list[str]] = {}
    for y, text in re.findall(r'<text [^>]*\by="([\d.]+)"[^>]*>(.*?)</text>', svg):
        rows.setdefault(float(y), []).append(text.replace("&#160;", " "))
    return ["".join(parts).rstrip() for _, parts in sorted(rows.items())]


def assert_same(app: GeomApp, name: str, *, shown: bool = False) -> None:
    """AssertionError when the app looks different from the picture `name`, or when there is none."""
    path = (SHOWN if shown else KEPT) / f"{name}.svg"
    drawn = picture(app)
    if os.environ.get(WRITE):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(drawn, encoding="utf-8")
        return
    assert path.exists(), f"there is no {path}; make snapshots, and look at it"
    before = path.read_text(encoding="utf-8")
    assert words(drawn) == words(before), f"{path}: other text"
    assert drawn == before, f"{path}: the same text in other colours or places; make snapshots, and look at it"
