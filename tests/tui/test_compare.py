"""Compare: how two traces are chosen, what is shown of them, jumps among their rows, refusals, copies."""

from __future__ import annotations

import asyncio
import json
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from geomcli import config, jsonl
from geomcli.comparison import compare
from geomcli.schema import Record
from geomcli.store import Store
from geomcli.store_queries import trace_list
from geomcli.trace import Trace
from geomcli.tui.app import GeomApp
from geomcli.tui.comparing import next_run
from geomcli.tui.panes.compare import ComparePane
from geomcli.tui.reading import Opened
from geomcli.tui.session import Overlay, Place
from geomcli.tui.widgets.picker import Picker
from tests.conftest import GEOM
from tests.library.made_traces import FLAT, LOCAL, LONG, MID
from tests.tui.conftest import NARROW, WIDE, MakeApp
from tests.tui.made_stores import filled, made, noisy
from tests.tui.waiting import until

SKY = ["The", " sky", " is", " blue", ",", " friend", "."]
SEA = ["The", " sea", " is", " deep", " blue", ",", " friend"]


def sky() -> list[Record]:
    return made("sky", [LOCAL] * 4 + [MID] * 3, texts=SKY)


def sea() -> list[Record]:
    return made("sea", [LOCAL] * 3 + [LONG] * 2 + [MID] * 2, texts=SEA, question="Why is the sea blue?")


def two(one: list[Record], other: list[Record], settings: config.Settings, **more: Any) -> GeomApp:
    opened = [Opened(f"{name}.jsonl", [trace], path=f"{name}.jsonl") for name, trace in (("a", one), ("b", other))]
    return GeomApp(settings, opened=opened, **more)


def pane(app: GeomApp) -> ComparePane:
    screen = app.screen_stack[0]
    assert isinstance(screen, ComparePane)
    return screen


def text_of(app: GeomApp, name: str) -> str:
    return str(pane(app).query_one(name).render())


def rows_of(app: GeomApp) -> list[str]:
    rows = pane(app).rows
    return [rows.render_line(y).text for y in range(min(rows.size.height, rows.count))]


async def compared(app: GeomApp) -> None:
    await until(lambda: app.current_mode == "compare" and pane(app).comparing.result is not None)


def said(app: GeomApp) -> str:
    return "\n".join(notification.message for notification in app._notifications)


async def test_two_traces_of_the_command_line_are_compared(settings: config.Settings) -> None:
    one, other = sky(), sea()
    app = two(one, other, settings)
    async with app.run_test(size=WIDE) as pilot:
        await compared(app)
        await pilot.pause()
        result = pane(app).comparing.result
        assert result == compare(Trace(one), Trace(other))
        head = text_of(app, "#sides")
        for part in ("A  sky", "B  sea", "Why is the sea blue?", f"{result.similarity.overall:.3f}", "direction"):
            assert part in head
        report = text_of(app, "#report")
        for sentence in result.differences:
            assert sentence in " ".join(report.split())
        for part in ("local mass", "heuristic axes", "ZONES", "semantic bridge", "rad apart", "▲", "▼", "NOTES"):
            assert part in report
        first = rows_of(app)
        assert '0 ▂ "The"' in first[0]
        assert '" sky"' in first[1]
        assert '" sea"' in first[1]
        assert any("≠" in row for row in first)
        assert any("–" in row for row in first)


