"""Traces as JSON lines, header first: what `geom run --jsonl` and `geom traces export` write, and what is read again.

Fields that the reader does not know survive. `read` is tolerant: a line that is broken is named and left out. `load` is
strict, for what shows tokens by their number: the first line that does not fit is an error.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from geomcli import trace_files
from geomcli.errors import TraceError
from geomcli.records import KINDS, AnyRecord
from geomcli.schema import TRACE_VERSION, Record

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(dict[str, Any])

_MOST_PROBLEMS = 20
_BLOCK_LINES, _BLOCK_BYTES = 256, 1 << 20
EXPORT = "geom traces export last > trace.jsonl"


_AnyRecords = list[AnyRecord]


def line(record: Record) -> str:
    """One record as one line, without the line break."""
    return _encoder.encode(record).decode()


def dump(records: Iterable[Record]) -> str:
    """All records, each line ended."""
    return "".join(line(record) + "\n" for record in records)


class Broken(NamedTuple):
    """A line that is no record of a trace; `cut` where the input ends in the middle of it.

    `early`: there is no such line, the compressed file ends in front of it and of its own end.
    """

    number: int
    reason: str
    cut: bool
    early: bool = False


def stream(lines: Iterable[bytes | str], name: str = "the input") -> Iterator[tuple[int, Record] | Broken]:
    """(line number, record) of JSON lines as they come, or what is wrong with the line; blank lines are passed over.

    TraceError, naming `name`, for a newer format, a record in front of the first header, or no trace at all.
    """
    begun = False
    first = ""
    for number, (text, record) in enumerate(_decoded(_until_cut(lines)), 1):
        if isinstance(text, trace_files.EndsEarly):
            if not begun:
                raise text
            yield Broken(number, text.message.removesuffix("."), cut=True, early=True)
            continue
        if record is None:
            continue
        if isinstance(record, Exception):
            first = first or f": {name}, line {number}: {record}."
            # Only the last line of an input can be without its break.
            yield Broken(number, str(record), text[-1:] not in ("\n", b"\n"))
            continue
        if record["record_type"] == "header":
            _check_version(record["version"], name)
            begun = True
        elif not begun:
            raise TraceError(f"{name}, line {number}: a trace begins with its header.", EXPORT)
        yield number, record
    if not begun:
        raise TraceError(f"{name} holds no trace{first or '.'}", "geom run --jsonl …")


class Reading(NamedTuple):
    """The traces of a file, each the list of its records, and one sentence for each line that could not be read."""

    traces: list[list[Record]]
    problems: list[str]


def read(lines: Iterable[str | bytes], name: str = "the input") -> Reading:
    """Read JSON lines; a header starts a trace. TraceError as in `stream`.

    At most 20 broken lines are named, the last sentence counts the others.
    """
    traces: list[list[Record]] = []
    broken: list[Broken] = []
    for found in stream(lines, name):
        if isinstance(found, Broken):
            broken.append(found)
            continue
        _, record = found
        if record["record_type"] == "header":
            traces.append([])
        traces[-1].append(record)
    return Reading(traces, problems(broken, name))


def problems(broken: Sequence[Broken], name: str) -> list[str]:
    """A sentence for each broken line, at most 20, and one that counts the others."""
    said = [f"{name}, line {line.number}: {line.reason}." for line in broken[:_MOST_PROBLEMS]]
    if len(broken) > _MOST_PROBLEMS:
        said.append(f"{name}: {len(broken) - _MOST_PROBLEMS} more lines could not be read.")
    return said


def read_file(path: Path) -> Reading:
    """`read` of a file, which may be compressed with Zstandard; OSError when it cannot be opened."""
    with trace_files.opened(str(path)) as opened, uncollected():
        return read(trace_files.lines(opened, str(path)), str(path))


def load(path: Path) -> list[list[Record]]:
    """The records of every trace of a file, each with all its tokens; TraceError as in `records`."""
    traces: list[list[Record]] = []
    with uncollected():
        for record in records(path):
            if record["record_type"] == "header":
                traces.append([])
            traces[-1].append(record)
    return traces


def records(path: Path) -> Iterator[Record]:
    """The records of a file one after the other; TraceError names the line that does not fit, or the missing token.

    The file may be compressed with Zstandard. A last line without a line break was being written when its writer ended:
    it may be broken, the rest is kept.
    """
    begun, tokens = False, 0
    try:
        with trace_files.opened(str(path)) as opened:
            for found in stream(trace_files.lines(opened, str(path)), str(path)):
                if isinstance(found, Broken):
                    if found.cut and begun:
                        break
                    reason = f"{path}, line {found.number}: not a record of a trace ({found.reason})."
                    raise TraceError(reason, EXPORT)
                number, record = found
                if record["record_type"] == "header":
                    begun, tokens = True, 0
                elif record["record_type"] == "token":
                    if record["index"] != tokens:
                        raise TraceError(f"{path}, line {number}: token {tokens} is missing.", EXPORT)
                    tokens += 1
                yield record
    except OSError as error:
        raise TraceError(f"{path}: {(error.strerror or str(error)).lower()}.", "geom traces ls") from None


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection meanwhile: looking for circles among millions of new records takes half of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _until_cut(lines: Iterable[bytes | str]) -> Iterator[bytes | str | trace_files.EndsEarly]:
    """The lines, and that they end early as the last of them."""
    try:
        yield from lines
    except trace_files.EndsEarly as early:
        yield early


_Text = bytes | str | trace_files.EndsEarly


def _decoded(lines: Iterable[_Text]) -> Iterator[tuple[_Text, Record | Exception | None]]:
    """Each line with its record, with what is wrong with it, or with None where it is blank or none.

    Lines are decoded and checked many at a time, which takes two thirds of the time that they take one by one.
    """
    block: list[bytes | str] = []
    size = 0
    for text in lines:
        if isinstance(text, trace_files.EndsEarly):
            yield from zip(block, _block(block), strict=True)
            block, size = [], 0
            yield text, None
            continue
        block.append(text)
        size += len(text)
        if len(block) == _BLOCK_LINES or size > _BLOCK_BYTES:
            yield from zip(block, _block(block), strict=True)
            block, size = [], 0
    yield from zip(block, _block(block), strict=True)


def _block(block: Sequence[bytes | str]) -> Sequence[Record | Exception | None]:
    try:
        joined = b"".join(text if isinstance(text, bytes) else text.encode() for text in block)
        records: list[Record] = _decoder.decode_lines(joined)
        if len(records) == len(block):
            msgspec.convert(records, _AnyRecords)
            return records
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        pass  # one of them is broken, and which it is shows one by one
    return [_attempt(text) for text in block]


def _attempt(text: bytes | str) -> Record | Exception | None:
    try:
        return _record(text) if text.strip() else None
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        return error


def _record(text: str | bytes) -> Record:
    record = _decoder.decode(text)
    kind = record.get("record_type")
    known = KINDS.get(kind) if isinstance(kind, str) else None
    if known is None:
        none = "it has no `record_type`" if kind is None else f"no kind of record is called {kind!r}"
        raise msgspec.ValidationError(none)
    msgspec.convert(record, known)
    return record


def _check_version(version: str, name: str) -> None:
    major, ours = version.partition(".")[0], TRACE_VERSION.partition(".")[0]
    if major != ours:
        raise TraceError(
            f"{name} has trace format {version}; this geom reads {ours}.x.", "pip install --upgrade geomcli"
        )
