"""One trace as a command names it: a file of JSON lines, `-` for stdin, or a stored one by its id."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from geomcli.cli import output
from geomcli.errors import TraceError, UsageError

if TYPE_CHECKING:
    from geomcli.jsonl import Broken
    from geomcli.schema import Record
    from geomcli.trace import Trace

TraceName = Annotated[
    str, typer.Argument(metavar="TRACE", help="A file of JSON lines, `-` for stdin, or a stored trace: id, `last`.")
]
Number = Annotated[int | None, typer.Option("--number", help="Which trace of a file with several, from 1.", min=1)]
Db = Annotated[Path | None, typer.Option("--db", help="Trace store; GEOM_DB.", dir_okay=False)]

_SUFFIXES = (".jsonl", ".json", ".zst", ".npz", ".safetensors")
_OTHERS = "the path of a file that is there, or a stored trace: geom traces ls"


class Opened(NamedTuple):
    """A trace. `fault`: what of its input could not be read, without a full stop; empty where all of it was."""

    trace: Trace
    fault: str


def names_file(name: str) -> bool:
    """Whether a name means a file, there or not, and no stored trace. `-` is none."""
    path = Path(name)
    return path.is_file() or "/" in name or path.suffix in _SUFFIXES


def open_trace(
    name: str,
    db: Path | None,
    number: int | None = None,
    *,
    option: str = "--number",
    keep: Callable[[Record], Record] = lambda record: record,
) -> Opened:
    """The trace; TraceError or UsageError says why there is none. Lines that could not be read are named on stderr.

    number: which of a file with several, from 1, as the flag `option` says. keep: what is held of each record.
    """
    from geomcli import config
    from geomcli.store import Store
    from geomcli.trace import Trace

    if name == "-" or names_file(name):
        return _of_lines(name, number, option, keep)
    if number is not None:
        raise UsageError(f"{option} chooses among the traces of a file.", f"geom … {name}")
    with Store(config.store_path(db=None if db is None else str(db)), create=False) as store:
        return Opened(Trace(map(keep, store.records(store.find(name)))), "")


def _of_lines(name: str, number: int | None, option: str, keep: Callable[[Record], Record]) -> Opened:
    from geomcli import jsonl, trace_files
    from geomcli.record_order import RecordOrder
    from geomcli.trace import Trace

    shown = trace_files.shown(name)
    broken: list[Broken] = []
    trace, count, order = Trace(), 0, RecordOrder()
    try:
        with trace_files.opened(name) as stream, jsonl.uncollected():
            for found in jsonl.stream(trace_files.lines(stream, shown), shown):
                if isinstance(found, jsonl.Broken):
                    broken.append(found)
                    continue
                line, record = found
                if wrong := order.wrong_with(record):
                    raise TraceError(f"{shown}, line {line}: {wrong}{_suspect(broken)}.", jsonl.EXPORT)
                count += record["record_type"] == "header"
                if count == (number or 1):
                    trace.add(keep(record))
    except OSError as error:
        if error.errno == errno.EBADF:
            raise TraceError(f"{shown} is closed.", "a pipe into geom, or the path of a file") from None
        raise TraceError(f"{shown}: {error.strerror or error}.", _OTHERS) from None
    for sentence in _unread(broken, shown):
        output.narrator().print(output.marked(sentence))
    if number is None and count > 1:
        raise TraceError(f"{shown} holds {count} traces.", f"{option} 1, or any up to {count}")
    if number is not None and number > count:
        several = f", or any up to {count}" if count > 1 else ""
        raise UsageError(f"{shown} holds {count} trace{'s' if count > 1 else ''}, not {number}.",
                         f"{option} 1{several}")  # fmt: skip
    return Opened(trace, _fault(broken, shown))


def _suspect(broken: list[Broken]) -> str:
    return f"; line {broken[0].number} could not be read ({broken[0].reason})" if broken else ""


def _unread(broken: list[Broken], shown: str) -> list[str]:
    """A sentence for each line that could not be read; the end of a file that is still being written is no damage."""
    from geomcli import jsonl

    cut = broken[-1:] if broken and broken[-1].cut else []
    said = jsonl.problems(broken[: len(broken) - len(cut)], shown)
    return said + [f"{_cut_off(line, shown)}, or is still being written; what is in front of it is used."
                   for line in cut]  # fmt: skip


def _fault(broken: list[Broken], shown: str) -> str:
    if not broken:
        return ""
    if broken[0].cut:
        return _cut_off(broken[0], shown)
    return f"{shown}, line {broken[0].number} could not be read"


def _cut_off(line: Broken, shown: str) -> str:
    return f"{shown} ends in the middle of line {line.number}: it was cut off"
