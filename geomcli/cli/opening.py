"""One trace as a command names it: a file of JSON lines, `-` for stdin, or a stored one by its id."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from geomcli.cli import output
from geomcli.errors import TraceError, UsageError

if TYPE_CHECKING:
    from geomcli.trace import Trace

TraceName = Annotated[
    str, typer.Argument(metavar="TRACE", help="A file of JSON lines, `-` for stdin, or a stored trace: id, `last`.")
]
Number = Annotated[int | None, typer.Option("--number", help="Which trace of a file with several, from 1.", min=1)]
Db = Annotated[Path | None, typer.Option("--db", help="Trace store; GEOM_DB.", dir_okay=False)]


def names_file(name: str) -> bool:
    """Whether a name means a file, there or not, and no stored trace. `-` is none."""
    path = Path(name)
    return path.is_file() or "/" in name or path.suffix in (".jsonl", ".json", ".zst")


def open_trace(name: str, db: Path | None, number: int | None = None) -> Trace:
    """The trace; TraceError or UsageError says why there is none. Lines that could not be read are named on stderr."""
    from geomcli import config, jsonl, trace_files
    from geomcli.store import Store
    from geomcli.trace import Trace

    if name == "-":
        with trace_files.opened(name) as stream:
            reading = jsonl.read(trace_files.lines(stream, "stdin"), "stdin")
    elif names_file(name):
        reading = jsonl.read_file(Path(name))
    else:
        if number is not None:
            raise UsageError("--number chooses among the traces of a file.", f"geom … {name}")
        with Store(config.store_path(db=None if db is None else str(db))) as store:
            return Trace(store.records(store.find(name)))
    for problem in reading.problems:
        output.narrator().print(output.marked(problem))
    count = len(reading.traces)
    if number is None and count > 1:
        raise TraceError(f"{name} holds {count} traces.", f"--number 1, or any up to {count}")
    if number is not None and number > count:
        raise UsageError(f"{name} holds {count} trace{'s' if count > 1 else ''}, not {number}.")
    return Trace(reading.traces[(number or 1) - 1])
