"""`geom traces export` and `import`: traces as files, and files as traces."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from geomcli import jsonl
from geomcli.cli import output
from geomcli.cli.trace_names import Db, given, store_at
from geomcli.display import printable
from geomcli.errors import UsageError
from geomcli.importers import Format
from geomcli.schema import Record
from geomcli.trace_import import Duplicates, import_traces

_MOST_NOTES = 20


def export(
    traces: Annotated[list[str], typer.Argument(help="Trace ids, starts of ids, `last`; `-` reads ids from stdin.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="File to write or replace; .zst is compressed.")
    ] = None,
    db: Db = None,
) -> None:
    """Write traces as JSON lines, one record a line.

    \b
    Examples:
      geom traces export last > trace.jsonl
      geom traces ls -q --since 7d | geom traces export - -o week.jsonl.zst
    """
    from geomcli.trace_files import replaced

    with store_at(db) as store:
        ids = given(store, traces)
        if not ids:
            raise UsageError("no trace was named: stdin is empty.", "geom traces ls -q | geom traces export -")
        if out is None or str(out) == "-":
            sys.stdout.flush()
            for trace_id in ids:
                for record in store.records(trace_id):
                    sys.stdout.buffer.write(jsonl.line(record).encode() + b"\n")
            sys.stdout.buffer.flush()
            return
        with replaced(out) as stream:
            for trace_id in ids:
                for record in store.records(trace_id):
                    stream.write(jsonl.line(record).encode() + b"\n")


def import_(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Traces; `-` for stdin.")],
    replace: Annotated[bool, typer.Option("--replace", help="A trace of the same id gives way.")] = False,
    as_new: Annotated[bool, typer.Option("--as-new", help="Give it another id than one that is taken.")] = False,
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Leave lines out that cannot be read.")] = False,
    kind: Annotated[Format, typer.Option("--format", help="auto looks into the file.")] = "auto",
    layers: Annotated[str | None, typer.Option(help="Of a dump of attention: 0,10,20; all if left out.")] = None,
    top_k: Annotated[int, typer.Option(help="Of a dump of attention: links a token.", min=1, max=64)] = 16,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Ids only, for a pipe.")] = False,
    db: Db = None,
) -> None:
    """Take traces from files into the store: all of them, or none when one cannot be read.

    Besides geom's own files: attention of Hugging Face models as npz or safetensors, and JSON lines of glassbox.

    \b
    Examples:
      geom traces import trace.jsonl week.jsonl.zst
      ssh gpu geom traces export last | geom traces import -
      geom traces import attention.safetensors --layers 11
    """
    if replace and as_new:
        raise UsageError("--replace and --as-new contradict each other.", "geom traces import --as-new FILE")
    gc.disable()  # millions of small objects, none of them in a circle
    broken: list[str] = []
    notes: list[str] = []
    with store_at(db, create=True) as store:
        duplicates: Duplicates = "replace" if replace else "as-new" if as_new else "refuse"
        chosen = _layers(layers)
        records = _records(files, kind, broken, notes, skip=skip_broken, layers=chosen, top_k=top_k)
        done = import_traces(store, records, duplicates)
    narrator = output.narrator()
    for problem in broken:
        narrator.print(output.marked(f"Left out: {problem}"))
    for note in notes[:_MOST_NOTES]:
        narrator.print(output.marked(note))
    if len(notes) > _MOST_NOTES:
        narrator.print(f"{len(notes) - _MOST_NOTES} more traces have no end.")
    for trace in done:
        print(printable(trace.trace_id))
        if quiet:
            continue
        said = {
            "added": "imported",
            "identical": "was there already, the same",
            "replaced": "replaced",
            "as-new": f"imported; {trace.original} is another trace and stays",
            "renamed": f"imported; no command would find it as {trace.original!r}",
        }[trace.status]
        narrator.print(output.marked(f"{trace.trace_id}: {said}"))


def _records(
    files: list[str],
    kind: Format,
    broken: list[str],
    notes: list[str],
    *,
    skip: bool,
    layers: list[int] | None,
    top_k: int,
) -> Iterator[Record]:
    from geomcli import trace_files
    from geomcli.importers import records_of

    for name in files:
        lines: list[jsonl.Broken] = []
        yield from records_of(name, lines, kind=kind, skip=skip, layers=layers, top_k=top_k, notes=notes)
        broken += jsonl.problems(lines, trace_files.shown(name))


def _layers(text: str | None) -> list[int] | None:
    if text is None or text == "all":
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--layers {text!r}: numbers are wanted, with commas between.", "--layers 0,10,20") from None