async def test_rows_and_jumps(settings: config.Settings) -> None:
    app = two(sky(), sea(), settings)
    async with app.run_test(size=WIDE) as pilot:
        await compared(app)
        comparing, rows = pane(app).comparing, pane(app).rows
        assert comparing.result is not None
        alignment = comparing.result.alignment
        texts = [n for n, row in enumerate(alignment) if row.kind != "same"]
        zones = [n for n, row in enumerate(alignment) if row.zones_differ]
        assert len(texts) >= 3
        assert zones
        await pilot.press("d")
        assert rows.cursor == texts[0] == 1
        await pilot.press("n")
        assert rows.cursor == next(n for n in texts if n > 1 and n - 1 not in texts)
        await pilot.press("N")
        assert rows.cursor == 1
        await pilot.press("home", "z")
        assert rows.cursor == zones[0]
        await pilot.press("end")
        assert rows.cursor == len(alignment) - 1
        await pilot.press("n")
        await until(lambda: "There is no other text below." in said(app))
        await pilot.press("Z")
        assert rows.cursor in zones
        await pilot.press("pageup")
        assert rows.cursor == 0
        await pilot.press("down", "down", "up")
        assert rows.cursor == 1
        await pilot.press("pagedown")
        assert rows.cursor == len(alignment) - 1
        await pilot.click(rows, offset=(5, 3))
        assert rows.cursor == 3
        await pilot.click("#aligned-head", offset=(1 + 2, 1))
        assert rows.cursor == 2


async def test_swap_exchanges_the_sides(settings: config.Settings) -> None:
    app = two(sky(), sea(), settings)
    async with app.run_test(size=WIDE) as pilot:
        await compared(app)
        before = pane(app).comparing.result
        assert before is not None
        await pilot.press("x")
        await until(lambda: pane(app).comparing.result not in (None, before))
        after = pane(app).comparing.result
        assert after is not None
        assert (after.a, after.b) == (before.b, before.a)
        assert after.similarity == before.similarity
        assert [turn.id for turn in app.session.compared] == ["sea", "sky"]


async def test_one_trace_offers_the_list_and_it_is_searched(
    make_app: MakeApp, settings: config.Settings, demo: list[list[Record]]
) -> None:
    filled(settings.db_path)
    app = make_app(demo, mode="compare")
    async with app.run_test(size=WIDE) as pilot:
        await pilot.pause()
        assert "What shall this trace be compared with?" in text_of(app, "#invitation")
        assert app.session.turns[-1].id in text_of(app, "#invitation")
        await pilot.press("b")
        await until(lambda: isinstance(app.screen, Picker) and app.screen.choices.count == 14)
        picker = cast(Picker, app.screen)
        await pilot.press(*"question 7")
        await until(lambda: picker.choices.count == 1)
        await pilot.press(*" nothing")
        await until(lambda: picker.choices.count == 0)
        assert "No trace has these words." in str(picker.query_one("#picker-said").render())
        await pilot.press("enter")
        assert app.screen is picker
        await pilot.press(*["backspace"] * 8)
        await until(lambda: picker.choices.count == 1)
        await pilot.press("enter")
        await compared(app)
        assert [turn.id for turn in app.session.compared] == [app.session.turns[-1].id, "t07"]
        await pilot.press("a")
        await until(lambda: isinstance(app.screen, Picker) and app.screen.choices.count == 14)
        row = cast(Picker, app.screen).choices.render_line(1).text
        assert row.startswith(" A ")
        await pilot.press("escape")
        await until(lambda: app.screen is pane(app))
        assert len(app.session.compared) == 2


async def test_the_first_choice_is_a_and_keys_move_in_the_list(make_app: MakeApp, settings: config.Settings) -> None:
    names = filled(settings.db_path)
    app = make_app(mode="compare")
    async with app.run_test(size=NARROW) as pilot:
        await pilot.pause()
        assert "Two traces side by side" in text_of(app, "#invitation")
        for key, downs in (("b", 2), ("b", 3)):
            await pilot.press(key)
            await until(lambda: isinstance(app.screen, Picker) and app.screen.choices.count == 12)
            await pilot.press(*["down"] * (downs + 1), "up", "enter")
            await until(lambda: app.screen is pane(app))
            await until(lambda: bool(app.session.compared))
        await compared(app)
        assert [turn.id for turn in app.session.compared] == [names[2], names[3]]


