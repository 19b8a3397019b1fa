"""Which importer a file is for: our own traces, dumps of attention, glassbox; by what it begins with."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from geomcli import attention_dumps, glassbox, jsonl, trace_files
from geomcli.errors import TraceError, UsageError
from geomcli.schema import Record
from geomcli.trace_import import checked

Format = Literal["auto", "geom", "hf", "glassbox"]


def records_of(
    name: str,
    broken: list[jsonl.Broken],
    *,
    kind: Format = "auto",
    skip: bool = False,
    layers: Sequence[int] | None = None,
    top_k: int = 16,
    notes: list[str] | None = None,
) -> Iterator[Record]:
    """The records of every trace in a file, or on stdin for `-`; errors and the other arguments as in `checked`.

    layers, top_k: of dumps of attention only. TraceError also where there is no such file; UsageError where layers are
    given for another file than a dump.
    """
    try:
        with trace_files.opened(name) as stream:
            begin = stream.peek(16)[:16]  # type: ignore[attr-defined]
            if kind == "hf" or (kind == "auto" and trace_files.is_arrays(begin)):
                if name == "-":
                    raise TraceError("a dump of attention is no stream.", "geom traces import FILE.npz")
                yield from attention_dumps.read_dump(Path(name), layers=layers, top_k=top_k)
                return
            shown = trace_files.shown(name)
            if layers is not None:
                raise UsageError(
                    f"{shown}: --layers chooses among the layers of a dump of attention, and this is none.",
                    "geom traces import FILE without --layers",
                )
            lines = trace_files.lines(stream, shown)
            first = next(lines, b"")
            lines = itertools.chain([first], lines) if first else lines
            if kind == "glassbox" or (kind == "auto" and glassbox.is_glassbox(first)):
                for trace in glassbox.read_glassbox(lines, Path(name)):
                    yield from trace
                return
            yield from checked(lines, shown, broken, skip=skip, notes=notes)
    except OSError as error:
        raise TraceError(f"{name}: {error.strerror or error}.", _mend(error, name)) from None


def _mend(error: OSError, name: str) -> str:
    if isinstance(error, IsADirectoryError):
        return f"geom traces import {shlex.quote(name)}/*"
    if isinstance(error, FileNotFoundError):
        return f"ls {shlex.quote(str(Path(name).parent))}"
    return f"ls -l {shlex.quote(name)}"
