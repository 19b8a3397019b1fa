"""The explorer on a store that may only be read: it lists and opens, and says that it cannot keep."""

from __future__ import annotations

import pytest

from geomcli.errors import StoreError
from geomcli.store import Store
from geomcli.tui.storage import Storage
from tests.library.made_traces import LOCAL, entry, records
from tests.unwritable import reachable_folder, unwritable


async def test_a_store_that_may_not_be_written_is_listed_and_opened() -> None:
    made = records([entry(1, "Hi", LOCAL)], trace_id="one")
    with reachable_folder() as folder:
        path = folder / "traces.db"
        with Store(path) as store:
            store.add(made)
        with unwritable(folder, path):
            storage = Storage(path)
            try:
                assert [row["id"] for row in await storage.ls()] == ["one"]
                assert await storage.records("last") == made
                with pytest.raises(StoreError, match="could not be written"):
                    await storage.add([{**made[0], "trace_id": "two"}, *made[1:]])
            finally:
                await storage.close()


async def test_one_that_its_owner_wrote_meanwhile_is_opened_anew() -> None:
    with reachable_folder() as folder:
        path = folder / "traces.db"
        with Store(path) as store:
            store.add(records([entry(1, "Hi", LOCAL)], trace_id="one"))
        storage = Storage(path)
        try:
            with unwritable(folder, path):
                assert [row["id"] for row in await storage.ls()] == ["one"]
            folder.chmod(0o755)
            path.chmod(0o644)
            with Store(path) as store:
                store.add(records([entry(1, "Hi", LOCAL)], trace_id="two"))
            with unwritable(folder, path):
                with pytest.raises(StoreError, match="was written while it was read"):
                    await storage.ls()
                assert sorted(row["id"] for row in await storage.ls()) == ["one", "two"]
        finally:
            await storage.close()


async def test_a_folder_that_may_not_be_written_has_no_store_to_keep_in() -> None:
    with reachable_folder() as folder, unwritable(folder):
        storage = Storage(folder / "traces.db")
        try:
            with pytest.raises(StoreError, match="may not be written"):
                await storage.add(records([entry(1, "Hi", LOCAL)]))
        finally:
            await storage.close()
