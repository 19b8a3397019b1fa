"""Traces into the store: everything is checked first, then all of them get in, or none.

They are built in a store of their own beside the real one, so a file is read once, in constant memory, and the real
store is locked only while finished rows are copied.
"""

from __future__ import annotations

import hashlib
import itertools
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from geomcli import jsonl
from geomcli.errors import StoreError, TraceError
from geomcli.schema import Record
from geomcli.store import NO_LAYER, Store, TraceWriter
from geomcli.trace import new_trace_id

Duplicates = Literal["refuse", "replace", "as-new"]
Status = Literal["added", "identical", "replaced", "as-new"]
_COPIED = ("messages", "tokens", "segments", "trace_summaries")


class Imported(NamedTuple):
    """trace_id: the one in the store; original: the one in the file."""

    trace_id: str
    original: str
    status: Status


def checked(
    lines: Iterable[bytes | str], name: str, broken: list[jsonl.Broken], *, skip: bool = False
) -> Iterator[Record]:
    """The records of JSON lines, whole traces only; TraceError names the first line that does not fit.

    `skip`: lines that are no records are left out and added to `broken` instead. A record that contradicts the others
    (a step without its token, a token twice or missing) is always refused.
    """
    state = _Place()
    begun = False
    for found in jsonl.stream(lines, name):
        if isinstance(found, jsonl.Broken):
            broken.append(found)
            if not begun:
                raise TraceError(f"{name} holds no trace: line {found.number}: {found.reason}.", "geom run --jsonl …")
            if not skip:
                raise TraceError(_refusal(found, name), f"geom traces import --skip-broken {name}")
            continue
        begun = True
        number, record = found
        wrong = state.wrong_with(record)
        if wrong:
            raise TraceError(f"{name}, line {number}: {wrong}; nothing was imported.")
        yield record


class _Place:
    """Where in a trace the reading is; a few numbers, however long the trace."""

    _tokens = 0
    _step = -1  # token of the last step
    _ended = False

    def __init__(self) -> None:
        self._layers: set[int] = set()  # of the steps of that token

    def wrong_with(self, record: Record) -> str:
        """What contradicts the records before, or an empty string."""
        kind = record["record_type"]
        if kind == "header":
            self._tokens, self._step, self._layers, self._ended = 0, -1, set(), False
        elif kind == "token":
            if record["index"] != self._tokens:
                there = "is there twice" if record["index"] < self._tokens else f"comes where {self._tokens} should"
                return f"token {record['index']} {there}"
            self._tokens += 1
        elif kind == "step":
            layer = record.get("layer_id")
            return self._wrong_with_step(record["tokenIndex"], NO_LAYER if layer is None else layer)
        elif kind == "metrics":
            if self._ended:
                return "a second `metrics` of one trace"
            self._ended = True
        return ""

    def _wrong_with_step(self, token: int, layer: int) -> str:
        if token >= self._tokens:
            return f"a step of token {token}, which is not in front of it"
        if token < self._step:
            return f"a step of token {token} behind one of token {self._step}"
        if token > self._step:
            self._step, self._layers = token, set()
        if layer in self._layers:
            return f"a second step of token {token} for the same layer"
        self._layers.add(layer)
        return ""


def _refusal(line: jsonl.Broken, name: str) -> str:
    if line.cut:
        return f"{name} ends in the middle of line {line.number}: it was cut off; nothing was imported."
    return f"{name}, line {line.number}: {line.reason}; nothing was imported."


def import_traces(store: Store, records: Iterable[Record], duplicates: Duplicates = "refuse") -> list[Imported]:
    """Write whole traces, in the order of their headers, in one transaction; what was done with each.

    A trace whose id is in the store already and holds the same is left alone. One that differs is an error, replaces
    it, or gets an id of its own, as `duplicates` says. TraceError, StoreError; either leaves the store as it was.
    """
    with tempfile.TemporaryDirectory(dir=store.path.parent, prefix=".import-") as folder:
        path = Path(folder) / "traces.db"
        with Store(path) as staged:
            staged.unsafe()
            ids = _stage(staged, records)
            planned = [_planned(store, staged, trace_id, duplicates) for trace_id in ids]
            last = staged.rows("SELECT coalesce(max(id), 0) AS id FROM steps")[0]["id"]
        _copy(store, path, planned, last)
    return planned


def _stage(staged: Store, records: Iterable[Record]) -> list[str]:
    ids: list[str] = []
    writer: TraceWriter | None = None
    for record in records:
        if record["record_type"] == "header":
            if writer is not None:
                writer.flush()
            writer = staged.writer()
            if record["trace_id"] in ids:
                raise TraceError(f"trace {record['trace_id']!r} comes twice; nothing was imported.")
            ids.append(record["trace_id"])
        if writer is None:
            raise TraceError("a trace begins with its header.")
        writer.write(record)
    if writer is not None:
        writer.flush()
    return ids


def _planned(store: Store, staged: Store, trace_id: str, duplicates: Duplicates) -> Imported:
    if not store.rows("SELECT 1 FROM traces WHERE id = ?", (trace_id,)):
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
