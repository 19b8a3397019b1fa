"""Traces in SQLite: one writer that commits at least once a second, readers that see whatever is committed.

WAL and a busy timeout on every connection. A trace that was cut off (kill -9, a crash) stays with `complete = 0` and
every batch that had been committed; a power cut may take the last commits with it, but leaves a sound file.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import zstandard

from geomcli.errors import StoreChanged, StoreError
from geomcli.fingerprint import FINGERPRINT_SIZE, pack, unpack
from geomcli.migrations import INSERT_SUMMARY
from geomcli.schema import Record
from geomcli.store_connection import Stamp, connect
from geomcli.trace_summary import TraceSummary

COMMIT_SECONDS = 0.5
CHECK_SECONDS = COMMIT_SECONDS / 2  # how often to call `flush_if_due`: a record then waits for 0.75 s
COMMIT_RECORDS = 256
_json = msgspec.json.Encoder()

# step field -> column; the rest of a step goes to `extra`, its links to their own table.
_STEP_COLUMNS = {
    "layer_id": "layer",
    "decode_step": "decode_step",
    "zone": "zone",
    "zone_confidence": "confidence",
    "entropy_bits": "entropy_bits",
    "sink_mass": "sink_mass",
    "drift": "drift",
    "compass": "compass",
    "think_phase": "think_phase",
}
NEWEST = "last"
# What commands take for something else than the id of a trace: nothing, the newest, stdin.
NO_IDS = ("", NEWEST, "-")
_NO_LAYER = -1  # in the column of a step that names none
_SIX_DIGITS = "%.6g " * FINGERPRINT_SIZE


class Store:
    """An open store. `with Store(path) as store:`; StoreError with one sentence when it cannot be used.

    `create`: make one where there is none. For readers a store that is not there is an empty one, and one that may not
    be written is read all the same. A database of something else, or of a newer geom, is refused and not touched.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self.path = path
        self._connection, self._immutable = connect(path, create=create)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def wait_at_most(self, milliseconds: int) -> None:
        """How long a write waits for another process that writes, from now on."""
        self._connection.execute(f"PRAGMA busy_timeout = {milliseconds}")

    def has(self, trace_id: str) -> bool:
        """Whether there is a trace of exactly this id."""
        return bool(self.rows("SELECT 1 FROM traces WHERE id = ?", (trace_id,)))

    def writer(self) -> TraceWriter:
        return TraceWriter(self._connection)

    def add(self, records: Iterable[Record]) -> str:
        """Write a whole trace in one transaction; returns its id."""
        writer = self.writer()
        writer._buffer.extend(records)
        writer.flush()
        return writer.trace_id

    def find(self, prefix: str) -> str:
        """Id of the trace that is called `prefix`, else of the one whose id starts with it; `last` is the newest.

        StoreError when there is none, or more than one.
        """
        if not prefix:
            raise StoreError("an empty text names no trace.", "geom traces ls")
        if prefix == NEWEST:
            rows = self.rows("SELECT id FROM traces ORDER BY created DESC, id DESC LIMIT 1")
        else:
            rows = self.rows("SELECT id FROM traces WHERE id = ?", (prefix,)) or self.rows(
                "SELECT id FROM traces WHERE substr(id, 1, ?) = ? LIMIT 2", (len(prefix), prefix)
            )
        if not rows:
            mend = "geom run 'Why is the sky blue?', or geom traces import" if prefix == NEWEST else "geom traces ls"
            raise StoreError(f"no trace {prefix!r} in {self.path}.", mend)
        if len(rows) > 1:
            raise StoreError(f"several traces start with {prefix!r}.", "geom traces ls")
        found: str = rows[0]["id"]
        return found

    def records(self, trace_id: str) -> Iterator[Record]:
        """The records of a trace as they were written, in the order of the trace format."""
        header = self.rows("SELECT * FROM traces WHERE id = ?", (trace_id,))[0]
        yield _merge(
            {
                "record_type": "header",
                "version": header["version"],
                "trace_id": header["id"],
                "model": header["model"],
                "created": header["created"],
                "ruleset": header["ruleset"],
                "capture": msgspec.json.decode(header["capture"]),
            },
            header["extra"],
        )
        messages = [
            _merge({"record_type": "message", "id": m["name"], "role": m["role"], "content": m["content"]}, m["extra"])
            for m in self.rows("SELECT * FROM messages WHERE trace_id = ? ORDER BY position", (trace_id,))
        ]
        answered = bool(messages) and messages[-1]["role"] == "assistant" and bool(header["metrics"])
        yield from messages[:-1] if answered else messages
        yield from self._tokens_and_steps(trace_id)
        if answered:
            yield messages[-1]
        for s in self.rows("SELECT * FROM segments WHERE trace_id = ? ORDER BY position", (trace_id,)):
            segment = {"record_type": "segment", "id": s["name"], "type": s["type"], "start": s["start"]}
            yield _merge({**segment, "end": s["end"]}, s["extra"])
        if header["metrics"]:
            yield {"record_type": "metrics", **msgspec.json.decode(header["metrics"])}

    def _tokens_and_steps(self, trace_id: str) -> Iterator[Record]:
        """Two readings side by side: a long trace is never in memory as a whole."""
        steps = self._each(
            "SELECT steps.*, links.payload FROM steps LEFT JOIN links ON links.step_id = steps.id "
            "WHERE trace_id = ? ORDER BY output_index, steps.id",
            (trace_id,),
        )
        step = next(steps, None)
        for t in self._each("SELECT * FROM tokens WHERE trace_id = ? ORDER BY output_index", (trace_id,)):
            token = {"record_type": "token", "index": t["output_index"], "text": t["text"]}
            yield _merge({**token, "segmentId": t["segment"], "tokenId": t["token_id"]}, t["extra"])
            while step is not None and step["output_index"] <= t["output_index"]:
                if step["output_index"] == t["output_index"]:
                    yield _step_of(step)
                step = next(steps, None)

    def remove(self, trace_ids: Sequence[str]) -> int:
        """Take traces out with all that belongs to them, all or none; how many there were."""
        removed = 0
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for trace_id in trace_ids:
                removed += self._connection.execute("DELETE FROM traces WHERE id = ?", (trace_id,)).rowcount
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._connection.rollback()
            raise StoreError(f"the trace store {self.path} could not be written: {error}.", "geom traces ls") from None
        return removed

    def insert(self, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Rows by table, each with the same columns as the others of its table; all or none."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for table, values in rows.items():
                if values:
                    columns = list(values[0])
                    marks = ", ".join("?" * len(columns))
                    self._connection.executemany(
                        f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})",
                        [tuple(row[name] for name in columns) for row in values],
                    )
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._connection.rollback()
            raise StoreError(f"the trace store could not be written: {error}.", "geom traces ls") from None

    def unsafe(self) -> None:
        """For a store that is thrown away: nothing waits for the disk."""
        self._connection.execute("PRAGMA synchronous = OFF")

    @contextlib.contextmanager
    def attached(self, path: Path, name: str) -> Iterator[sqlite3.Connection]:
        """The connection, with another store's tables under `name`."""
        self._connection.execute(f"ATTACH ? AS {name}", (str(path),))
        try:
            yield self._connection
        finally:
            self._connection.execute(f"DETACH {name}")

    def _each(self, sql: str, parameters: tuple[Any, ...] | dict[str, Any]) -> Iterator[dict[str, Any]]:
        try:
            cursor = self._connection.execute(sql, parameters)
            names = [column[0] for column in cursor.description]
            for row in cursor:
                yield dict(zip(names, row, strict=True))
            changed = self._immutable is not None and self._immutable != Stamp.of(self.path)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"the trace store {self.path} cannot be read: {error}.") from None
        if changed:
            raise StoreChanged(f"the trace store {self.path} was written while it was read.", "the same command again")

    def rows(self, sql: str, parameters: tuple[Any, ...] | dict[str, Any] = ()) -> list[dict[str, Any]]:
        """What a SELECT finds, by column name; StoreError when it cannot be read."""
        return list(self._each(sql, parameters))