@pytest.mark.parametrize(
    ("other", "message", "mend"),
    [
        (lambda: made("bare", [None, None]), "B has no fingerprint", "geom run"),
        (lambda: [{**sky()[0], "ruleset": "zones-v2"}, *sky()[1:]], "their zones do not mean the same", "thresholds"),
        (lambda: [{**sky()[0], "version": "9.0"}, *sky()[1:]], "B has trace format 9.0", ""),
        (lambda: sky()[:2], "B has no fingerprint", "geom run"),
    ],
)
async def test_what_cannot_be_compared_says_why_and_what_to_do(
    settings: config.Settings, other: Any, message: str, mend: str
) -> None:
    app = two(sky(), other(), settings)
    async with app.run_test(size=WIDE) as pilot:
        await until(lambda: app.current_mode == "compare" and pane(app).comparing.error is not None)
        await pilot.pause()
        shown = text_of(app, "#invitation")
        assert "These two cannot be compared." in shown
        assert message in shown
        assert mend in shown
        assert "choose another B" in shown
        await pilot.press("n", "z", "d", "down", "enter", "y", "x", "i", "J")
        assert app._exception is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (made("one", [LOCAL]), made("two", [LONG])),
        (made("one", [LOCAL]), made("wide", [MID] * 3, texts=["量子もつれ", "🙂🏳️‍🌈", "e\u0301\x1b[2J\n"])),
        (made("half", [LOCAL, None, MID]), made("cut", [LOCAL, MID], end=False)),
    ],
)
@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_odd_traces(settings: config.Settings, one: Any, other: Any, size: tuple[int, int]) -> None:
    app = two(one, other, settings)
    async with app.run_test(size=size) as pilot:
        await compared(app)
        await pilot.pause()
        rows = pane(app).rows
        for y in range(rows.size.height):
            strip = rows.render_line(y)
            assert strip.cell_length == rows.scrollable_content_region.width
            assert "\x1b" not in strip.text
        await pilot.press("i", "s", "s", "s", "s", "G", "n", "N")
        assert app._exception is None


async def test_parts_in_a_wide_and_in_a_narrow_terminal(settings: config.Settings) -> None:
    app = two(sky(), sea(), settings)

    def seen() -> tuple[bool, bool]:
        scroll = pane(app).query_one("#report-scroll")
        return pane(app).rows.region.width > 0, scroll.region.width > 0

    async with app.run_test(size=WIDE) as pilot:
        await compared(app)
        found = []
        for _ in range(3):
            await pilot.pause()
            found.append(seen())
            await pilot.press("i")
        assert found == [(True, True), (True, False), (False, True)]
        await pilot.resize_terminal(*NARROW)
        await pilot.pause()
        assert seen() == (True, False)
        await pilot.press("i")
        await pilot.pause()
        assert seen() == (False, True)
        scroll = pane(app).query_one("#report-scroll")
        await pilot.press("J", "J")
        assert scroll.scroll_offset.y == 10
        await pilot.press("K")
        assert scroll.scroll_offset.y == 5
        await pilot.press("i")
        await pilot.pause()
        assert seen() == (True, False)


async def test_axes_of_the_stored_traces(settings: config.Settings) -> None:
    app = two(sky(), sea(), settings)
    async with app.run_test(size=WIDE) as pilot:
        await compared(app)
        await pilot.press("t")
        await until(lambda: "there are not 3 different ones yet" in said(app))
        filled(settings.db_path)
        await pilot.press("t")
        await until(lambda: getattr(pane(app).comparing.result, "interpretation", None) is not None
                    and pane(app).comparing.result.interpretation.kind == "fitted")  # type: ignore[union-attr]  # fmt: skip
        await pilot.pause()
        assert "PCA axes of 12 stored traces" in text_of(app, "#report")
        assert "of the variance" in text_of(app, "#report")
        await pilot.press("t")
        await until(lambda: pane(app).comparing.result is not None)
        await pilot.pause()
        assert "heuristic axes" in text_of(app, "#report")


