"""The connection of a store: of one that is made or brought up to date, or, where nothing may be written, for reading.

A store in WAL mode is read beside its `-wal` and `-shm` files, which reading makes where they are not there. Where they
cannot be made, and nobody has the store open, all of it is in the one file: SQLite may take that for immutable.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shlex
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sqlite_utils import Database

from geomcli.errors import StoreError
from geomcli.migrations import STEPS, migrations

BUSY_MS = 10_000
_FOLDER_SECONDS = 60.0  # a large store's schema takes longer than a write
_AGAIN_SECONDS = 0.01
_OTHER = "geom … --db FILE, or GEOM_DB"


class Stamp(NamedTuple):
    """What changes with a file's content."""

    size: int
    modified: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        found = path.stat()
        return cls(found.st_size, found.st_mtime_ns)


class Connected(NamedTuple):
    """`immutable`: the file as it was opened, where what is read is right only as long as it stays so; else None."""

    connection: sqlite3.Connection
    immutable: Stamp | None = None


def connect(path: Path, *, create: bool) -> Connected:
    """A connection to a store of this geom's schema; StoreError with one sentence when there can be none.

    create: make one where there is none. Without it, a store that is not there is an empty one in memory, and one that
    may not be written can be read.
    """
    try:
        on_disk = create or path.exists()
        if on_disk and not create and not _writable(path):
            # SQLite would open it all the same, and leave files there that its owner may not write.
            return _for_reading(path)
        if on_disk:
            path.parent.mkdir(parents=True, exist_ok=True)
        alone = folder_locked(path.parent) if on_disk else contextlib.nullcontext()
        with _opened(path.absolute() if on_disk else ":memory:") as connection, alone:
            _bring_up_to_date(connection, path)
        return Connected(connection)
    except (OSError, sqlite3.Error) as error:
        if not _forbidden(error):
            raise StoreError(f"the trace store {path} cannot be opened: {error}.", "geom run --db FILE …") from None
        if create:
            raise StoreError(f"the trace store {path} may not be written: {error}.", _OTHER) from None
    return _for_reading(path)


def _for_reading(path: Path) -> Connected:
    real = path.resolve()  # SQLite follows links before it looks for what lies beside a database
    try:
        # Where nobody has the store open, opening it in the usual way makes files beside it.
        if _writable(real) or _beside(real, "-shm").exists():
            try:
                with _opened(f"{real.as_uri()}?mode=ro", uri=True) as connection:
                    _check(connection, path)
                return Connected(connection)
            except sqlite3.Error as error:
                if not _forbidden(error):
                    raise
        for left in (_beside(real, "-wal"), _beside(real, "-journal")):
            if left.exists() and left.stat().st_size:
                raise StoreError(
                    f"the trace store {path} cannot be read where nothing may be written: {left.name} has changes that "
                    "are not in it yet.",
                    f"cp {shlex.quote(str(real))} {shlex.quote(str(left))} FOLDER/, then --db FOLDER/{real.name}",
                )
        stamp = Stamp.of(path)
        with _opened(f"{real.as_uri()}?immutable=1", uri=True) as connection:
            _check(connection, path)
        return Connected(connection, stamp)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(
            f"the trace store {path} can neither be written nor read: {error}.", f"ls -l {shlex.quote(str(path))}"
        ) from None


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _writable(path: Path) -> bool:
    return os.access(path, os.W_OK, effective_ids=True)


@contextlib.contextmanager
def _opened(name: str | Path, *, uri: bool = False) -> Iterator[sqlite3.Connection]:
    """A connection that stays open unless the block fails."""
    connection = sqlite3.connect(name, timeout=BUSY_MS / 1000, isolation_level=None, uri=uri)
    try:
        yield connection
    except BaseException:
        connection.close()
        raise


def _forbidden(error: Exception) -> bool:
    """Whether it is writing that failed, and not the store."""
    if isinstance(error, OSError):
        return error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)


def _bring_up_to_date(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")
    _applied(connection, path)
    connection.execute("PRAGMA journal_mode = WAL")
    migrations.apply(Database(connection))


def _check(connection: sqlite3.Connection, path: Path) -> None:
    applied = _applied(connection, path)
    if not applied:
        raise StoreError(f"{path} is an empty database, and may not be written.", _OTHER)
    if STEPS - applied:
        raise StoreError(
            f"the trace store {path} is of an older geom and has to be brought up to date, but may not be written.",
            f"cp {shlex.quote(str(path))} FOLDER/, then --db FOLDER/{path.name}",
        )


def _applied(connection: sqlite3.Connection, path: Path) -> set[str]:
    """The steps of the schema that the database has; StoreError, and nothing changed, where it is none of ours."""
    database = Database(connection)
    applied = {step.name for step in migrations.applied(database)}
    if not applied and (tables := database.table_names()):
        raise StoreError(
            f"{path} is a database of something else: it has the table {tables[0]}, and no traces.", _OTHER
        )
    if newer := sorted(applied - STEPS):
        raise StoreError(f"{path} was written by a newer geom ({newer[0]}).", "pip install --upgrade geomcli")
    return applied


@contextlib.contextmanager
def folder_locked(folder: Path) -> Iterator[None]:
    """One process at a time: SQLite's busy timeout covers neither the switch to WAL nor a schema in several steps.

    StoreError where another one does not let go of it for a minute.
    """
    handle = os.open(folder, os.O_RDONLY)
    ends = time.monotonic() + _FOLDER_SECONDS
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > ends:
                    raise StoreError(f"another process has locked the folder {folder}.", f"fuser {folder}") from None
                time.sleep(_AGAIN_SECONDS)
        yield
    finally:
        os.close(handle)
