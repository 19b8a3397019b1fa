"""The store under a sidecar: bounded while it is locked, held by one, made anew where it was taken away."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from geomcli.errors import UsageError
from geomcli.sidecar.counters import Counters
from geomcli.sidecar.messages import Routing
from geomcli.sidecar.storage import Row, Storage
from geomcli.store import Store
from tests.conftest import GEOM
from tests.discovery.made_points import filled, planted
from tests.sidecar.running import Sidecar, messages, send, sidecar
from tests.unwritable import reachable_folder, unwritable

QUIET = ("--recluster-interval", "3600")


def count(path: Path) -> int:
    with Store(path) as store:
        return int(store.rows("SELECT count(*) AS n FROM fingerprints")[0]["n"])


def noticed(running: Sidecar) -> str:
    deadline = time.monotonic() + 20
    while not (said := running.get("/health")["notices"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (notice,) = said
    return str(notice)


def test_what_waits_is_bounded_by_bytes(tmp_path: Path) -> None:
    db, counters = tmp_path / "s.db", Counters()
    plain = messages(planted(100, noise=0)[0])
    long = [
        type(m)(**{**{name: getattr(m, name) for name in m.__struct_fields__},
                   "moe": {str(layer): Routing(list(range(8)), [0.125] * 8) for layer in range(40)}})
        for m in plain
    ]  # fmt: skip
    storage = Storage(db, counters, most_bytes=100_000)
    try:
        with sqlite3.connect(db, isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            storage.put(long)
            kept = len(storage)
            assert 0 < kept < len(long)
            assert counters.dropped == len(long) - kept
            assert storage.waiting_bytes <= 100_000 < storage.waiting_bytes + Row.of(long[0]).size
            other.execute("ROLLBACK")
        storage.flush()
        assert storage.waiting_bytes == 0
        storage.put(plain[:100])
        storage.flush()
        assert counters.dropped == len(long) - kept
    finally:
        assert storage.close() == 0
    assert count(db) == 100


def test_both_bounds_are_said(tmp_path: Path) -> None:
    with sidecar(tmp_path, *QUIET) as running:
        stats = running.get("/stats")
        assert (stats["most_waiting"], stats["most_waiting_bytes"]) == (200_000, 256 << 20)
        assert (stats["waiting"], stats["waiting_bytes"]) == (0, 0)


def test_a_second_sidecar_is_refused_until_the_first_has_gone(tmp_path: Path) -> None:
    with sidecar(tmp_path, *QUIET) as running:
        (tmp_path / "other").symlink_to(tmp_path)
        for name in (running.db, tmp_path / "other" / running.db.name):
            command = [GEOM, "sidecar", "--db", name, "--zmq-bind", "tcp://127.0.0.1:*", "--port", "0"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert done.returncode == 2, done.stderr
            assert str(name) in done.stderr.replace("\n", "")
            said = " ".join(done.stderr.split())
            assert "another sidecar" in said
            assert "--db FILE of a store of its own" in said
        running.end(signal.SIGKILL)
    with sidecar(tmp_path, *QUIET) as again:
        assert again.end() == 0


def test_a_store_that_cannot_be_locked_is_named() -> None:
    with reachable_folder() as folder:
        db = folder / "s.db"
        filled(db, planted(5)[0])
        lock = folder / "s.db.sidecar"
        lock.touch()
        folder.chmod(0o777)
        db.chmod(0o666)
        for ending in ("-wal", "-shm"):
            db.with_name(db.name + ending).unlink(missing_ok=True)
        with unwritable(lock), pytest.raises(UsageError, match=r"s\.db cannot be locked: .*s\.db\.sidecar"):
            Storage(db, Counters())


@pytest.mark.parametrize("with_all", [True, False])
def test_a_store_that_was_deleted_is_made_anew(tmp_path: Path, with_all: bool) -> None:
    some = messages(planted(40, noise=0)[0])
    with sidecar(tmp_path, *QUIET) as running:
        send(running.zmq_url, some)
        running.received(len(some))
        running.post("/storage/flush")
        for file in tmp_path.glob("sidecar.db*") if with_all else [running.db]:
            file.unlink()
        send(running.zmq_url, messages(planted(30, noise=0)[0], start=1000))
        assert f"{running.db} was deleted" in noticed(running)
        running.received(len(some) + 150)
        assert running.post("/storage/flush")["waiting"] == 0
        assert running.get("/health")["status"] == "ok"
        assert running.rows("PRAGMA integrity_check") == [{"integrity_check": "ok"}]
        assert count(running.db) == 150
        done = subprocess.run(
            [GEOM, "sidecar", "--db", running.db, "--zmq-bind", "tcp://127.0.0.1:*", "--port", "0"],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert "another sidecar" in " ".join(done.stderr.split())


def test_messages_that_wait_for_a_locked_store_go_to_the_one_in_its_place(tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    filled(other, planted(10, noise=0)[0], model="before")
    some = messages(planted(40, noise=0)[0])
    with sidecar(tmp_path, *QUIET) as running:
        first = messages(planted(20, noise=0)[0], model="first")
        send(running.zmq_url, first)
        running.received(len(first))
        running.post("/storage/flush")
        with sqlite3.connect(running.db, isolation_level=None) as writer:
            writer.execute("BEGIN IMMEDIATE")
            send(running.zmq_url, some)
            running.received(len(first) + len(some))
            time.sleep(0.6)
            assert running.get("/stats")["waiting"] == len(some)
            shutil.copy(other, tmp_path / "moved.db")
            os.replace(tmp_path / "moved.db", running.db)
            writer.execute("ROLLBACK")
        assert "was replaced" in noticed(running)
        assert running.post("/storage/flush")["waiting"] == 0
        assert running.rows("PRAGMA integrity_check") == [{"integrity_check": "ok"}]
        assert running.rows("SELECT model, count(*) AS n FROM fingerprints GROUP BY model ORDER BY model") == [
            {"model": "before", "n": 50}, {"model": "m", "n": len(some)}
        ]  # fmt: skip
        assert running.end() == 0


def test_a_store_that_cannot_be_made_anew_is_a_problem_until_it_can(tmp_path: Path) -> None:
    some = messages(planted(20, noise=0)[0])
    with sidecar(tmp_path, *QUIET) as running:
        for file in tmp_path.glob("sidecar.db*"):
            file.unlink()
        running.db.mkdir()
        send(running.zmq_url, some)
        running.received(len(some))
        time.sleep(1)
        status, said = running.ask("GET", "/health")
        assert status == 503
        assert str(running.db) in said["problems"][0]
        assert running.get("/stats")["waiting"] == len(some)
        running.db.rmdir()
        deadline = time.monotonic() + 30
        while running.get("/stats")["waiting"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert running.ask("GET", "/health")[0] == 200
        assert count(running.db) == len(some)


def test_health_answers_within_a_second_while_the_store_is_locked(tmp_path: Path) -> None:
    """Locked before it starts, and for longer than one try to write waits."""
    some = messages(planted(20, noise=0)[0])
    db = tmp_path / "sidecar.db"
    filled(db, planted(5)[0])
    with sqlite3.connect(db, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        with sidecar(tmp_path, *QUIET) as running:
            send(running.zmq_url, some)
            running.received(len(some))
            sent = time.monotonic()
            while (asked := time.monotonic()) < sent + 7:
                status, said = running.ask("GET", "/health")
                assert time.monotonic() - asked < 1
                assert status == 503 or asked < sent + 2, said
                time.sleep(0.05)
            assert str(db) in said["problems"][0]
            other.execute("ROLLBACK")
            assert running.post("/storage/flush")["waiting"] == 0
            assert running.ask("GET", "/health")[0] == 200


def test_a_locked_store_is_a_problem_within_two_seconds(tmp_path: Path) -> None:
    some = messages(planted(20, noise=0)[0])
    with sidecar(tmp_path, *QUIET) as running:
        with sqlite3.connect(running.db, isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            send(running.zmq_url, some)
            running.received(len(some))
            time.sleep(2.2)
            status, said = running.ask("GET", "/health")
            other.execute("ROLLBACK")
        assert status == 503
        assert f"{running.db} is busy: {len(some)} messages have waited" in said["problems"][0]
        assert running.post("/storage/flush")["waiting"] == 0
        assert running.ask("GET", "/health")[0] == 200
