"""A store that may not be written is read: in a folder or a file of somebody else, beside one who writes, after one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlite_utils import Database

from geomcli.errors import StoreChanged, StoreError
from geomcli.migrations import m001_traces, migrations
from geomcli.store import Store
from geomcli.store_listing import list_traces, search_traces
from tests.library.made_traces import LOCAL, entry, records
from tests.unwritable import reachable_folder, unwritable

HOLDS_OPEN = """
import sys
from pathlib import Path
from geomcli.store import Store
with Store(Path(sys.argv[1])) as store:
    store._connection.execute("UPDATE traces SET title = 'written by another'")
    print("written", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with reachable_folder() as made:
        yield made


@pytest.fixture
def path(folder: Path) -> Path:
    made = folder / "traces.db"
    with Store(made) as store:
        store.add(records([entry(1, "Hi", LOCAL)], trace_id="one"))
    return made


def read(path: Path) -> list[str]:
    """Ids of the traces, after each was read in every way."""
    with Store(path, create=False) as store:
        found = [row["id"] for row in list_traces(store)]
        assert [row["id"] for row in search_traces(store, "hi")] == found
        assert [next(store.records(trace_id))["trace_id"] for trace_id in found] == found
        return found


def test_in_a_folder_that_may_not_be_written(folder: Path, path: Path) -> None:
    with unwritable(folder, path):
        assert read(path) == ["one"]
        assert [made.name for made in folder.iterdir()] == ["traces.db"]
        with Store(path, create=False) as store, pytest.raises(StoreError, match="could not be written"):
            store.remove(["one"])
        with pytest.raises(StoreError, match=r"traces\.db may not be written: "):
            Store(path)


def test_a_file_that_may_not_be_written(folder: Path, path: Path) -> None:
    folder.chmod(0o777)
    with unwritable(path):
        assert read(path) == ["one"]


def test_beside_one_who_writes(folder: Path, path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", HOLDS_OPEN, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "written\n"
    with unwritable(folder, *folder.iterdir()):
        with Store(path, create=False) as store:
            assert [row["title"] for row in list_traces(store)] == ["written by another"]
        writer.kill()  # what it wrote stays behind beside the store
        writer.communicate()
        with Store(path, create=False) as store:
            assert [row["title"] for row in list_traces(store)] == ["written by another"]
    folder.chmod(0o755)
    (folder / "traces.db-shm").unlink()
    elsewhere = folder / "links"
    elsewhere.mkdir()
    link = elsewhere / "link.db"
    link.symlink_to(path)
    for name in (path, link):
        with (
            unwritable(folder),
            pytest.raises(StoreError, match=r"traces\.db-wal has changes that are not in it") as refused,
        ):
            read(name)
        assert refused.value.mend == f"cp {path} {path}-wal FOLDER/, then --db FOLDER/traces.db"


def test_what_another_tool_left_half_done_is_not_read(folder: Path, path: Path) -> None:
    (folder / "traces.db-journal").write_bytes(b"half a transaction")
    with unwritable(folder, path), pytest.raises(StoreError, match=r"traces\.db-journal has changes"):
        read(path)


def test_a_reader_leaves_nothing_that_its_owner_may_not_write(folder: Path, path: Path) -> None:
    folder.chmod(0o777)
    path.chmod(0o644)
    with unwritable(path):
        assert read(path) == ["one"]
        assert [made.name for made in folder.iterdir()] == ["traces.db"]


def test_names_that_sqlite_would_take_for_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = Path("file:x.db?mode=memory")
    with Store(name) as store:
        store.add(records([entry(1, "Hi", LOCAL)], trace_id="one"))
    assert (tmp_path / name).is_file()
    assert read(name) == ["one"]


def test_a_store_that_goes_while_it_is_read(folder: Path, path: Path) -> None:
    with unwritable(folder, path):
        store = Store(path, create=False)
    with store:
        folder.chmod(0o755)
        path.unlink()
        with pytest.raises(StoreError, match="cannot be read"):
            list_traces(store)


def test_what_was_written_meanwhile_is_not_taken_for_what_is_there(folder: Path, path: Path) -> None:
    with unwritable(folder, path):
        store = Store(path, create=False)
    with store:
        assert len(list_traces(store)) == 1
        with path.open("ab") as stream:
            stream.write(bytes(4096))
        with pytest.raises(StoreChanged, match="was written while it was read"):
            list_traces(store)


def test_one_of_an_older_geom_has_to_be_copied(folder: Path) -> None:
    path = folder / "traces.db"
    old = Database(path)
    migrations.apply(old, stop_before="m002_trace_summaries")
    assert migrations.applied(old)[0].name == m001_traces.__name__
    old.conn.close()
    with unwritable(folder, path), pytest.raises(StoreError, match="older geom") as refused:
        read(path)
    assert refused.value.mend == f"cp {path} FOLDER/, then --db FOLDER/traces.db"


def test_one_that_cannot_be_read_either(folder: Path, path: Path) -> None:
    with unwritable(folder):
        pass
    path.chmod(0)
    with unwritable(folder), pytest.raises(StoreError, match="can neither be written nor read"):
        read(path)