async def test_copies_are_what_the_command_writes_and_a_command_that_works(
    settings: config.Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = sky(), sea()
    (tmp_path / "a.jsonl").write_text(jsonl.dump(one))
    with Store(settings.db_path) as store:
        store.add(other)
    opened = [Opened("a.jsonl", [one], path="a.jsonl"), Opened("sea", [other], saved=True)]
    app = GeomApp(settings, opened=opened)
    copied: list[str] = []
    monkeypatch.setattr(app, "copy_to_clipboard", copied.append)
    async with app.run_test(size=WIDE) as pilot:
        await compared(app)
        await pilot.press("y", "Y")
    assert copied[1] == f"geom compare a.jsonl sea --db {settings.db}"
    command = [str(GEOM), *shlex.split(copied[1])[1:], "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=True)
    assert json.loads(done.stdout) == json.loads(copied[0])


async def test_a_trace_without_a_name_is_not_copied_as_a_command(
    make_app: MakeApp, demo: list[list[Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(demo, mode="compare")
    copied: list[str] = []
    monkeypatch.setattr(app, "copy_to_clipboard", copied.append)
    async with app.run_test(size=WIDE) as pilot:
        await pilot.pause()
        await pilot.press("y", "Y")
        await until(lambda: "There are no two traces" in said(app))
        app.session.compared = list(app.session.turns[:2])
        pane(app).compare()
        await compared(app)
        await pilot.press("Y")
        await until(lambda: "A is neither in the store nor in a file" in said(app))
        assert copied == []


async def test_enter_shows_the_row_in_the_chat(settings: config.Settings) -> None:
    app = two(sky(), sea(), settings)
    async with app.run_test(size=WIDE) as pilot:
        await compared(app)
        await pilot.press("down", "down", "enter")
        await until(lambda: app.current_mode == "chat")
        assert app.session.turn is not None
        assert app.session.turn.id == "sky"
        assert app.session.cursor == Place(0, 2)
        await pilot.press("5")
        await compared(app)
        assert [turn.id for turn in pane(app).comparing.turns] == ["sky", "sea"]


async def test_colours_follow_the_overlay(settings: config.Settings) -> None:
    app = two(sky(), sea(), settings)
    async with app.run_test(size=WIDE) as pilot:
        await compared(app)
        await pilot.pause()
        seen = set()
        for _ in Overlay:
            strip = pane(app).rows.render_line(2)
            seen.add(str([(segment.text, str(segment.style)) for segment in strip]))
            await pilot.press("s")
            await pilot.pause()
        assert len(seen) >= 3


async def test_a_trace_that_is_still_written_is_compared_again_at_its_end(make_app: MakeApp) -> None:
    app = make_app(mode="compare")
    whole = sky()
    async with app.run_test(size=WIDE) as pilot:
        app.session.show([sea()], title="sea")
        turn = app.session.begin()
        app.session.feed(turn, whole[:8])
        app.session.compared = [app.session.turns[0], turn]
        app.session.touch(app.session.take_changes())
        pane(app).compare()
        await compared(app)
        await pilot.pause()
        first = pane(app).comparing.result
        assert first is not None
        assert first.b.tokens == 3
        assert "still being written" in text_of(app, "#sides")
        app.session.feed(turn, whole[8:])
        await until(lambda: getattr(pane(app).comparing.result, "b", first.b).tokens == 7)
        await pilot.pause()
        assert "still being written" not in text_of(app, "#sides")


async def test_four_thousand_tokens_on_each_side(settings: config.Settings) -> None:
    random = np.random.default_rng(0)
    sides = [
        made(name, noisy(FLAT, n, tokens=4000), texts=[f" w{k}" for k in random.integers(0, 300, 4000)])
        for n, name in enumerate(("one", "two"))
    ]
    app = two(*sides, settings)
    async with app.run_test(size=WIDE) as pilot:
        await compared(app)
        await pilot.pause()
        rows = pane(app).rows
        assert rows.count > 4000
        assert rows.virtual_size.height == rows.count

        async def spent(key: str) -> float:
            times = []
            for _ in range(7):
                began = time.process_time()
                await pilot.press(key)
                await pilot.pause()
                times.append(time.process_time() - began)
            return sorted(times)[len(times) // 2]

        # Several times what a quiet machine needs: other work must not make this fail.
        for key in ("down", "pagedown", "n"):
            assert await spent(key) < 0.15
        await pilot.press("G")
        assert rows.cursor == rows.count - 1
        assert rows.scroll_offset.y + rows.size.height == rows.count


async def test_a_trace_that_is_gone_is_a_sentence(make_app: MakeApp, settings: config.Settings) -> None:
    filled(settings.db_path)
    app = make_app(mode="compare")
    async with app.run_test(size=WIDE) as pilot:
        await pilot.press("a")
        await until(lambda: isinstance(app.screen, Picker) and app.screen.choices.count == 12)
        await app.storage.call(lambda store: store._connection.execute("DELETE FROM traces"))
        await pilot.press("enter")
        await until(lambda: "no trace 't11'" in said(app))
        assert app.session.compared == []


async def test_a_store_that_cannot_be_read_is_said_in_the_list(make_app: MakeApp, settings: config.Settings) -> None:
    settings.db_path.write_text("no database")
    app = make_app(mode="compare")
    async with app.run_test(size=WIDE) as pilot:
        await pilot.press("a")
        await until(lambda: isinstance(app.screen, Picker))
        await until(lambda: "cannot be" in str(app.screen.query_one("#picker-said").render()))


def test_the_list_finds_words_in_every_field(tmp_path: Path) -> None:
    with Store(tmp_path / "t.db") as store:
        store.add(made("20261123-a", [LOCAL], question="Why 100% _sky_?", model="Qwen3-4B"))
        store.add(made("20261124-b", [None], question="Why not", model="SmolLM2"))

        def found(words: str, **more: Any) -> list[str]:
            return sorted(one.trace_id for one in trace_list(store, words, **more))

        assert found("") == found("why") == ["20261123-a", "20261124-b"]
        assert (
            found("qwen WHY") == found("syntax") == found("100%") == found("_sky_") == found("1123") == ["20261123-a"]
        )
        assert found("sky smol") == found("%%") == []
        assert len(found("", limit=1)) == 1
        assert {one.trace_id: one.steps for one in trace_list(store)} == {"20261123-a": 1, "20261124-b": 0}


def test_runs_are_jumped_between() -> None:
    flags = np.array([0, 1, 1, 0, 1, 0], dtype=bool)
    assert [next_run(flags, row, 1) for row in range(6)] == [1, 4, 4, 4, None, None]
    assert [next_run(flags, row, -1) for row in range(6)] == [None, None, 1, 1, 1, 4]
    assert next_run(np.zeros(0, bool), 0, 1) is None


async def test_enter_means_the_words_that_were_typed_however_slow_the_store_is(
    settings: config.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = GeomApp(settings, opened=[Opened("sky", [sky()])], mode="compare")
    async with app.run_test(size=WIDE) as pilot:
        await pilot.pause()
        await app.storage.add(sea())
        call = app.storage.call

        async def slow(action: Any) -> Any:
            await asyncio.sleep(0.3)
            return await call(action)

        monkeypatch.setattr(app.storage, "call", slow)
        await pilot.press("b")
        await until(lambda: isinstance(app.screen, Picker) and app.screen.choices.count == 2)
        await pilot.press(*"sea", "enter")
        await until(lambda: len(app.session.compared) == 2)
        assert app.session.compared[1].id == sea()[0]["trace_id"]
