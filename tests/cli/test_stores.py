"""Which store a command takes: none is made by reading, none of somebody else's is touched, ids mean one trace."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from geomcli import jsonl
from geomcli.errors import StoreError
from geomcli.store import Store
from tests.conftest import GEOM
from tests.library.made_traces import LOCAL, entry, records


def geom(*words: object, db: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [GEOM, *map(str, words)], input=stdin, capture_output=True, text=True, env={**os.environ, "GEOM_DB": str(db)}
    )


def filled(path: Path, *names: str) -> Path:
    with Store(path) as store:
        for name in names:
            store.add(records([entry(1, "Hi", LOCAL)], trace_id=name))
    return path


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    path = tmp_path / "customers.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE customers (name TEXT)")
    connection.close()
    return path


def test_reading_makes_no_store(tmp_path: Path) -> None:
    db = tmp_path / "deep" / "none.db"
    listed = geom("traces", "ls", db=db)
    assert (listed.returncode, listed.stdout) == (0, "")
    assert f"No traces yet in {db}" in listed.stderr.replace("\n", "")
    assert geom("traces", "ls", "--json", db=db).stdout.strip() == "[]"
    for words in (("show",), ("export", "last"), ("rm", "--yes", "last")):
        done = geom("traces", *words, db=db)
        assert done.returncode == 1
        assert "no trace 'last'" in done.stderr
    assert geom("spans", "last", db=db).returncode == 1
    assert not db.parent.exists()


def test_a_database_of_something_else_is_refused_and_stays_as_it_is(foreign: Path) -> None:
    before = foreign.read_bytes()
    for words in (("traces", "ls"), ("traces", "import", "-"), ("spans", "last"), ("compare", "a", "b")):
        done = geom(*words, db=foreign)
        assert done.returncode == 1, words
        assert "has the table customers" in done.stderr.replace("\n", " ")
    assert foreign.read_bytes() == before
    assert [path.name for path in foreign.parent.iterdir()] == ["customers.db"]


def test_a_store_of_a_newer_geom_is_refused(tmp_path: Path) -> None:
    path = filled(tmp_path / "traces.db", "a")
    with sqlite3.connect(path) as connection:
        connection.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('geom', 'm999_future', '')"
        )
    with pytest.raises(StoreError, match="newer geom \\(m999_future\\)"):
        Store(path)


def test_an_id_that_begins_another_one_is_found(tmp_path: Path) -> None:
    db = filled(tmp_path / "traces.db", "run", "run-2", "Run-3", "two words")
    assert json.loads(geom("traces", "show", "run", "--json", db=db).stdout)[0]["trace_id"] == "run"
    with Store(db) as store:
        assert store.find("R") == "Run-3"
        with pytest.raises(StoreError, match="several traces start with 'ru'"):
            store.find("ru")
        with pytest.raises(StoreError, match="empty text names no trace"):
            store.find("")
    ids = geom("traces", "ls", "-q", db=db).stdout
    exported = geom("traces", "export", "-", db=db, stdin=ids)
    assert [t[0]["trace_id"] for t in jsonl.read(exported.stdout.splitlines()).traces] == ids.splitlines()
    assert sorted(ids.splitlines()) == ["Run-3", "run", "run-2", "two words"]


def test_nothing_is_removed_by_an_empty_name(tmp_path: Path) -> None:
    db = filled(tmp_path / "traces.db", "only")
    done = geom("traces", "rm", "--yes", "", db=db)
    assert done.returncode == 1
    assert "empty text names no trace" in done.stderr
    with Store(db) as store:
        assert store.has("only")


def test_a_pipe_gets_every_id_and_a_screen_says_that_there_are_more(tmp_path: Path) -> None:
    names = [f"t{n:02d}" for n in range(45)]
    db = filled(tmp_path / "traces.db", *names)
    assert sorted(geom("traces", "ls", "-q", db=db).stdout.split()) == names
    assert len(json.loads(geom("traces", "ls", "--json", db=db).stdout)) == 45
    assert len(geom("traces", "search", "-q", "hi", db=db).stdout.split()) == 45
    shown = geom("traces", "ls", db=db)
    assert len(shown.stdout.splitlines()) == 20
    assert "more than 20" in shown.stderr
    every = geom("traces", "ls", "--limit", 45, db=db)
    assert len(every.stdout.splitlines()) == 45
    assert "more than" not in every.stderr
    assert len(geom("traces", "ls", "-q", "--limit", 3, db=db).stdout.split()) == 3


def test_exports_go_to_stdout_and_nothing_is_no_export(tmp_path: Path) -> None:
    db = filled(tmp_path / "traces.db", "a")
    plain = geom("traces", "export", "a", db=db).stdout
    assert geom("traces", "export", "a", "-o", "-", db=db).stdout == plain != ""
    kept = tmp_path / "kept.jsonl"
    kept.write_text("mine")
    done = geom("traces", "export", "-", "-o", kept, db=db)
    assert done.returncode == 2
    assert "stdin is empty" in done.stderr
    assert kept.read_text() == "mine"


@pytest.mark.parametrize("name", ["last", "-", ""])
def test_an_id_that_names_something_else_is_not_taken(tmp_path: Path, name: str) -> None:
    db = filled(tmp_path / "traces.db", "mine")
    header, *rest = records([entry(1, "Hi", LOCAL)])
    text = jsonl.dump([{**header, "trace_id": name}, *rest])
    for more in ((), ("--replace",)):
        refused = geom("traces", "import", *more, "-", db=db, stdin=text)
        assert (refused.returncode, refused.stdout) == (1, "")
        said = " ".join(refused.stderr.split())
        assert f"the id {name!r}, by which no command would find it" in said
        assert "geom traces import --as-new FILE" in said
    taken = geom("traces", "import", "--as-new", "-", db=db, stdin=text)
    made = taken.stdout.strip()
    assert taken.returncode == 0
    assert f"{made}: imported; no command would find it as {name!r}" in taken.stderr.replace("\n", " ")
    assert json.loads(geom("traces", "show", made, "--json", db=db).stdout)[0]["trace_id"] == made


def test_an_import_that_was_killed_leaves_nothing_for_long(tmp_path: Path) -> None:
    db = tmp_path / "traces.db"
    first, second = (jsonl.dump(records([entry(1, "Hi", LOCAL)], trace_id=name)) for name in ("first", "second"))

    def begun() -> tuple[subprocess.Popen[str], Path]:
        before = set(tmp_path.glob(".import-*"))
        process = subprocess.Popen(
            [GEOM, "traces", "import", "--db", db, "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 60
        while not (
            made := {path for path in set(tmp_path.glob(".import-*")) - before if (path / "traces.db").exists()}
        ):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return process, made.pop()

    killed, left = begun()
    killed.kill()
    killed.communicate()
    assert left.exists()
    notes = tmp_path / ".import-notes"
    notes.mkdir()
    (notes / "mine.txt").write_text("kept")

    running, workplace = begun()
    assert not left.exists()
    assert geom("traces", "import", "-", db=db, stdin=second).stdout == "second\n"
    assert workplace.exists(), "its process lives"
    assert running.communicate(first)[0] == "first\n"
    assert list(tmp_path.glob(".import-*")) == [notes]
    assert [path.name for path in notes.iterdir()] == ["mine.txt"]
    assert sorted(geom("traces", "ls", "-q", db=db).stdout.split()) == ["first", "second"]


def test_what_only_looks_like_an_import_stays(tmp_path: Path) -> None:
    db = tmp_path / "traces.db"
    backup, empty, tree, foreign = (tmp_path / f".import-{name}" for name in ("backup", "empty", "tree", "foreign"))
    for folder in (backup, empty, tree, foreign):
        folder.mkdir()
    with Store(backup / "traces.db") as store:
        store.add(records([entry(1, "Hi", LOCAL)], trace_id="precious"))
    (tree / "traces.db").mkdir()
    (foreign / "lock").write_text("of somebody else")
    link = tmp_path / ".import-link"
    link.symlink_to(backup)
    text = jsonl.dump(records([entry(1, "Hi", LOCAL)], trace_id="new"))
    assert geom("traces", "import", "-", db=db, stdin=text).stdout == "new\n"
    with Store(backup / "traces.db") as store:
        assert store.has("precious")
    assert [path.name for path in backup.iterdir()] == ["traces.db"]
    assert empty.is_dir()
    assert (tree / "traces.db").is_dir()
    assert (foreign / "lock").read_text() == "of somebody else"
    assert link.is_symlink()


@pytest.mark.parametrize("day", ["2026-11-26", "20261126", "2026-W48-4"])
def test_a_day_counts_to_its_end(tmp_path: Path, day: str) -> None:
    db = tmp_path / "traces.db"
    made = records([entry(1, "Hi", LOCAL)], trace_id="noon")
    made[0]["created"] = 1_795_694_400_000  # 2026-11-26T12:00Z
    with Store(db) as store:
        store.add(made)
    found = subprocess.run(
        [GEOM, "traces", "ls", "-q", "--until", day],
        capture_output=True, text=True, env={**os.environ, "GEOM_DB": str(db), "TZ": "UTC"},
    )  # fmt: skip
    assert found.stdout.split() == ["noon"]
