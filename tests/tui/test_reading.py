"""Traces that are longer than what is read before the first paint: shown at once, read on, never kept by half."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st

from geomcli import config, jsonl
from geomcli.cli.tui import _opened
from geomcli.comparison import compare
from geomcli.errors import StoreError, TraceError
from geomcli.schema import Record
from geomcli.store import Store
from geomcli.trace import Trace
from geomcli.tui import reading
from geomcli.tui.app import GeomApp
from geomcli.tui.session import Place, Session
from tests.library.made_traces import LOCAL, LONG
from tests.tui.conftest import WIDE
from tests.tui.made_stores import made, noisy
from tests.tui.waiting import until

TOKENS = 300


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes 100,000 tokens otherwise."""
    monkeypatch.setattr(reading, "FIRST", 40)
    monkeypatch.setattr(reading, "_BATCH", 30)
    monkeypatch.setattr(reading, "_PIECE", 10)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[asyncio.Event]:
    """Reading on waits until this is set."""
    go, batches = asyncio.Event(), reading.Reading._batches

    def waiting(self: reading.Reading, opened: reading.Opened) -> reading.Batches:
        inner = batches(self, opened)

        async def batch() -> list[Record]:
            await go.wait()
            return await inner()

        return batch

    monkeypatch.setattr(reading.Reading, "_batches", waiting)
    yield go
    go.set()


def long(name: str, seed: int = 0) -> list[Record]:
    return made(name, noisy(LOCAL if seed % 2 else LONG, seed, tokens=TOKENS))


def written(path: Path, *traces: list[Record]) -> Path:
    path.write_text("".join(jsonl.dump(records) for records in traces))
    return path


def app_of(settings: config.Settings, *names: str | Path, mode: str = "") -> GeomApp:
    return GeomApp(settings, opened=[_opened(str(name), settings) for name in names], mode=mode)


def hud(app: GeomApp) -> str:
    return str(app.screen.query_one("Hud").render())


def said(app: GeomApp) -> str:
    return " ".join(notification.message for notification in app._notifications)


async def test_a_file_is_shown_at_once_and_read_to_its_end(
    settings: config.Settings, tmp_path: Path, held: asyncio.Event
) -> None:
    trace = long("t")
    app = app_of(settings, written(tmp_path / "t.jsonl", trace))
    async with app.run_test(size=WIDE) as pilot:
        await pilot.pause()
        shown = len(app.session.turns[0].tokens)
        assert 0 < shown < 40
        await until(lambda: "reading …" in hud(app))
        held.set()
        await until(lambda: app.session.turns[0].finished and not app.session.reading)
        assert len(app.session.turns[0].tokens) == TOKENS
        assert list(app.session.turns[0].trace.records()) == trace
        assert app.session.cursor == Place(0, TOKENS - 1)
        assert app.session.turns[0].path.endswith("t.jsonl")
        await until(lambda: "reading" not in hud(app))
        assert f"{TOKENS} tok" in hud(app)


async def test_who_looks_at_the_beginning_stays_there(
    settings: config.Settings, tmp_path: Path, held: asyncio.Event
) -> None:
    app = app_of(settings, written(tmp_path / "t.jsonl", long("t")))
    async with app.run_test(size=WIDE) as pilot:
        await pilot.pause()
        await pilot.press("home", "l")
        held.set()
        await until(lambda: app.session.turns[0].finished and not app.session.reading)
        assert app.session.cursor == Place(0, 1)


async def test_every_trace_of_a_file_is_there(settings: config.Settings, tmp_path: Path) -> None:
    traces = [long("a", 1), made("b", [LOCAL]), long("c", 2)]
    app = app_of(settings, written(tmp_path / "t.jsonl", *traces))
    async with app.run_test(size=WIDE):
        await until(lambda: len(app.session.turns) == 3 and not app.session.reading)
        assert [list(turn.trace.records()) for turn in app.session.turns] == traces
        assert [turn.path for turn in app.session.turns] == ["", "", ""]


@pytest.mark.parametrize("by_key", [False, True])
async def test_a_stored_trace_is_read_on(settings: config.Settings, by_key: bool) -> None:
    trace = long("t")
    with Store(settings.db_path) as store:
        store.add(trace)
    app = app_of(settings, *([] if by_key else ["last"]))
    async with app.run_test(size=WIDE):
        if by_key:
            app.open_trace("t")
        await until(lambda: bool(app.session.turns) and app.session.turns[0].finished and not app.session.reading)
        (turn,) = app.session.turns
        assert (list(turn.trace.records()), turn.saved, app.session.title) == (trace, True, "t")


