"""The chat pane over a recorded trace: cursor, pins, links, colours, folds, freeze, search, copy, save."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from textual import events
from textual.message import Message
from textual.pilot import Pilot

from geomcli import jsonl
from geomcli.display import END_MARK
from geomcli.schema import Record
from geomcli.store import Store
from geomcli.store_listing import list_traces
from geomcli.tui.app import GeomApp
from geomcli.tui.panes.chat import ChatPane
from geomcli.tui.session import Overlay, Place
from geomcli.tui.widgets.prompt import Prompt
from tests.tui.conftest import NARROW, WIDE, MakeApp


def chat(app: GeomApp) -> ChatPane:
    return cast(ChatPane, app.screen)


def drawn(app: GeomApp) -> str:
    view = chat(app).view
    return "\n".join(view.render_line(y).text for y in range(view.size.height))


async def settled(pilot: Pilot[Any], seconds: float = 0.15) -> None:
    await asyncio.sleep(seconds)
    await pilot.pause()


async def test_the_text_and_the_newest_token_are_there(make_app: MakeApp, demo: list[list[Record]]) -> None:
    app = make_app(demo)
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        last = app.session.turns[-1]
        assert app.session.cursor == Place(len(demo) - 1, len(last.tokens) - 1)
        words = " ".join(line.strip() for line in drawn(app).splitlines())
        assert last.tokens[-2].text.strip() in words
        assert "you" in words


async def test_keys_move_the_cursor_across_turns(make_app: MakeApp, demo: list[list[Record]]) -> None:
    app = make_app(demo)
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        await pilot.press("home")
        assert app.session.cursor == Place(0, 0)
        assert not app.session.following
        await pilot.press("l", "l", "h")
        assert app.session.cursor == Place(0, 1)
        await pilot.press("right_square_bracket")
        assert app.session.cursor == Place(0, 11)
        await pilot.press("right_curly_bracket")
        assert app.session.cursor == Place(1, 0)
        await pilot.press("h")
        assert app.session.cursor == Place(0, len(app.session.turns[0].tokens) - 1)
        await pilot.press("end")
        assert app.session.following


async def test_a_link_is_followed_and_the_way_back_found(make_app: MakeApp, demo: list[list[Record]]) -> None:
    app = make_app(demo)
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        start = app.session.cursor
        await pilot.press("g")
        target = app.session.cursor
        assert target is not None
        assert start is not None
        assert target != start
        turn = app.session.turns[start.turn]
        looked_at = {app.session.place_of(start.turn, link.position) for link in turn.tokens[start.token].links()}
        assert target in looked_at
        await pilot.press("ctrl+o")
        assert app.session.cursor == start


async def test_three_pins_at_most_the_oldest_goes(make_app: MakeApp, demo: list[list[Record]]) -> None:
    app = make_app(demo)
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        await pilot.press("home", *"plplplp")
        assert app.session.pins == [Place(0, n) for n in (1, 2, 3)]
        await pilot.press("p")
        assert app.session.pins == [Place(0, n) for n in (1, 2)]
        head = str(chat(app).lens.query_one("#lens-head").render())
        assert "pins 1 2 –" in head


async def test_a_click_pins_and_a_hover_shows(make_app: MakeApp, demo: list[list[Record]]) -> None:
    app = make_app(demo)
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        await pilot.press("home")
        view = chat(app).view
        x, y, place = _visible_token(app)
        await pilot.hover(view, offset=(x, y))
        assert app.session.hover == place
        await pilot.click(view, offset=(x, y))
        assert app.session.cursor == place
        assert app.session.pins == [place]


def _visible_token(app: GeomApp) -> tuple[int, int, Place]:
    """Where some answer token of more than two letters is drawn, by the meta data of its segment."""
    view = chat(app).view
    for y in range(view.scrollable_content_region.height):
        x = 0
        for segment in view.render_line(y):
            meta = segment.style.meta if segment.style else {}
            if "token" in meta and len(segment.text.strip()) > 2 and segment.text.strip() == segment.text:
                gutter = view.gutter
                return x + gutter.left + 1, y + gutter.top, Place(meta["turn"], meta["token"])
            x += segment.cell_length
    raise AssertionError("no token is drawn")


async def test_every_colour_draws_and_none_changes_the_text(make_app: MakeApp, demo: list[list[Record]]) -> None:
    app = make_app(demo)
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        seen = []
        for _ in Overlay:
            seen.append(app.session.overlay)
            assert app.session.turns[-1].tokens[-2].text.strip() in drawn(app)
            await pilot.press("s")
            await settled(pilot, 0.05)
        assert seen == list(Overlay)
        assert app.session.overlay is Overlay.ZONE


async def test_freeze_holds_the_view_and_counts(make_app: MakeApp, demo: list[list[Record]]) -> None:
    app = make_app()
    async with app.run_test(size=WIDE) as pilot:
        session = app.session
        turn = session.begin()
        records = demo[0]
        session.feed(turn, records[:20])
        await settled(pilot)
        shown = len(turn.tokens)
        await pilot.press("space")
        session.feed(turn, records[20:])
        await settled(pilot)
        assert len(turn.tokens) == shown
        held = sum(r["record_type"] == "token" for r in records[20:])
        assert session.held == held
        assert f"FROZEN +{held}" in str(chat(app).query_one("#hud").render())
        await pilot.press("space")
        assert len(turn.tokens) == shown + held
        assert session.held == 0


async def test_search_by_text_zone_and_step(make_app: MakeApp, demo: list[list[Record]]) -> None:
    app = make_app(demo)
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        word = app.session.turns[0].tokens[3].text.strip()
        await pilot.press("home", "slash", *word, "enter")
        assert Place(0, 3) in app.session.found
        first = app.session.cursor
        assert first in app.session.found
        await pilot.press("slash", *(["backspace"] * 20), *"@4", "enter")
        assert app.session.cursor == Place(0, 4)
        await pilot.press("n")
        assert app.session.cursor == Place(1, 4)
        await pilot.press("N")
        assert app.session.cursor == Place(0, 4)
        await pilot.press("slash", *(["backspace"] * 20), *"zone:nowhere", "enter")
        assert "there is no zone" in str(app.screen.query_one("#find-said").render())


async def test_copies_are_the_record_and_a_command(make_app: MakeApp, demo: list[list[Record]]) -> None:
    app = make_app(demo)
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        await pilot.press("home", "y")
        await settled(pilot)
        copied = json.loads(app.clipboard)
        assert copied["steps"][0]["decode_step"] == 1
        assert copied["trace_id"] == demo[0][0]["trace_id"]
        await pilot.press("Y")
        await settled(pilot)
        words = shlex.split(app.clipboard)
        assert words[:2] == ["geom", "run"]
        assert words[-1] == demo[0][1]["content"]
        await pilot.press("end", "Y")
        await settled(pilot)
        words = shlex.split(app.clipboard)
        assert words[0] == "curl"
        assert json.loads(words[-1])["messages"][-1]["content"] == app.session.turns[-1].prompt[-1]["content"]


async def test_save_and_export_keep_every_record(make_app: MakeApp, demo: list[list[Record]], tmp_path: Path) -> None:
    app = make_app(demo)
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        await pilot.press("ctrl+s")
        await settled(pilot, 0.4)
        await pilot.press("e")
        await settled(pilot)
        assert all(turn.saved for turn in app.session.turns)
    with Store(app.storage.path) as store:
        assert {row["id"] for row in list_traces(store)} == {records[0]["trace_id"] for records in demo}
    (exported,) = tmp_path.glob("*.jsonl")
    assert jsonl.load(exported) == demo


async def test_the_lens_lies_over_the_text_where_it_is_narrow(make_app: MakeApp, demo: list[list[Record]]) -> None:
    app = make_app(demo)
    async with app.run_test(size=NARROW) as pilot:
        await settled(pilot)
        lens = chat(app).lens
        assert not lens.display
        await pilot.press("i")
        assert lens.display
        await pilot.press("i")
        assert not lens.display
        await pilot.resize_terminal(*WIDE)
        await settled(pilot)
        assert lens.display


async def test_the_demo_plays_and_can_be_ended(make_app: MakeApp, demo: list[list[Record]]) -> None:
    app = make_app(demo=True)
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot, 1.5)
        assert app.session.player is not None
        assert 0 < len(app.session.turns[0].tokens) < len([r for r in demo[0] if r["record_type"] == "token"])
        await pilot.press("ctrl+x")
        await settled(pilot)
        assert app.session.player is None
        assert [list(turn.trace.records()) for turn in app.session.turns] == demo


async def test_scrolling_up_stops_following(make_app: MakeApp, demo: list[list[Record]]) -> None:
    app = make_app(demo)
    async with app.run_test(size=(80, 16)) as pilot:
        await settled(pilot)
        view = chat(app).view
        assert view.max_scroll_y > 0
        assert view.scroll_y == view.max_scroll_y
        view.scroll_up(animate=False)
        await settled(pilot)
        assert not app.session.following
        turn = app.session.begin()
        app.session.stop_following()
        before = view.scroll_y
        app.session.feed(turn, demo[0])
        await settled(pilot)
        assert view.scroll_y == before
        await pilot.press("end")
        await settled(pilot)
        assert view.scroll_y == view.max_scroll_y


@pytest.mark.parametrize("first", ["enter", "ctrl+n"])
async def test_a_question_is_whole_however_fast_it_is_typed(make_app: MakeApp, first: str) -> None:
    app = make_app()
    async with app.run_test(size=WIDE) as pilot:
        await pilot.pause()
        prompt = app.screen.query_one(Prompt)
        sent: list[str] = []
        prompt.post_message = _noting(prompt.post_message, sent)  # type: ignore[method-assign]
        for key in [first, *"Hello", "shift+enter", *"you", "enter"]:
            character = key if len(key) == 1 else None
            app.post_message(events.Key(key, character))
        await settled(pilot)
        assert sent == ["Hello\nyou"]


def _noting(post: Callable[[Message], bool], sent: list[str]) -> Callable[[Message], bool]:
    def noted(message: Message) -> bool:
        if isinstance(message, Prompt.Sent):
            sent.append(message.text)
        return post(message)

    return noted


async def test_the_end_mark_of_an_answer_is_not_text_but_can_be_looked_at(
    make_app: MakeApp, demo: list[list[Record]]
) -> None:
    assert demo[0][-1]["record_type"] == "metrics"
    app = make_app(demo)
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        last = app.session.turns[-1].tokens[-1]
        assert last.text == "<|im_end|>"
        assert "im_end" not in drawn(app)
        assert drawn(app).count(END_MARK) == 2
        assert app.session.token is last
        assert "<|im_end|>" in str(chat(app).lens.query_one("#lens-head").render())
        await pilot.press("slash", *"im_end", "enter")
        assert len(app.session.found) == 2


async def test_a_row_of_the_lens_shows_where_its_token_is(make_app: MakeApp, demo: list[list[Record]]) -> None:
    app = make_app(demo)
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        body = chat(app).lens.query_one("#lens-body")
        before = drawn_styles(app)
        await pilot.hover(body, offset=(8, 1))
        await settled(pilot)
        place = app.session.named
        assert place is not None
        assert app.session.hover is None
        turn = app.session.turns[app.session.cursor.turn]  # type: ignore[union-attr]
        shown = [link for link in app.session.token.links() if not turn.is_sink(link.position)]  # type: ignore[union-attr]
        assert place == app.session.place_of(app.session.cursor.turn, shown[0].position)  # type: ignore[union-attr]
        assert drawn_styles(app) != before
        await pilot.hover("#hud")
        await settled(pilot)
        assert app.session.named is None


def drawn_styles(app: GeomApp) -> list[str]:
    view = chat(app).view
    return [str(segment.style) for y in range(view.size.height) for segment in view.render_line(y)]


async def test_tab_opens_and_closes_the_lens(make_app: MakeApp, demo: list[list[Record]]) -> None:
    app = make_app(demo)
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        await pilot.press("tab")
        assert not chat(app).lens.display
        await pilot.press("tab")
        assert chat(app).lens.display
        assert app.screen.focused is chat(app).view


async def test_the_width_of_the_lens_is_remembered(make_app: MakeApp, demo: list[list[Record]]) -> None:
    app = make_app(demo)
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        before = chat(app).lens.outer_size.width
        await pilot.press("greater_than_sign", "greater_than_sign")
        await settled(pilot)
        assert chat(app).lens.outer_size.width == before + 8
    again = make_app(demo)
    async with again.run_test(size=WIDE) as pilot:
        await settled(pilot)
        assert chat(again).lens.outer_size.width == before + 8
