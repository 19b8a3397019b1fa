"""The file of the store: held by one sidecar at a time, and opened anew where it was deleted or replaced."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from pathlib import Path

from geomcli.errors import UsageError
from geomcli.store import Store

_BUSY_SECONDS = 5.0  # that one try waits for another writer
_OTHER = "--db FILE of a store of its own"


class Lock:
    """Keeps other sidecars from a store until `release`, or until the process ends, however it ends.

    UsageError where another one has it, or where it cannot be had.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        real = path.resolve()
        self.beside = real.with_name(f"{real.name}.sidecar")
        self._handle = self._taken()

    def keep(self) -> None:
        """Take it again where its file was deleted together with the store."""
        if _mark(self.beside) != _mark(self._handle):
            self.release()
            self._handle = self._taken()

    def release(self) -> None:
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)

    def _taken(self) -> int:
        handle = -1
        try:
            handle = os.open(self.beside, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if handle >= 0:
                os.close(handle)
            if isinstance(error, BlockingIOError):
                raise UsageError(f"another sidecar writes to the trace store {self._path}.", _OTHER) from None
            raise UsageError(
                f"the trace store {self._path} cannot be locked: {self.beside}: {error.strerror}.", _OTHER
            ) from None
        return handle


class StoreFile:
    """An open connection, and the file that it writes to. GeomError or sqlite3.Error where there can be none."""

    def __init__(self, path: Path) -> None:
        with Store(path):  # made, or brought up to date
            pass
        self.path = path
        real = path.resolve()
        self._parts = (real, real.with_name(f"{real.name}-wal"), real.with_name(f"{real.name}-shm"))
        before = _mark(path)
        self.connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            self.connection.execute("PRAGMA synchronous = NORMAL")
            self.connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # opens the files beside it
        except BaseException:
            self.connection.close()
            raise
        self._marks = [before, *map(_mark, self._parts[1:])]

    def fate(self) -> str:
        """What became of the file: "" while it is the one that was opened, else "deleted" or "replaced"."""
        mark = _mark(self.path)
        if mark == self._marks[0]:
            return ""
        return "deleted" if mark is None else "replaced"

    def close(self) -> None:
        gone = bool(self.fate())
        with contextlib.suppress(sqlite3.Error):
            self.connection.close()
        for part, mark in zip(self._parts[1:], self._marks[1:], strict=True) if gone else ():
            # SQLite would take what a store that is gone left there for changes of the one in its place.
            if mark is not None and _mark(part) == mark:
                with contextlib.suppress(OSError):
                    part.unlink()


def _mark(file: Path | int) -> tuple[int, int] | None:
    """What tells a file from others of its name, and of its file system; None where there is none."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino
