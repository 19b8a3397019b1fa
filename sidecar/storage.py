"""Fingerprints into the store: one thread writes, in batches, four times a second; kill -9 loses no more than that.

When the store cannot be written, messages wait in memory, as many as MOST_WAITING; later ones are dropped and counted.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from geomcli.errors import StoreError
from geomcli.sidecar.counters import Counters
from geomcli.sidecar.messages import Message
from geomcli.store import Store

COMMIT_SECONDS = 0.25
BATCH = 2000
MOST_WAITING = 200_000
LAST_SECONDS = 20.0
_BUSY_SECONDS = 5.0  # that one try waits for another writer
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


class Storage:
    """Takes messages from any thread and writes them on one of its own; `close` writes what is left."""

    def __init__(self, path: Path, counters: Counters) -> None:
        with Store(path):  # made, or brought up to date, and refused here rather than in the thread
            pass
        self.path = path
        self.error = ""  # why the store could not be written last time
        self._counters = counters
        self._waiting: list[Message] = []
        self._lock = threading.Lock()
        self._due = threading.Condition(self._lock)
        self._asked = 0  # flushes that were asked for, and made
        self._made = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="storage", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Messages that are not in the store yet."""
        with self._lock:
            return len(self._waiting)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def put(self, messages: Sequence[Message]) -> None:
        with self._due:
            room = MOST_WAITING - len(self._waiting)
            self._counters.dropped += max(0, len(messages) - room)
            self._waiting += messages[: max(0, room)]
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
        """Write what is left, again and again for LAST_SECONDS; how many messages could not be."""
        with self._due:
            self._closing = True
            self._due.notify_all()
        self._thread.join()
        return len(self._waiting)

    def _run(self) -> None:
        ends = 0.0
        with contextlib.closing(_connected(self.path)) as connection:
            while True:
                with self._due:
                    self._due.wait_for(
                        lambda: self._closing or self._asked > self._made or len(self._waiting) >= BATCH, COMMIT_SECONDS
                    )
                    batch, asked, closing = self._waiting[:], self._asked, self._closing
                written = self._write(connection, batch)
                with self._due:
                    if written:
                        del self._waiting[: len(batch)]
                    self._made = asked
                    self._due.notify_all()
                ends = ends or (time.monotonic() + LAST_SECONDS if closing else 0.0)
                if closing and (not self._waiting or time.monotonic() > ends):
                    return
                if not written:
                    time.sleep(COMMIT_SECONDS)

    def _write(self, connection: sqlite3.Connection, batch: Sequence[Message]) -> bool:
        if not batch:
            return True
        try:
            connection.execute("BEGIN IMMEDIATE")
            fresh = _insert(connection, batch)
            connection.execute("COMMIT")
        except Exception as error:  # the thread has to live on, whatever is wrong with the store
            with contextlib.suppress(sqlite3.Error):
                connection.rollback()
            self.error = f"the trace store {self.path} could not be written: {error}."
            self._counters.write_errors += 1
            return False
        self.error = ""
        self._counters.stored += fresh
        self._counters.duplicates += len(batch) - fresh
        return True


def _connected(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def _insert(connection: sqlite3.Connection, batch: Sequence[Message]) -> int:
    """How many of a batch were not there yet. Their sessions grow by these alone."""
    before = connection.total_changes
    sessions: dict[tuple[str, str], list[float | None]] = {}
    fresh = 0
    for m in batch:
        moe = None if m.moe is None else msgspec.json.encode(m.moe).decode()
        cursor = connection.execute(
            _INSERT,
            (m.model, m.request_id, m.decode_step, m.ts_ms, m.fingerprint, m.zone or None, m.phase or None, m.sink_mass,
             m.drift, m.ripple, moe),
        )  # fmt: skip
        if not cursor.rowcount:
            continue
        fresh += 1
        seen = sessions.setdefault((m.model, m.request_id), [m.ts_ms, m.ts_ms, 0, None])
        seen[0], seen[1], seen[2] = min(seen[0] or 0, m.ts_ms), max(seen[1] or 0, m.ts_ms), (seen[2] or 0) + 1
        if m.drift is not None:
            seen[3] = m.drift if seen[3] is None else max(seen[3], m.drift)
    connection.executemany(_SESSION, [(*key, *values) for key, values in sessions.items()])
    assert connection.total_changes >= before + fresh
    return fresh