class TraceWriter:
    """Writes one trace's records as they come, in short transactions; nothing waits for longer than a second."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._buffer: list[Record] = []
        self._flushed = time.monotonic()
        self._positions = {"message": 0, "segment": 0}
        self._summary = TraceSummary()
        self._compressor = zstandard.ZstdCompressor()
        self.trace_id = ""

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def write(self, record: Record) -> None:
        """Take one record, the header first; StoreError when the store cannot take it now: a later flush has it."""
        self.take(record)
        if record["record_type"] in ("header", "metrics") or len(self._buffer) >= COMMIT_RECORDS:
            self.flush()
        else:
            self.flush_if_due()

    def take(self, record: Record) -> None:
        """Take one record without committing anything."""
        self._buffer.append(record)

    def flush_if_due(self) -> None:
        """Commit when the last commit is old enough; call it every CHECK_SECONDS in quiet moments of a stream."""
        if self._buffer and time.monotonic() - self._flushed >= COMMIT_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Commit everything taken so far in one transaction."""
        if not self._buffer:
            return
        summary = self._summary.plus(self._buffer)
        self._execute("BEGIN IMMEDIATE", ())
        try:
            for record in self._buffer:
                getattr(self, f"_{record['record_type']}")(dict(record))
            if summary is not self._summary:
                self._execute(INSERT_SUMMARY, (self.trace_id, *summary.row()))
            self._execute("COMMIT", ())
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._connection.rollback()
            raise
        self._summary = summary
        self._buffer.clear()
        self._flushed = time.monotonic()

    def _header(self, r: Record) -> None:
        self.trace_id = r.pop("trace_id")
        self._insert(
            "traces",
            id=self.trace_id,
            created=r.pop("created", 0),
            model=r.pop("model"),
            version=r.pop("version"),
            ruleset=r.pop("ruleset", ""),
            title="",
            capture=_json.encode(r.pop("capture", {})).decode(),
            extra=_extra(r),
        )

    def _message(self, r: Record) -> None:
        content = r.pop("content")
        if r["role"] == "user":
            self._execute("UPDATE traces SET title = ? WHERE id = ?", (" ".join(content.split())[:120], self.trace_id))
        position = self._next("message")
        self._insert("messages", trace_id=self.trace_id, position=position, name=r.pop("id", None),
                     role=r.pop("role"), content=content, extra=_extra(r))  # fmt: skip

    def _token(self, r: Record) -> None:
        self._insert("tokens", trace_id=self.trace_id, output_index=r.pop("index"), text=r.pop("text", None),
                     token_id=r.pop("tokenId", None), segment=r.pop("segmentId", None), extra=_extra(r))  # fmt: skip

    def _step(self, r: Record) -> None:
        links = r.pop("attention", None)
        # A null stays in `extra`: a column cannot tell it from a field that was never there.
        given = [field for field in _STEP_COLUMNS if r.get(field) is not None]
        if r.get("layer_id") == _NO_LAYER:
            given.remove("layer_id")  # stays in `extra` for the same reason
        columns: dict[str, Any] = {"layer": _NO_LAYER, **{_STEP_COLUMNS[field]: r.pop(field) for field in given}}
        fingerprint = r.get("fingerprint")
        if fingerprint is not None and len(fingerprint) == FINGERPRINT_SIZE:
            columns |= dict(zip(("local", "mid", "long", "bin_entropy"), fingerprint, strict=False))
            columns["fingerprint"] = blob = pack(np.asarray(fingerprint))
            if _six_digits(blob) == fingerprint:
                del r["fingerprint"]  # else the exact numbers stay in `extra`
        index = r.pop("tokenIndex")
        payload = b""
        if links is not None:
            try:
                payload = self._compressor.compress(msgspec.msgpack.encode(links))
            except OverflowError:  # an integer of more than 64 bits, which JSON can hold
                r["attention"] = links
        cursor = self._insert("steps", trace_id=self.trace_id, output_index=index, extra=_extra(r), **columns)
        if payload:
            self._insert("links", step_id=cursor.lastrowid, payload=payload)

    def _segment(self, r: Record) -> None:
        position = self._next("segment")
        self._insert("segments", trace_id=self.trace_id, position=position, name=r.pop("id"), type=r.pop("type"),
                     start=r.pop("start"), end=r.pop("end"), extra=_extra(r))  # fmt: skip

    def _metrics(self, r: Record) -> None:
        values = (
            r.get("tokens"), r.get("dominantZone"), r.get("avgEntropy"), r.get("maxDrift"), _extra(r), self.trace_id,
        )  # fmt: skip
        self._execute(
            "UPDATE traces SET complete = 1, tokens = ?, dominant_zone = ?, avg_entropy = ?, max_drift = ?, "
            "metrics = ? WHERE id = ?",
            values,
        )

    def _next(self, kind: str) -> int:
        self._positions[kind] += 1
        return self._positions[kind]

    def _insert(self, table: str, **columns: Any) -> sqlite3.Cursor:
        return self._execute(_insert_sql(table, tuple(columns)), tuple(columns.values()))

    def _execute(self, sql: str, parameters: tuple[Any, ...]) -> sqlite3.Cursor:
        try:
            return self._connection.execute(sql, parameters)
        except sqlite3.Error as error:
            raise StoreError(f"the trace store could not be written: {error}.", "geom run --no-save …") from None


