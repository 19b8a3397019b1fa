"""Live answers over a socket: streamed, stopped, broken off in every way; nothing that arrived is lost."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import msgspec
import pytest

from geomcli import config
from geomcli.store import Store
from geomcli.store_listing import list_traces
from geomcli.tui.app import GeomApp
from geomcli.tui.live import State
from geomcli.tui.panes.chat import ChatPane
from geomcli.tui.widgets.prompt import Prompt
from tests.tui.conftest import WIDE, MakeApp
from tests.tui.faulty import CUT, Server, entry, event, serving
from tests.tui.waiting import until

WORDS = [event(f" word{n}", entry(n, f" word{n}")) for n in range(1, 21)]
END = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": {"completion_tokens": 20}}


def app_for(make_app: MakeApp, settings: config.Settings, server: Server, **more: Any) -> GeomApp:
    return make_app(settings=msgspec.structs.replace(settings, base_url=server.url), **more)


def said(app: GeomApp) -> str:
    return " ".join(notification.message for notification in app._notifications)


def drawn(app: GeomApp) -> str:
    view = cast(ChatPane, app.screen).view
    return " ".join(view.render_line(y).text.strip() for y in range(view.size.height))


async def test_an_answer_is_streamed_shown_and_kept(make_app: MakeApp, settings: config.Settings) -> None:
    async with serving(*WORDS, END, "[DONE]") as server:
        app = app_for(make_app, settings, server)
        async with app.run_test(size=WIDE) as pilot:
            await until(lambda: app.live.state is State.READY)
            await pilot.press("enter", *"Hello", "enter")
            await until(lambda: bool(app.session.turns) and app.session.turns[0].saved)
            await pilot.press("escape")
            await asyncio.sleep(0.1)
            assert "word20" in drawn(app)
            assert "Hello" in drawn(app)
            await pilot.press("enter", *"Again", "enter")
            await until(lambda: len(app.session.turns) == 2 and app.session.turns[1].saved)
        assert [m["content"] for m in server.asked[1]["messages"]] == [
            "Hello", "".join(f" word{n}" for n in range(1, 21)), "Again"
        ]  # fmt: skip
    with Store(settings.db_path) as store:
        assert [row["tokens"] for row in list_traces(store)] == [20, 20]


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        ([CUT], "connection to"),
        (["{not json"], "an event that is not JSON"),
        ([event("x", {"decode_step": "two"})], "an event that geom cannot read"),
        ([{"error": {"message": "out of memory"}}], "out of memory"),
        ([], "closed the stream before its end"),
    ],
)
async def test_an_answer_that_breaks_off_keeps_what_arrived(
    make_app: MakeApp, settings: config.Settings, broken: list[Any], sentence: str
) -> None:
    async with serving(*WORDS[:8], *broken, pause=0.01) as server:
        app = app_for(make_app, settings, server)
        async with app.run_test(size=WIDE) as pilot:
            await until(lambda: app.live.state is State.READY)
            await pilot.press("enter", *"Hello", "enter")
            await until(lambda: bool(app.session.turns) and app.session.turns[0].saved)
            await asyncio.sleep(0.15)
            assert len(app.session.turns[0].tokens) == 8
            await until(lambda: sentence in said(app))
            assert "word8" in drawn(app)
            assert "What arrived is kept." in drawn(app)
            # Found again by itself, and the next question goes through.
            await until(lambda: app.live.state is State.READY)
            server.answer = [*WORDS, END, "[DONE]"]
            await pilot.press(*"More", "enter")
            await until(lambda: len(app.session.turns) == 2 and app.session.turns[1].finished)
            assert len(app.session.turns[0].tokens) == 8
    with Store(settings.db_path) as store:
        assert len(list(store.records(list_traces(store)[1]["id"]))) == 2 + 16 + 3


async def test_a_server_that_dies_and_returns_is_found(make_app: MakeApp, settings: config.Settings) -> None:
    async with serving(*WORDS, END, "[DONE]", pause=0.05) as server:
        app = app_for(make_app, settings, server)
        async with app.run_test(size=WIDE) as pilot:
            await until(lambda: app.live.state is State.READY)
            await pilot.press("enter", *"Hello", "enter")
            await until(lambda: bool(app.session.turns) and len(app.session.turns[0].tokens) > 3)
            await server.die()
            await until(lambda: app.session.turns[0].finished and app.live.state is State.LOST)
            arrived = [token.text for token in app.session.turns[0].tokens]
            assert 3 < len(arrived) < 20
            assert "lost, trying again" in app.live.status.text
            # What is typed now stays in its field until there is a server.
            await pilot.press(*"Still there?", "enter")
            await until(lambda: "there is no server" in said(app))
            assert app.screen.query_one(Prompt).text == "Still there?"
            assert len(app.session.turns) == 1
            await server.start()
            await until(lambda: app.live.state is State.READY)
            await until(lambda: f"Connected to {app.live.place} again." in said(app))
            await pilot.press("enter")
            await until(lambda: len(app.session.turns) == 2 and app.session.turns[1].saved)
            assert [token.text for token in app.session.turns[0].tokens] == arrived
            assert len(app.session.turns[1].tokens) == 20
        sent = [(message["role"], message["content"]) for message in server.asked[1]["messages"]]
        assert sent == [("user", "Hello"), ("assistant", "".join(arrived)), ("user", "Still there?")]
    with Store(settings.db_path) as store:
        assert [(row["tokens"], row["complete"]) for row in list_traces(store)] == [(20, True), (len(arrived), True)]


async def test_stop_ends_the_answer_and_keeps_it(make_app: MakeApp, settings: config.Settings) -> None:
    async with serving(*WORDS, END, "[DONE]", pause=0.1) as server:
        app = app_for(make_app, settings, server)
        async with app.run_test(size=WIDE) as pilot:
            await until(lambda: app.live.state is State.READY)
            await pilot.press("enter", *"Hello", "enter")
            await until(lambda: bool(app.session.turns) and len(app.session.turns[0].tokens) > 2)
            await pilot.press("ctrl+x")
            await until(lambda: app.session.turns[0].saved)
            assert app.session.turns[0].error == "interrupted"
            assert not app.live.running


async def test_leaving_in_the_middle_of_an_answer_keeps_it(make_app: MakeApp, settings: config.Settings) -> None:
    async with serving(*WORDS, END, "[DONE]", pause=0.1) as server:
        app = app_for(make_app, settings, server)
        async with app.run_test(size=WIDE) as pilot:
            await until(lambda: app.live.state is State.READY)
            await pilot.press("enter", *"Hello", "enter")
            await until(lambda: bool(app.session.turns) and len(app.session.turns[0].tokens) > 2)
            await pilot.press("ctrl+q")
            await pilot.pause()
    with Store(settings.db_path) as store:
        (row,) = list_traces(store)
        kinds = [record["record_type"] for record in store.records(row["id"])]
    assert kinds.count("token") > 2
    assert row["complete"]


async def test_an_answer_without_tokens(make_app: MakeApp, settings: config.Settings) -> None:
    async with serving({**END, "usage": {"completion_tokens": 0}}, "[DONE]") as server:
        app = app_for(make_app, settings, server)
        async with app.run_test(size=WIDE) as pilot:
            await until(lambda: app.live.state is State.READY)
            await pilot.press("enter", *"Hello", "enter")
            await until(lambda: bool(app.session.turns) and app.session.turns[0].finished)
            await asyncio.sleep(0.15)
            assert "(the answer is empty)" in drawn(app)
            assert app.session.conversation() == []


async def test_what_is_typed_without_a_server_is_not_lost(make_app: MakeApp) -> None:
    app = make_app()
    async with app.run_test(size=WIDE) as pilot:
        await until(lambda: app.live.state is State.ABSENT)
        await pilot.press("enter", *"Hello", "enter")
        await pilot.pause()
        assert app.screen.query_one(Prompt).text == "Hello"
        await until(lambda: "E starts the built-in engine" in said(app))
        assert app.session.turns == []
