"""Fingerprints into the store: one thread writes, in batches, four times a second; kill -9 loses no more than that.

When the store cannot be written, messages wait in memory, as many as MOST_WAITING and MOST_WAITING_BYTES; later ones
are dropped and counted. A store that was deleted or replaced meanwhile is made anew, and what waits goes there.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import msgspec

from geomcli.errors import StoreError
from geomcli.sidecar.counters import Counters
from geomcli.sidecar.messages import Message
from geomcli.sidecar.store_file import Lock, StoreFile

COMMIT_SECONDS = 0.25
BATCH = 2000
MOST_WAITING = 200_000
MOST_WAITING_BYTES = 256 << 20  # in memory
LAST_SECONDS = 20.0
_END_SECONDS = 40.0  # of the thread: LAST_SECONDS, and a write that waits for another writer
SLOW_SECONDS = 1.5  # that a write may wait before it is a problem
_NOTICES = 5
_INSERT = (
    "INSERT OR IGNORE INTO fingerprints (model, request_id, decode_step, created, fingerprint, zone, phase, sink_mass, "
    "drift, ripple, moe) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_SESSION = (
    "INSERT INTO sessions (model, request_id, first_created, last_created, fingerprints, max_drift) "
    "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT(model, request_id) DO UPDATE SET "
    "first_created = min(first_created, excluded.first_created), "
    "last_created = max(last_created, excluded.last_created), fingerprints = fingerprints + excluded.fingerprints, "
    "max_drift = max(coalesce(max_drift, excluded.max_drift), coalesce(excluded.max_drift, max_drift))"
)


class Row(msgspec.Struct, frozen=True, gc=False):
    """A message as the store has it, in the order of its columns."""

    model: str
    request_id: str
    decode_step: int
    created: int
    fingerprint: bytes
    zone: str | None
    phase: str | None
    sink_mass: float | None
    drift: float | None
    ripple: float | None
    moe: str | None

    @classmethod
    def of(cls, m: Message) -> Row:
        moe = None if m.moe is None else msgspec.json.encode(m.moe).decode()
        return cls(
            m.model, m.request_id, m.decode_step, m.ts_ms, m.fingerprint, m.zone or None, m.phase or None, m.sink_mass,
            m.drift, m.ripple, moe,
        )  # fmt: skip

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return sys.getsizeof(self) + sum(map(sys.getsizeof, msgspec.structs.astuple(self)))


class Storage:
    """Takes messages from any thread and writes them on one of its own; `close` writes what is left.

    UsageError where another sidecar writes to the store, StoreError where it cannot be opened.
    """

    def __init__(
        self, path: Path, counters: Counters, *, most: int = MOST_WAITING, most_bytes: int = MOST_WAITING_BYTES
    ) -> None:
        self.path, self.most, self.most_bytes = path, most, most_bytes
        self.error = ""  # why the store could not be written last time
        self.notices: deque[str] = deque(maxlen=_NOTICES)  # of stores that were deleted or replaced
        # Opened here, and refused here rather than in the thread.
        self._file: StoreFile | None = StoreFile(path)
        try:
            self._held = Lock(path)
        except BaseException:
            self._file.close()
            raise
        self._counters = counters
        self._waiting: list[Row] = []
        self._bytes = 0
        self._since: float | None = None  # when the write that waits began to
        self._lock = threading.Lock()
        self._due = threading.Condition(self._lock)
        self._asked = 0  # flushes that were asked for, and made
        self._made = 0
        self._closing, self._ends = False, 0.0
        self._thread = threading.Thread(target=self._run, name="storage", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Messages that are not in the store yet."""
        with self._lock:
            return len(self._waiting)

    @property
    def waiting_bytes(self) -> int:
        return self._bytes

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def problem(self) -> str:
        """Why messages are not written now, "" where they are."""
        since = self._since
        seconds = 0.0 if since is None else time.monotonic() - since
        if self.error or seconds < SLOW_SECONDS:
            return self.error
        return f"the trace store {self.path} is busy: {len(self)} messages have waited for {seconds:.0f} s."

    def put(self, messages: Sequence[Message]) -> None:
        rows = list(map(Row.of, messages))
        sizes = [row.size for row in rows]
        with self._due:
            for row, size in zip(rows, sizes, strict=True):
                if len(self._waiting) >= self.most or self._bytes + size > self.most_bytes:
                    self._counters.dropped += 1
                    continue
                self._waiting.append(row)
                self._bytes += size
            if len(self._waiting) >= BATCH:
                self._due.notify_all()

    def flush(self, seconds: float = 30.0) -> None:
        """Return when all that was put before is in the store; StoreError when it could not be written."""
        with self._due:
            self._asked += 1
            mine = self._asked
            self._due.notify_all()
            done = self._due.wait_for(lambda: self._made >= mine or not self._thread.is_alive(), seconds)
            if self.error or not done or not self._thread.is_alive():
                raise StoreError(self.error or f"the trace store {self.path} is busy for {seconds:.0f} s.")

    def close(self) -> int:
        """Write what is left, again and again for LAST_SECONDS; how many messages could not be.

        A write that does not come back, as of a file system that has gone, is left to itself.
        """
        with self._due:
            self._closing, self._ends = True, time.monotonic() + LAST_SECONDS
            self._due.notify_all()
        self._thread.join(_END_SECONDS)
        if self._thread.is_alive():
            self.error = f"a write to the trace store {self.path} has not come back for {_END_SECONDS:.0f} s."
            return len(self)
        if self._file is not None:
            self._file.close()
        self._held.release()
        return len(self._waiting)

    def _run(self) -> None:
        while True:
            with self._due:
                self._due.wait_for(
                    lambda: self._closing or self._asked > self._made or len(self._waiting) >= BATCH, COMMIT_SECONDS
                )
                batch, asked, closing = self._waiting[:], self._asked, self._closing
            written = self._write(batch)
            with self._due:
                if written:
                    del self._waiting[: len(batch)]
                    self._bytes -= sum(row.size for row in batch)
                self._made = asked
                self._due.notify_all()
            if closing and (not self._waiting or time.monotonic() > self._ends):
                return
            if not written:
                time.sleep(COMMIT_SECONDS)

    def _write(self, batch: Sequence[Row]) -> bool:
        try:
            file = self._opened()
            if batch:
                fresh = self._inserted(file, batch)
                if file.fate():  # it went where nobody finds it
                    return False
                self._counters.stored += fresh
                self._counters.duplicates += len(batch) - fresh
        except Exception as error:  # the thread has to live on, whatever is wrong with the store
            self.error = f"the trace store {self.path} could not be written: {str(error).removesuffix('.')}."
            self._counters.write_errors += 1
            return False
        finally:
            self._since = None
        if batch:
            self.error = ""
        return True

    def _opened(self) -> StoreFile:
        """The store that is there now."""
        fate = "" if self._file is None else self._file.fate()
        if self._file is not None and not fate:
            return self._file
        self._since = time.monotonic()
        if self._file is not None:
            self.error = f"the trace store {self.path} was {fate}."
            self.notices.append(
                f"the trace store {self.path} was {fate} at {time.strftime('%Y-%m-%d %H:%M:%S')}: what was stored "
                "before is not in it."
            )
            self._file.close()
            self._file = None
        made = StoreFile(self.path)
        try:
            self._held.keep()
        except BaseException:
            made.close()
            raise
        self._file, self.error = made, ""
        return made

    def _inserted(self, file: StoreFile, batch: Sequence[Row]) -> int:
        self._since = time.monotonic()
        try:
            file.connection.execute("BEGIN IMMEDIATE")
            self._since = None
            fresh = _insert(file.connection, batch)
            file.connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                file.connection.rollback()
            raise
        return fresh


def _insert(connection: sqlite3.Connection, batch: Sequence[Row]) -> int:
    """How many of a batch were not there yet. Their sessions grow by these alone."""
    before = connection.total_changes
    sessions: dict[tuple[str, str], list[float | None]] = {}
    fresh = 0
    for row in batch:
        cursor = connection.execute(_INSERT, msgspec.structs.astuple(row))
        if not cursor.rowcount:
            continue
        fresh += 1
        seen = sessions.setdefault((row.model, row.request_id), [row.created, row.created, 0, None])
        seen[0], seen[1] = min(seen[0] or 0, row.created), max(seen[1] or 0, row.created)
        seen[2] = (seen[2] or 0) + 1
        if row.drift is not None:
            seen[3] = row.drift if seen[3] is None else max(seen[3], row.drift)
    connection.executemany(_SESSION, [(*key, *values) for key, values in sessions.items()])
    assert connection.total_changes >= before + fresh
    return fresh