@lru_cache(maxsize=1024)  # one for each set of fields that a step can have
def _insert_sql(table: str, columns: tuple[str, ...]) -> str:
    names = ", ".join(f'"{name}"' for name in columns)
    return f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(columns))})"


def _six_digits(blob: bytes) -> list[float]:
    """`round_significant` of each number, in one go."""
    return [float(number) for number in (_SIX_DIGITS % tuple(unpack(blob).tolist())).split()]


def _extra(record: Record) -> str:
    """Everything of a record that has no column, as JSON: nothing that a newer release wrote is lost."""
    rest = {k: v for k, v in record.items() if k != "record_type"}
    return _json.encode(rest).decode()


def _merge(record: Record, extra: str | None) -> Record:
    return {**record, **(msgspec.json.decode(extra) if extra else {})}


def _step_of(row: dict[str, Any]) -> Record:
    links = None
    if row["payload"] is not None:
        links = msgspec.msgpack.decode(zstandard.decompress(row["payload"]))
    step: Record = {"record_type": "step", "tokenIndex": row["output_index"], "attention": links}
    for field, column in _STEP_COLUMNS.items():
        if row[column] is not None and (field, row[column]) != ("layer_id", _NO_LAYER):
            step[field] = row[column]
    if row["fingerprint"] is not None:
        step["fingerprint"] = _six_digits(row["fingerprint"])
    return _merge(step, row["extra"])
