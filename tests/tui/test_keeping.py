"""Nothing of an answer is lost on its way into the store, whatever the store does and whenever it does it."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from geomcli import config, jsonl
from geomcli.schema import Record
from geomcli.store import Store
from geomcli.store_listing import list_traces
from geomcli.tui.app import GeomApp
from geomcli.tui.live import State
from tests.tui.conftest import WIDE, MakeApp
from tests.tui.faulty import CUT, Server, entry, event, serving
from tests.tui.test_live import END, WORDS, said
from tests.tui.waiting import until


def app_of(make_app: MakeApp, settings: config.Settings, server: Server, db: Path | None = None) -> GeomApp:
    path = settings.db if db is None else str(db)
    return make_app(settings=msgspec.structs.replace(settings, base_url=server.url, db=path))


def stored(path: Path) -> list[list[Record]]:
    with Store(path) as store:
        return [list(store.records(row["id"])) for row in list_traces(store)]


def kinds(records: list[Record]) -> list[str]:
    return [record["record_type"] for record in records]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    Store(path).close()
    lock = sqlite3.connect(path, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        lock.execute("ROLLBACK")
        lock.close()


@pytest.mark.parametrize("by_key", [True, False], ids=["ctrl+s", "by itself"])
async def test_a_store_that_can_be_opened_later_gets_the_whole_answer(
    make_app: MakeApp, settings: config.Settings, tmp_path: Path, by_key: bool
) -> None:
    folder = tmp_path / "folder"
    folder.write_text("")
    async with serving(*WORDS, END, "[DONE]", pause=0 if by_key else 0.05) as server:
        app = app_of(make_app, settings, server, folder / "traces.db")
        async with app.run_test(size=WIDE) as pilot:
            await until(lambda: app.live.state is State.READY)
            await pilot.press("enter", *"Hello", "enter")
            await until(lambda: "cannot be opened" in said(app))
            if by_key:
                await until(lambda: app.session.turns[0].finished and not app.live.keeper.is_busy, 20)
            folder.unlink()
            folder.mkdir()
            if by_key:
                await pilot.press("escape", "ctrl+s")
            await until(lambda: app.session.turns[0].saved)
            if not by_key:
                await until(lambda: "nothing is missing" in said(app))
    (records,) = stored(folder / "traces.db")
    assert kinds(records).count("token") == 20
    assert kinds(records).count("step") == 20
    assert kinds(records)[-1] == "metrics"


async def test_what_is_owed_is_rescued_though_it_is_no_longer_shown(
    make_app: MakeApp, settings: config.Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("geomcli.store_connection.BUSY_MS", 20)
    with locked(settings.db_path):
        async with serving(*WORDS, END, "[DONE]") as server:
            app = app_of(make_app, settings, server)
            async with app.run_test(size=WIDE) as pilot:
                for question in ("One", "Two"):
                    await until(lambda: app.live.state is State.READY and not app.live.running)
                    await pilot.press("escape", "enter", *question, "enter")
                    await until(lambda: bool(app.session.turns) and app.session.turns[0].finished)
                    await pilot.press("escape", "ctrl+n")
                    await until(lambda: not app.session.turns)
        (kept,) = (tmp_path / "state").rglob("*.jsonl")
        assert str(kept) in app.live.lost
        assert [kinds(records).count("token") for records in jsonl.load(kept)] == [20, 20]


async def test_ctrl_s_at_the_very_end_of_an_answer_writes_all_of_it(
    make_app: MakeApp, settings: config.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The saver would come by itself only long after the key.
    monkeypatch.setattr("geomcli.tui.keeping._SAVE_SECONDS", 2.0)
    async with serving(*WORDS, END, "[DONE]") as server:
        app = app_of(make_app, settings, server)
        async with app.run_test(size=WIDE) as pilot:
            await until(lambda: app.live.state is State.READY)
            await app.live.ask("Hello")
            assert not app.session.turns[0].saved
            await pilot.press("ctrl+s", "ctrl+s")
            await until(lambda: app.session.turns[0].saved, 1.5)
            await until(lambda: not app.live.keeper.is_busy)
            assert app.live.keeper.owed == []
    (records,) = stored(settings.db_path)
    assert kinds(records).count("token") == 20
    assert kinds(records)[-1] == "metrics"


@pytest.mark.parametrize(
    "answer", [[CUT], [{"error": {"message": "out of memory"}}], []], ids=["cut", "error", "empty"]
)
async def test_a_question_without_any_answer_is_kept(
    make_app: MakeApp, settings: config.Settings, answer: list[object]
) -> None:
    async with serving(*answer) as server:
        app = app_of(make_app, settings, server)
        async with app.run_test(size=WIDE) as pilot:
            await until(lambda: app.live.state is State.READY)
            await pilot.press("enter", *"Hello", "enter")
            await until(lambda: bool(app.session.turns) and app.session.turns[0].saved)
    (records,) = stored(settings.db_path)
    assert next(record["content"] for record in records if record["record_type"] == "message") == "Hello"
    assert records[-1]["error"]


async def test_a_record_that_no_store_can_hold_takes_no_other_answer_with_it(
    make_app: MakeApp, settings: config.Settings, tmp_path: Path
) -> None:
    bad = [event(" bad", entry(1, " bad", drift=2**70)), END, "[DONE]"]
    async with serving(*bad) as server:
        app = app_of(make_app, settings, server)
        async with app.run_test(size=WIDE) as pilot:
            await until(lambda: app.live.state is State.READY)
            await app.live.ask("Bad")
            await until(lambda: "cannot do this: OverflowError" in said(app))
            server.answer = [*WORDS, END, "[DONE]"]
            await app.live.ask("Good")
            await until(lambda: app.session.turns[1].saved)
            await pilot.press("escape", "ctrl+s")
            await pilot.pause(0.2)
        assert app._exception is None
        assert [turn.saved for turn in app.session.turns] == [False, True]
        assert "cannot do this: OverflowError" in app.live.lost
    good = [records for records in stored(settings.db_path) if kinds(records).count("token") == 20]
    assert len(good) == 1
    assert good[0][-1]["record_type"] == "metrics"


async def test_an_answer_that_was_given_up_is_written_with_the_next_one(
    make_app: MakeApp, settings: config.Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geomcli.tui.keeping._SAVE_SECONDS", 0.05)
    folder = tmp_path / "folder"
    folder.write_text("")
    async with serving(*WORDS, END, "[DONE]") as server:
        app = app_of(make_app, settings, server, folder / "traces.db")
        async with app.run_test(size=WIDE):
            await until(lambda: app.live.state is State.READY)
            await app.live.ask("One")
            await until(lambda: not app.live.keeper.is_busy)
            folder.unlink()
            await app.live.ask("Two")
            await until(lambda: all(turn.saved for turn in app.session.turns))
    assert [kinds(records).count("token") for records in stored(folder / "traces.db")] == [20, 20]


async def test_what_the_store_has_is_saved_and_stands_in_nobodys_way(
    make_app: MakeApp, settings: config.Settings, demo: list[list[Record]]
) -> None:
    with Store(settings.db_path) as store:
        store.add(demo[0])
    app = make_app(demo)
    async with app.run_test(size=WIDE) as pilot:
        await pilot.pause()
        await pilot.press("ctrl+s")
        await until(lambda: all(turn.saved for turn in app.session.turns))
        assert "UNIQUE" not in said(app)
    assert len(stored(settings.db_path)) == 2


async def test_a_file_that_was_written_for_safety_goes_when_the_store_has_all(
    make_app: MakeApp, settings: config.Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geomcli.tui.keeping._SAVE_SECONDS", 5.0)
    async with serving(*WORDS, END, "[DONE]") as server:
        app = app_of(make_app, settings, server)
        async with app.run_test(size=WIDE):
            await until(lambda: app.live.state is State.READY)
            await app.live.ask("Hello")
            assert app.live.keeper.owed
    assert app.live.lost == ""
    assert list((tmp_path / "state").rglob("*.jsonl")) == []
    (records,) = stored(settings.db_path)
    assert kinds(records)[-1] == "metrics"


async def test_a_trace_that_was_read_late_ends_no_answer(
    make_app: MakeApp, settings: config.Settings, demo: list[list[Record]]
) -> None:
    with Store(settings.db_path) as store:
        name = store.add(demo[0])
    async with serving(*WORDS, END, "[DONE]", pause=0.02) as server:
        app = app_of(make_app, settings, server)
        async with app.run_test(size=WIDE) as pilot:
            await until(lambda: app.live.state is State.READY)
            asked = threading.Event()
            busy = asyncio.create_task(app.storage.call(lambda _store: asked.wait(60)))
            app.open_trace(name)
            await pilot.press("enter", *"Hello", "enter")
            await until(lambda: len(app.session.turns) == 1)
            asked.set()
            await busy
            await until(lambda: "is not shown: something else was begun" in said(app))
            await until(lambda: app.session.turns[0].saved)
            assert len(app.session.turns[0].tokens) == 20
            assert app.session.turns[0].error is None


async def test_without_saving_nothing_is_written_and_nothing_is_owed(
    make_app: MakeApp, settings: config.Settings
) -> None:
    async with serving(*WORDS, END, "[DONE]") as server:
        app = make_app(settings=msgspec.structs.replace(settings, base_url=server.url), save=False)
        async with app.run_test(size=WIDE):
            await until(lambda: app.live.state is State.READY)
            await app.live.ask("Hello")
            assert app.session.turns[0].finished
        assert app.live.lost == ""
    assert not settings.db_path.exists()


async def test_keys_are_answered_while_the_store_is_locked(
    make_app: MakeApp, settings: config.Settings, demo: list[list[Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geomcli.store_connection.BUSY_MS", 3_000)
    with Store(settings.db_path) as store:
        name = store.add(demo[0])
    app = make_app(demo)
    async with app.run_test(size=WIDE) as pilot:
        await pilot.pause()
        await app.storage.ls()
        with locked(settings.db_path):
            began = time.monotonic()
            await pilot.press("ctrl+s")
            app.open_trace(name)
            before = app.session.cursor
            await pilot.press("h", "h")
            assert app.session.cursor != before
            await pilot.press("5")
            await until(lambda: app.current_mode == "compare", 1)
            await pilot.press("ctrl+p")
            await until(lambda: "The store is busy" in said(app), 2)
            assert time.monotonic() - began < 3
            await pilot.press("escape")
        await until(lambda: app.session.title == name)
        assert not any(turn.finished and not turn.saved for turn in app.session.turns)
