"""What goes wrong around the app: sockets, screens, the store, files. Nothing crashes, nothing that arrived is lost."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from textual.pilot import Pilot

from geomcli import config, jsonl
from geomcli.schema import Record
from geomcli.store import Store
from geomcli.store_listing import list_traces
from geomcli.tui.app import DEMO_FILE, GeomApp
from geomcli.tui.live import State
from geomcli.tui.panes.chat import ChatPane
from tests.conftest import GEOM
from tests.tui.conftest import NARROW, WIDE, MakeApp
from tests.tui.faulty import Server, entry, event, serving
from tests.tui.terminal import terminal
from tests.tui.test_live import END, WORDS, drawn, said
from tests.tui.waiting import until

ODD = ["👩‍🔬", " 量子", "🇩🇪", "e\u0301", "\u202eabc", "\x1b[2J", "\t|", "가", "﷽", "\u200b", "ﬀ", "🙂\n"]


async def asked(app: GeomApp, pilot: Pilot[Any], text: str = "Hello") -> None:
    await until(lambda: app.live.state is State.READY)
    await pilot.press("enter", *text, "enter")


@pytest.mark.parametrize("size", [WIDE, NARROW, (40, 12), (12, 5), (1, 1)], ids=str)
async def test_odd_characters_are_drawn_within_the_screen(
    make_app: MakeApp, settings: config.Settings, size: tuple[int, int]
) -> None:
    words = [event(word, entry(n, word)) for n, word in enumerate(ODD * 3, 1)]
    async with serving(*words, END, "[DONE]") as server:
        app = make_app(settings=msgspec.structs.replace(settings, base_url=server.url))
        async with app.run_test(size=size) as pilot:
            await until(lambda: app.live.state is State.READY)
            await app.live.ask("Grüße 👋")
            await until(lambda: app.session.turns[0].saved)
            await pilot.pause()
            view = cast(ChatPane, app.screen).view
            for y in range(view.size.height):
                assert view.render_line(y).cell_length <= view.size.width
            assert not any(ord(c) < 32 or c in "\u202e\x9b" for c in drawn(app))
            await pilot.press("home", "l", "l", "p", "i", "t", "end")
            assert [token.text for token in app.session.turns[0].tokens] == ODD * 3
    assert app._exception is None


async def test_the_terminal_may_change_its_size_while_an_answer_is_written(
    make_app: MakeApp, settings: config.Settings
) -> None:
    words = [event(f" word{n}", entry(n, f" word{n}")) for n in range(1, 201)]
    async with serving(*words, END, "[DONE]", pause=0.005) as server:
        app = make_app(settings=msgspec.structs.replace(settings, base_url=server.url))
        async with app.run_test(size=WIDE) as pilot:
            await asked(app, pilot)
            for size in ((80, 24), (30, 8), (5, 3), (200, 60), (80, 24), (120, 36)):
                await pilot.resize_terminal(*size)
                await asyncio.sleep(0.1)
            await until(lambda: app.session.turns[0].saved)
            await pilot.pause()
            await asyncio.sleep(0.15)
            assert len(app.session.turns[0].tokens) == 200
            assert "word200" in drawn(app)
            view = cast(ChatPane, app.screen).view
            assert view.scroll_y == view.max_scroll_y


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([b"\xff\xfe\x00garbage\n\n"], "closed the stream before its end"),
        ([b"event: ping\nid: 7\nretry: x\n\n: a comment\n\n"], "closed the stream before its end"),
        ([b"data: " + b"[" * 50_000 + b"\n\n"], "an event that"),
        ([b"data: {\"choices\": null, \"attention_tokens\": [null]}\n\n"], "cannot read"),
        ([b"data: \n\n"], "closed the stream before its end"),
    ],
    ids=["bytes", "comments", "depth", "null", "nothing"],
)  # fmt: skip
async def test_a_stream_that_is_no_stream_is_a_sentence(
    make_app: MakeApp, settings: config.Settings, lines: list[bytes], sentence: str
) -> None:
    async with _raw(*lines) as url:
        app = make_app(settings=msgspec.structs.replace(settings, base_url=url))
        async with app.run_test(size=WIDE) as pilot:
            await asked(app, pilot)
            await until(lambda: bool(app.session.turns) and app.session.turns[0].finished)
            await pilot.pause()
            await until(lambda: sentence in said(app))
            assert "What arrived is kept." in drawn(app)


class _raw(Server):  # noqa: N801  (a context manager)
    """Answers with one good token and then with these bytes as they are."""

    def __init__(self, *raw: bytes) -> None:
        super().__init__()
        self.raw = raw

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        first = msgspec.json.encode(WORDS[0])
        for part in (b"data: " + first + b"\n\n", *self.raw):
            writer.write(part)
        await writer.drain()

    async def __aenter__(self) -> str:
        await self.start()
        return self.url

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


async def test_a_locked_store_is_written_later_and_nothing_is_missing(
    make_app: MakeApp, settings: config.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geomcli.store_connection.BUSY_MS", 50)
    Store(settings.db_path).close()
    lock = sqlite3.connect(settings.db_path, isolation_level=None)
    async with serving(*WORDS, END, "[DONE]") as server:
        app = make_app(settings=msgspec.structs.replace(settings, base_url=server.url))
        async with app.run_test(size=WIDE) as pilot:
            await app.storage.ls()
            lock.execute("BEGIN EXCLUSIVE")
            await asked(app, pilot)
            await until(lambda: "The answer stays here" in said(app))
            assert "word20" in drawn(app)
            assert not app.session.turns[0].saved
            lock.execute("ROLLBACK")
            await until(lambda: app.session.turns[0].saved)
            await until(lambda: "nothing is missing" in said(app))
    with Store(settings.db_path) as store:
        (row,) = list_traces(store)
        assert row["complete"]
        assert row["tokens"] == 20
        assert sum(r["record_type"] == "step" for r in store.records(row["id"])) == 20
    lock.close()


async def test_a_full_disk_keeps_the_answer_on_screen_and_saves_it_when_there_is_room(
    make_app: MakeApp, settings: config.Settings
) -> None:
    long = [event(f" {'word' * 200}{n}", entry(n, f" word{n}")) for n in range(1, 200)]
    async with serving(*long, END, "[DONE]") as server:
        app = make_app(settings=msgspec.structs.replace(settings, base_url=server.url))
        async with app.run_test(size=WIDE) as pilot:

            def fill(store: Store) -> None:
                pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
                store._connection.execute(f"PRAGMA max_page_count = {pages + 1}")

            await app.storage.call(fill)
            await asked(app, pilot)
            await until(lambda: app.session.turns[0].finished if app.session.turns else False)
            await until(lambda: "database or disk is full" in said(app))
            await until(lambda: not app.live.keeper.is_busy, 20)
            assert len(app.session.turns[0].tokens) == 199
            await app.storage.call(lambda store: store._connection.execute("PRAGMA max_page_count = 100000"))
            await pilot.press("escape", "ctrl+s")
            await until(lambda: app.session.turns[0].saved)
    with Store(settings.db_path) as store:
        (row,) = list_traces(store)
        assert sum(r["record_type"] == "token" for r in store.records(row["id"])) == 199
        assert row["complete"]


async def test_an_answer_that_could_never_be_saved_is_in_a_file_at_the_end(
    make_app: MakeApp, settings: config.Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("geomcli.store_connection.BUSY_MS", 20)
    Store(settings.db_path).close()
    lock = sqlite3.connect(settings.db_path, isolation_level=None)
    async with serving(*WORDS, END, "[DONE]") as server:
        app = make_app(settings=msgspec.structs.replace(settings, base_url=server.url))
        async with app.run_test(size=WIDE) as pilot:
            await app.storage.ls()
            lock.execute("BEGIN EXCLUSIVE")
            await asked(app, pilot)
            await until(lambda: bool(app.session.turns) and app.session.turns[0].finished)
        assert "could not be written: database is locked" in app.live.lost
    (kept,) = (tmp_path / "state").rglob("*.jsonl")
    assert str(kept) in app.live.lost
    assert sum(r["record_type"] == "token" for r in jsonl.load(kept)[0]) == 20
    lock.close()


async def test_a_store_that_cannot_be_opened_is_a_sentence(
    make_app: MakeApp, settings: config.Settings, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    async with serving(*WORDS, END, "[DONE]") as server:
        odd = msgspec.structs.replace(settings, base_url=server.url, db=str(tmp_path / "file" / "traces.db"))
        app = make_app(settings=odd)
        async with app.run_test(size=WIDE) as pilot:
            await asked(app, pilot)
            await until(lambda: "cannot be opened" in said(app))
            await until(lambda: app.session.turns[0].finished)
            await pilot.press("escape", "ctrl+s", "ctrl+p")
            await pilot.pause()
            assert len(app.session.turns[0].tokens) == 20
            await pilot.press("escape", "e")
            await pilot.pause()
    (exported,) = tmp_path.glob("*.jsonl")
    assert sum(r["record_type"] == "token" for r in jsonl.load(exported)[0]) == 20


async def test_a_file_and_a_folder_that_are_deleted_while_they_are_shown(
    make_app: MakeApp, demo: list[list[Record]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "gone"
    here.mkdir()
    monkeypatch.chdir(here)
    app = make_app(demo)
    async with app.run_test(size=WIDE) as pilot:
        await pilot.pause()
        here.rmdir()
        await pilot.press("e", "y", "Y", "home", "n", "1")
        await pilot.pause()
        await until(lambda: "cannot be written: no such file or directory" in said(app))
        await until(lambda: "ctrl+s keeps the trace in the store" in said(app))
        await pilot.press("ctrl+s")
        await until(lambda: all(turn.saved for turn in app.session.turns))


def test_a_trace_file_may_go_once_it_is_open(home: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(DEMO_FILE.read_text())
    with terminal(
        tmp_path, ["tui", str(path)], {**home, "GEOM_DB": str(tmp_path / "t.db")}, columns=80, rows=24
    ) as seen:
        seen.wait("trace.jsonl", "haiku")
        path.unlink()
        seen.press("home", "l", "p", "g", "e")
        seen.wait("Written to")
        seen.press("C-q")
        assert seen.ended() == 0
    assert len(jsonl.load(next(tmp_path.glob("*.jsonl")))) == 2


@pytest.mark.parametrize(
    ("text", "said_"),
    [
        ('[tui.keys]\n"token.pinn" = "y"\n', "there is no action 'token.pinn'; did you mean token.pin"),
        ('[tui.keys]\n"token.pin" = "i"\n', 'both on i'),
        ('[tui]\nsignal = "rainbow"\n', "signal must be one of zone, entropy, drift, influence, off"),
        ('[tui]\ntheme = "geom-lihgt"\n', "did you mean geom-light"),
        ("[tui]\ncolour = 1\n", "unknown field"),
    ],
)  # fmt: skip
def test_a_configuration_that_cannot_be_meant_is_refused(
    home: dict[str, str], tmp_path: Path, text: str, said_: str
) -> None:
    (tmp_path / "geom.toml").write_text(text)
    environment = {**home, "GEOM_CONFIG": str(tmp_path / "geom.toml")}
    done = subprocess.run([GEOM, "tui"], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 2, done.stderr
    assert said_ in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
