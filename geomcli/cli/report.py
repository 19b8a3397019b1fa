"""`geom report`: a trace as one HTML page."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from geomcli.cli import opening, output
from geomcli.cli.spans import By, Given, sources_of
from geomcli.errors import UsageError


def report(
    trace: opening.TraceName = "last",
    out: Annotated[
        str | None, typer.Option("-o", "--out", help="File to write, `-` for stdout; geom-ID.html if left out.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    by: By = "documents",
    source: Given = None,
    number: opening.Number = None,
    db: opening.Db = None,
) -> None:
    """Write a trace as one HTML page that needs no server and no network.

    \b
    Examples:
      geom report last --open
      geom report trace.jsonl -o trace.html
      geom run 'Why is the sky blue?' --jsonl | geom report - -o - > sky.html
    """
    from geomcli.display import human_bytes
    from geomcli.report import render

    if out == "-" and show:
        raise UsageError("a page on stdout cannot be opened.", "geom report last --open")
    opened = opening.open_trace(trace, db, number).trace
    page = render(opened, sources_of(opened, by, source))
    if out == "-":
        output.write_data(page)
        return
    path = Path(out) if out else Path(_file_name(str(opened.header.get("trace_id", ""))))
    try:
        with path.open("w" if force else "x", encoding="utf-8", newline="\n") as stream:
            stream.write(page)
    except FileExistsError:
        raise UsageError(f"{path} is there already.", "geom report … --force, or -o OTHER.html") from None
    output.narrator().print(f"{output.marked(path)}  [dim]{human_bytes(len(page.encode()))}[/]")
    if show:
        _open(path)


def _file_name(trace_id: str) -> str:
    """A name without anything that a file's name should not have; ids of files come from whoever made them."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", trace_id).strip(".-")[:80]
    return f"geom-{safe or 'report'}.html"


def _open(path: Path) -> None:
    import webbrowser

    # Textual browsers would take over the terminal; without a display there is nothing else.
    if not (sys.platform == "darwin" or _display()) or not webbrowser.open(path.resolve().as_uri()):
        output.narrator().print("No browser was found here: open the file from another machine or program.")


def _display() -> bool:
    import os

    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or os.environ.get("BROWSER"))