async def test_a_file_that_goes_on_as_no_trace_ends_the_app_with_its_line(
    settings: config.Settings, tmp_path: Path
) -> None:
    lines = jsonl.dump(long("t")).splitlines()
    lines[200] = "{}"
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(lines) + "\n")
    app = app_of(settings, path)
    async with app.run_test(size=WIDE):
        await until(lambda: app.unreadable is not None)
    assert isinstance(app.unreadable, TraceError)
    assert "line 201" in app.unreadable.message
    assert app.return_code == 1


async def test_a_store_that_fails_midway_shows_nothing_by_half(
    settings: config.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(settings.db_path) as store:
        store.add(long("t"))
    whole = Store.records

    def broken(self: Store, trace_id: str) -> Iterator[Record]:
        for number, record in enumerate(whole(self, trace_id)):
            if number == 100:
                raise StoreError("the trace store cannot be read: disk I/O error.")
            yield record

    monkeypatch.setattr(Store, "records", broken)
    app = app_of(settings)
    async with app.run_test(size=WIDE):
        app.open_trace("t")
        await until(lambda: "disk I/O error" in said(app))
        assert app.session.turns == []
        assert app.session.reading == ""


async def test_what_is_not_whole_is_neither_saved_nor_written_nor_asked_on(
    settings: config.Settings, tmp_path: Path, held: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    app = app_of(settings, written(tmp_path / "t.jsonl", long("t")))
    async with app.run_test(size=WIDE) as pilot:
        await pilot.pause()
        await until(lambda: app.session.reading == "t.jsonl")
        for key in ("ctrl+s", "e"):
            app.clear_notifications()
            await pilot.press(key)
            await until(lambda: "t.jsonl is still being read" in said(app))
        assert [path.name for path in tmp_path.glob("*.jsonl")] == ["t.jsonl"]
        app.clear_notifications()
        await pilot.press("enter", *"Hi", "enter")
        await until(lambda: "t.jsonl is still being read" in said(app))
        assert len(app.session.turns) == 1


async def test_a_new_chat_ends_the_reading(settings: config.Settings, tmp_path: Path, held: asyncio.Event) -> None:
    app = app_of(settings, written(tmp_path / "t.jsonl", long("t")))
    async with app.run_test(size=WIDE) as pilot:
        await pilot.pause()
        await until(lambda: app.session.reading == "t.jsonl")
        await pilot.press("ctrl+n")
        held.set()
        await pilot.pause(0.2)
        assert app.session.turns == []
        assert app.session.reading == ""


async def test_two_are_compared_when_both_are_whole(
    settings: config.Settings, tmp_path: Path, held: asyncio.Event
) -> None:
    one, other = long("a", 1), long("b", 2)
    with Store(settings.db_path) as store:
        store.add(other)
    app = app_of(settings, written(tmp_path / "a.jsonl", one), "b")
    async with app.run_test(size=WIDE) as pilot:
        await pilot.pause()
        assert app.current_mode == "compare"
        await until(lambda: "Reading a.jsonl …" in str(app.screen.query_one("#invitation").render()))
        held.set()
        comparing = app.screen.comparing  # type: ignore[attr-defined]
        await until(lambda: comparing.result is not None)
        assert comparing.result == compare(Trace(one), Trace(other))
        assert [turn.id for turn in comparing.turns] == ["a", "b"]
        assert (comparing.turns[0].path, comparing.turns[1].saved) == (str(tmp_path / "a.jsonl"), True)


@how(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.lists(st.integers(1, 25), min_size=1))
def test_turns_do_not_depend_on_where_records_are_cut(sizes: list[int], cuts: list[int]) -> None:
    traces = [made(f"t{n}", noisy(LOCAL, n, tokens=size)) for n, size in enumerate(sizes)]
    records = [record for trace in traces for record in trace]
    session, at, turn = Session(), 0, 0
    while at < len(records):
        step = cuts[turn % len(cuts)]
        session.extend(records[at : at + step], saved=True)
        at, turn = at + step, turn + 1
    assert [list(shown.trace.records()) for shown in session.turns] == traces
    assert all(shown.saved and shown.finished for shown in session.turns)
    session.grown()
    assert session.cursor == Place(len(sizes) - 1, sizes[-1] - 1)
