"""The router pane: the zone and what it advises, decisions, and advice that is applied, kept and taken back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from geomcli import config, preferences
from geomcli.recommendation import decisions
from geomcli.schema import Record
from geomcli.store import Store
from geomcli.store_listing import list_traces
from geomcli.tui.app import GeomApp
from geomcli.tui.live import State
from geomcli.tui.panes.router import RouterPane
from geomcli.tui.session import Place
from geomcli.tui.steering import applied_to
from geomcli.tui.widgets.router_view import DecisionList
from tests.tui.conftest import NARROW, WIDE, MakeApp
from tests.tui.faulty import Server, entry, event, serving
from tests.tui.made import drawn, made, said, settled, text_of
from tests.tui.waiting import until

# Every step of the fake server is in semantic_bridge.
WORDS = [event(f" word{n}", entry(n, f" word{n}")) for n in range(1, 9)]
END = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": {"completion_tokens": 8}}
CALM = {"temperature": 0.6, "top_p": 0.95, "attention_fingerprint_mode": True}


def app_for(make_app: MakeApp, settings: config.Settings, server: Server, **more: Any) -> GeomApp:
    return make_app(settings=msgspec.structs.replace(settings, base_url=server.url), **more)


def rows(app: GeomApp) -> list[str]:
    return [line for line in drawn(listed(app)) if line]


def listed(app: GeomApp) -> DecisionList:
    return cast(RouterPane, app.screen).list


async def ask(app: GeomApp, pilot: Any, text: str) -> None:
    """Ask in Chat and come back to the router when the answer is in the store."""
    turns = len(app.session.turns)
    await until(lambda: app.live.state is State.READY and not app.live.running)
    await pilot.press("1", "enter", *text, "enter")
    await until(lambda: len(app.session.turns) == turns + 1 and app.session.turns[-1].saved)
    await pilot.press("escape", "3")
    await settled(pilot)


async def test_what_is_applied_to_the_next_run_is_in_its_request_once(
    make_app: MakeApp, settings: config.Settings
) -> None:
    async with serving(*WORDS, END, "[DONE]") as server:
        app = app_for(make_app, settings, server, mode="router")
        async with app.run_test(size=WIDE) as pilot:
            await ask(app, pilot, "One")
            assert "semantic bridge" in text_of(app, "router-now")
            await pilot.press("a")
            await settled(pilot)
            assert "temp 0.6  top_p 0.95  fingerprint  advised for one run" in text_of(app, "router-plan")
            await pilot.press("1")
            await settled(pilot)
            assert "advised for one run" in text_of(app, "ask-with")
            await ask(app, pilot, "Two")
            assert "nothing applied" in text_of(app, "router-plan")
            applied = applied_to(app.session.turns[1].trace.header)
            assert applied is not None
            assert [str(change) for change in applied.changes] == [
                "temperature 0.0 → 0.6", "top_p unset → 0.95", "capture raw → fingerprint",
            ]  # fmt: skip
            assert any("answer 2  applied for one run: temp 0 → 0.6  top_p – → 0.95" in row for row in rows(app))
            assert any("nothing: it was asked so" in row for row in rows(app))
            await ask(app, pilot, "Three")
    first, second, third = server.asked
    assert {name: second.get(name) for name in CALM} == CALM
    assert "attention_prompt_tokens" not in second
    for body in (first, third):
        assert (body["temperature"], body.get("top_p"), body["attention_fingerprint_mode"]) == (0.0, None, False)
    # The store knows it, too: the trace shows it again when it is opened.
    with Store(settings.db_path) as store:
        headers = [next(iter(store.records(row["id"]))) for row in list_traces(store)]
    assert [applied_to(header) is not None for header in headers] == [False, True, False]


async def test_always_holds_over_a_restart_until_it_is_taken_back(make_app: MakeApp, settings: config.Settings) -> None:
    async with serving(*WORDS, END, "[DONE]") as server:
        app = app_for(make_app, settings, server, mode="router")
        async with app.run_test(size=WIDE) as pilot:
            await pilot.press("A")
            await settled(pilot)
            assert "for every run, once there is advice" in text_of(app, "router-plan")
            await ask(app, pilot, "One")
            await ask(app, pilot, "Two")
        again = app_for(make_app, settings, server, mode="router")
        async with again.run_test(size=WIDE) as pilot:
            await settled(pilot)
            assert "temp 0.6  top_p 0.95  fingerprint  advised for every run" in text_of(again, "router-plan")
            await ask(again, pilot, "Three")
            assert any("applied for every run: " in row for row in rows(again))
            await pilot.press("c")
            await settled(pilot)
            assert "nothing applied" in text_of(again, "router-plan")
            await ask(again, pilot, "Four")
    assert [body["temperature"] for body in server.asked] == [0.0, 0.6, 0.6, 0.0]
    assert preferences.load() == preferences.Preferences()


async def test_always_is_switched_off_by_its_own_key(make_app: MakeApp, demo: list[list[Record]]) -> None:
    app = make_app(demo, mode="router")
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        await pilot.press("A")
        assert app.live.steering.plan().scope == "always"
        await pilot.press("A")
        assert app.live.steering.plan().advice is None
        await until(lambda: "no further run" in said(app))


async def test_kept_advice_asks_for_no_mode_that_the_server_does_not_let_out(
    make_app: MakeApp, settings: config.Settings
) -> None:
    far = preferences.Preferences().apply_to_next(preferences.Advice(0.7, None, "sketch"))
    preferences.save(far)
    async with serving(*WORDS, END, "[DONE]") as server:
        app = app_for(make_app, settings, server, mode="router")
        async with app.run_test(size=WIDE) as pilot:
            await ask(app, pilot, "One")
    (body,) = server.asked
    assert body["temperature"] == 0.7
    assert "attention_sketch_mode" not in body
    assert body["attention_fingerprint_mode"] is True


async def test_a_question_that_cannot_be_asked_uses_nothing_up(make_app: MakeApp, demo: list[list[Record]]) -> None:
    app = make_app(demo, mode="router")
    async with app.run_test(size=WIDE) as pilot:
        await until(lambda: app.live.state is State.ABSENT)
        await pilot.press("a", "1", "enter", *"Hi", "enter")
        await settled(pilot)
        assert app.live.steering.plan().scope == "next_run"


async def test_a_state_folder_that_cannot_be_written_is_said(
    make_app: MakeApp, demo: list[list[Record]], tmp_path: Path
) -> None:
    (tmp_path / "state").write_text("a file where the folder has to be")
    app = make_app(demo, mode="router")
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        await pilot.press("a")
        await until(lambda: "It holds until geom ends." in said(app))
        assert app.live.steering.plan().scope == "next_run"


async def test_decisions_are_those_of_the_library_and_enter_goes_to_their_token(
    make_app: MakeApp, demo: list[list[Record]]
) -> None:
    app = make_app(demo, mode="router")
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        expected = []
        for number, trace in enumerate(demo):
            steps = [record for record in trace if record["record_type"] == "step"]
            expected += [(number, None), *((number, found) for found in decisions(steps, trace[0]["capture"]))]
        assert listed(app).entries == expected
        assert listed(app).selected == len(expected) - 1
        number, last = expected[-1]
        assert last is not None
        await pilot.press("enter")
        assert app.session.cursor == Place(number, last.token_index)
        assert "THEN" in text_of(app, "router-now")
        await pilot.press("ctrl+o")
        await settled(pilot)
        assert "NOW" in text_of(app, "router-now")
        await pilot.press("pageup", "enter")
        assert app.session.cursor == Place(0, 0)
        await pilot.press("down", "k", "j")
        assert listed(app).selected == 1
        await pilot.click(listed(app), offset=(20, 0))
        assert listed(app).selected == 0


async def test_advice_is_that_of_the_step_that_is_shown(make_app: MakeApp) -> None:
    app = make_app([made(["local"] * 6 + ["long"] * 6)], mode="router")
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        assert "long range" in text_of(app, "router-now")
        assert "sketch" in text_of(app, "router-now")
        await pilot.press("home", *"lllll")
        await settled(pilot)
        assert "syntax floor" in text_of(app, "router-now")
        await pilot.press("a")
        assert app.live.steering.plan().ask.temperature == 0.3


async def test_the_list_scrolls_and_stays_where_it_is_put(make_app: MakeApp) -> None:
    shapes = (["local"] * 5 + ["mid"] * 5) * 30
    app = make_app([made(shapes)], mode="router")
    async with app.run_test(size=NARROW) as pilot:
        await settled(pilot)
        view = listed(app)
        assert view.count == 61
        assert view.scroll_y == view.max_scroll_y > 0
        await pilot.press("pageup")
        assert view.selected == 60 - view.page
        before = view.selected
        turn = app.session.begin()
        app.session.feed(turn, made(shapes))
        await settled(pilot)
        assert view.count == 122
        assert view.selected == before
        await pilot.press(*["pagedown"] * 60)
        assert view.selected == 121


async def test_a_frozen_view_decides_nothing_new(make_app: MakeApp) -> None:
    app = make_app(mode="router")
    async with app.run_test(size=WIDE) as pilot:
        trace = made(["local"] * 4 + ["mid"] * 6)
        turn = app.session.begin()
        app.session.feed(turn, trace[:10])
        await settled(pilot)
        await pilot.press("space")
        app.session.feed(turn, trace[10:])
        await settled(pilot)
        assert listed(app).count == 2
        await pilot.press("space")
        await settled(pilot)
        assert listed(app).count == 3


@pytest.mark.parametrize("size", [WIDE, NARROW])
@pytest.mark.parametrize(
    ("trace", "sentence"),
    [
        (made([None, None]), "No step up to this one has numbers"),
        (made(["mid"]), "No zone has 3 of the last 1 steps"),
        (made(["mid"] * 4, ["你好", "🙂", "e\u0301", "\x1b["]), "semantic bridge"),
        (made([None, "flat", "flat", "flat"]), "diffuse"),
        (made(["local", "mid"] * 2000), "#3999 of 4000"),
    ],
    ids=["no numbers", "one token", "wide characters", "first lost", "4000 tokens"],
)
async def test_odd_traces(make_app: MakeApp, trace: list[Record], sentence: str, size: tuple[int, int]) -> None:
    app = make_app([trace], mode="router")
    async with app.run_test(size=size) as pilot:
        await settled(pilot)
        assert size == NARROW or sentence in " ".join(text_of(app, "router-now").split())
        await pilot.press("home", "enter", "end", "up", "a", "i", "t", "t", "s")
        await settled(pilot)
    assert app._exception is None


async def test_rules_that_are_not_known_are_not_shown_as_evidence(make_app: MakeApp) -> None:
    trace = made(["mid"] * 4)
    trace[0]["ruleset"] = "zones-v9"
    app = make_app([trace], mode="router")
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        assert "classified by zones-v9" in " ".join(text_of(app, "router-now").split())
        assert "not known here" in " ".join(text_of(app, "router-evidence").split())


async def test_an_empty_router_says_what_to_do_and_every_key_survives(make_app: MakeApp) -> None:
    app = make_app(mode="router")
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        assert "ask something in Chat" in text_of(app, "router-now")
        await pilot.press("a", "enter", "up", "pagedown", "c")
        await until(lambda: "There is no advice yet" in said(app))
        await until(lambda: "There is no decision yet" in said(app))
        await until(lambda: "Nothing was applied" in said(app))


async def test_live_decisions_have_a_time_and_replayed_ones_none(
    make_app: MakeApp, settings: config.Settings, demo: list[list[Record]]
) -> None:
    async with serving(*WORDS, END, "[DONE]") as server:
        app = app_for(make_app, settings, server, mode="router")
        async with app.run_test(size=WIDE) as pilot:
            await ask(app, pilot, "One")
            assert "time" in text_of(app, "decision-head")
            (decision,) = app.live.steering.decisions(app.session.turns[0])
            assert decision.time_ms is not None
    replay = make_app(demo, mode="router")
    async with replay.run_test(size=WIDE) as pilot:
        await settled(pilot)
        assert "time" not in text_of(replay, "decision-head")


async def test_a_header_of_any_content_shows(make_app: MakeApp) -> None:
    for router in ({"scope": "soon"}, {"changes": 1}, [], "x"):
        trace = made(["mid"] * 4)
        trace[0]["router"] = router
        app = make_app([json.loads(json.dumps(trace))], mode="router")
        async with app.run_test(size=WIDE) as pilot:
            await settled(pilot)
            assert any(row.lstrip("▌ ").startswith("answer 1") for row in rows(app))


async def test_an_update_of_a_long_answer_decides_what_is_new(make_app: MakeApp) -> None:
    app = make_app([made(["mid"] * 4000)], mode="router")
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        log = app.live.steering.log_of(app.session.turns[0])
        assert len(log.settled) == 4000
        added: list[Record] = []
        log.add = lambda step, time_ms=None: added.append(step)  # type: ignore[method-assign]
        app.session.feed(app.session.turns[0], made(["mid"] * 4003)[-12:])
        await settled(pilot)
        assert len(added) <= 3
