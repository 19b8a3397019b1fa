"""Traces into the store: everything is checked first, then all of them get in, or none.

They are built in a store of their own beside the real one, so a file is read once, in constant memory, and the real
store is locked only while finished rows are copied.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import os
import shlex
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from geomcli import jsonl, trace_files
from geomcli.errors import StoreError, TraceError
from geomcli.record_order import RecordOrder
from geomcli.schema import Record
from geomcli.store import NO_IDS, Store, TraceWriter
from geomcli.store_connection import folder_locked
from geomcli.trace import new_trace_id

Duplicates = Literal["refuse", "replace", "as-new"]
Status = Literal["added", "identical", "replaced", "as-new", "renamed"]
_WORKPLACE, _STAGED, _LOCK = ".import-", "traces.db", "lock"
_SIGNED = b"geom traces import\n"  # what the lock holds, so that no other file is taken for one
_OWN_FILES = {_LOCK, *(f"{_STAGED}{suffix}" for suffix in ("", "-wal", "-shm", "-journal"))}
_COPIED = ("messages", "tokens", "segments", "trace_summaries")


class Imported(NamedTuple):
    """trace_id: the one in the store; original: the one in the file."""

    trace_id: str
    original: str
    status: Status


def checked(
    lines: Iterable[bytes | str],
    name: str,
    broken: list[jsonl.Broken],
    *,
    skip: bool = False,
    notes: list[str] | None = None,
) -> Iterator[Record]:
    """The records of JSON lines, whole traces only; TraceError names the first line that does not fit.

    `skip`: lines that are no records are left out and added to `broken` instead. A record that contradicts the others
    (a step without its token, a token twice or missing) is always refused. `notes` gets a sentence for each trace that
    has no end.
    """
    place = RecordOrder()
    begun = False
    found = jsonl.stream(lines, name)
    for line in found:
        if isinstance(line, jsonl.Broken):
            broken.append(line)
            if not begun:
                raise TraceError(f"{name} holds no trace: line {line.number}: {line.reason}.", "geom run --jsonl …")
            place.lose(line.number)
            if not skip:
                raise _refusal(line, name, place, found)
            continue
        begun = True
        number, record = line
        if record["record_type"] == "header":
            _note_end(place, name, notes)
        wrong = place.wrong_with(record)
        if wrong:
            raise _contradiction(number, wrong, name, place, broken)
        yield record
    _note_end(place, name, notes)


def _note_end(place: RecordOrder, name: str, notes: list[str] | None) -> None:
    if notes is not None and not place.ended:
        notes.append(f"{name}: trace {place.trace_id!r} has no end: it was cut off, or is still being written.")


def _refusal(
    line: jsonl.Broken, name: str, place: RecordOrder, rest: Iterator[tuple[int, Record] | jsonl.Broken]
) -> TraceError:
    """Why a line stops the import; the rest is read to know whether it could be left out."""
    if line.early:
        said = f"{line.reason}; nothing was imported."
    elif line.cut:
        said = f"{name} ends in the middle of line {line.number}: it was cut off; nothing was imported."
    else:
        said = f"{name}, line {line.number}: {line.reason}; nothing was imported."
    try:
        for found in rest:
            if isinstance(found, jsonl.Broken):
                place.lose(found.number)
            elif wrong := place.wrong_with(found[1]):
                said += f" It cannot be left out: in line {found[0]}, {wrong}."
                return TraceError(said, _front(name, line.number))
    except TraceError as error:
        return TraceError(f"{said} It cannot be left out: {error.message}", _front(name, line.number))
    return TraceError(said, f"geom traces import --skip-broken {'-' if name == 'stdin' else shlex.quote(name)}")


def _contradiction(
    number: int, wrong: str, name: str, place: RecordOrder, broken: Sequence[jsonl.Broken]
) -> TraceError:
    lost = f", as line {place.lost} was no record" if place.lost else ""
    end = place.lost or number
    more = "--skip-broken " if any(line.number < end for line in broken) else ""
    return TraceError(f"{name}, line {number}: {wrong}{lost}; nothing was imported.", _front(name, end, more))


def _front(name: str, number: int, options: str = "") -> str:
    """The command that imports what is in front of a line."""
    if name == "stdin":
        source = f"… | head -n {number - 1}"
    elif name.endswith(trace_files.ZSTD_SUFFIX):
        source = f"zstd -dc {shlex.quote(name)} | head -n {number - 1}"
    else:
        source = f"head -n {number - 1} {shlex.quote(name)}"
    return f"{source} | geom traces import {options}-"


def import_traces(store: Store, records: Iterable[Record], duplicates: Duplicates = "refuse") -> list[Imported]:
    """Write whole traces, in the order of their headers, in one transaction; what was done with each.

    A trace whose id is in the store already and holds the same is left alone. One that differs is an error, replaces
    it, or gets an id of its own, as `duplicates` says; an id that names something else to commands is an error, too,
    unless it may be another. TraceError, StoreError; either leaves the store as it was.
    """
    with _workplace(store.path.parent) as path:
        with Store(path) as staged:
            staged.unsafe()
            ids = _stage(staged, records)
            planned = [_planned(store, staged, trace_id, duplicates) for trace_id in ids]
            last = staged.rows("SELECT coalesce(max(id), 0) AS id FROM steps")[0]["id"]
        _copy(store, path, planned, last)
    return planned


@contextlib.contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """Where to make a store that goes when the import ends. What imports that were killed have left goes, too.

    The lock in it is held as long as its process lives, however that ends. A folder with other names in it than an
    import's own is somebody else's.
    """
    with folder_locked(folder):
        for left in folder.glob(f"{_WORKPLACE}*"):
            with contextlib.suppress(OSError):
                _sweep(left)
        made = Path(tempfile.mkdtemp(dir=folder, prefix=_WORKPLACE))
        lock = os.open(made / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(lock, _SIGNED)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield made / _STAGED
    finally:
        with folder_locked(folder), contextlib.suppress(OSError):
            _clear(made)
        os.close(lock)


def _sweep(left: Path) -> None:
    """Remove what a killed import left; OSError where it is a live one's, or not an import's at all."""
    if left.is_symlink() or not {path.name for path in left.iterdir()} <= _OWN_FILES:
        return
    lock = os.open(left / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.read(lock, len(_SIGNED) + 1) == _SIGNED:
            _clear(left)
    finally:
        os.close(lock)


def _clear(workplace: Path) -> None:
    # The lock goes last: without it nobody knows whose the rest is.
    for name in sorted(_OWN_FILES, key=_LOCK.__eq__):
        (workplace / name).unlink(missing_ok=True)
    workplace.rmdir()


def _stage(staged: Store, records: Iterable[Record]) -> list[str]:
    ids: list[str] = []
    writer: TraceWriter | None = None
    for record in records:
        if record["record_type"] == "header":
            if writer is not None:
                writer.flush()
            writer = staged.writer()
            if record["trace_id"] in ids:
                raise TraceError(
                    f"trace {record['trace_id']!r} comes twice; nothing was imported.",
                    "geom traces import for each file by itself; with --as-new if the second is another trace",
                )
            ids.append(record["trace_id"])
        if writer is None:
            raise TraceError("a trace begins with its header.")
        writer.write(record)
    if writer is not None:
        writer.flush()
    return ids


def _planned(store: Store, staged: Store, trace_id: str, duplicates: Duplicates) -> Imported:
    if trace_id in NO_IDS:
        if duplicates == "as-new":
            return Imported(new_trace_id(), trace_id, "renamed")
        raise TraceError(
            f"a trace has the id {trace_id!r}, by which no command would find it; nothing was imported.",
            "geom traces import --as-new FILE gives it an id of its own",
        )
    if not store.has(trace_id):
        return Imported(trace_id, trace_id, "added")
    if digest(store.records(trace_id)) == digest(staged.records(trace_id)):
        return Imported(trace_id, trace_id, "identical")
    if duplicates != "replace" and _content(store, trace_id) == _content(staged, trace_id):
        return Imported(trace_id, trace_id, "identical")
    if duplicates == "replace":
        return Imported(trace_id, trace_id, "replaced")
    if duplicates == "as-new":
        return Imported(new_trace_id(), trace_id, "as-new")
    raise TraceError(
        f"another trace {trace_id!r} is in the store already; nothing was imported.",
        "--replace to put this one in its place, or --as-new to keep both",
    )


def digest(records: Iterable[Record]) -> bytes:
    """SHA-256 of the lines of a trace: equal where their export is, byte by byte."""
    made = hashlib.sha256()
    for record in records:
        made.update(jsonl.line(record).encode())
    return made.digest()


def _content(store: Store, trace_id: str) -> bytes:
    """Digest without what an importer has from the name and the time of a file: a copy of it is the same trace."""
    records = store.records(trace_id)
    header = next(records)
    if "imported" in header:
        kind = header["imported"].get("format") if isinstance(header["imported"], dict) else header["imported"]
        header = {**header, "imported": kind, "created": 0}
    return digest(itertools.chain([header], records))


def _copy(store: Store, path: Path, planned: Sequence[Imported], last_step: int) -> None:
    wanted = [(i.original, i.trace_id) for i in planned if i.status != "identical"]
    if not wanted:
        return
    with store.attached(path, "staged") as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(
                "DELETE FROM main.traces WHERE id = ?", [(i.trace_id,) for i in planned if i.status == "replaced"]
            )
            found = connection.execute("SELECT coalesce(max(id), 0) FROM main.steps").fetchone()
            for original, trace_id in wanted:
                _copy_one(connection, original, trace_id, found[0])
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            connection.rollback()
            reason = f"the trace store could not be written: {error}; nothing was imported ({last_step} steps)."
            raise StoreError(reason, "geom traces ls") from None
        except BaseException:
            connection.rollback()
            raise


def _copy_one(connection: sqlite3.Connection, original: str, trace_id: str, offset: int) -> None:
    """Rows of one trace, under another id; `offset`: highest id of a step in the store, the new ones go behind it."""

    def copy(table: str, values: dict[str, str], where: str) -> None:
        columns = [row[1] for row in connection.execute(f"PRAGMA staged.table_info({table})")]
        columns = [column for column in columns if (table, column) not in _OWN_IDS]
        taken = ", ".join(values.get(column, f'"{column}"') for column in columns)
        names = ", ".join(f'"{column}"' for column in columns)
        connection.execute(
            f"INSERT INTO main.{table} ({names}) SELECT {taken} FROM staged.{table} WHERE {where} ORDER BY rowid",
            {"original": original, "trace_id": trace_id, "offset": offset},
        )

    copy("traces", {"id": ":trace_id"}, "id = :original")
    for table in _COPIED:
        copy(table, {"trace_id": ":trace_id"}, "trace_id = :original")
    copy("steps", {"id": "id + :offset", "trace_id": ":trace_id"}, "trace_id = :original")
    copy(
        "links",
        {"step_id": "step_id + :offset"},
        "step_id IN (SELECT id FROM staged.steps WHERE trace_id = :original)",
    )


# Numbers that the store gives out itself.
_OWN_IDS = {("messages", "id"), ("tokens", "id"), ("segments", "id")}
