"""The manifold: points of the session and of the store, the cursor among them, what is opened and compared from it."""

from __future__ import annotations

import json
import time
from typing import Any, cast

import numpy as np
import pytest
from textual.geometry import Size

from geomcli import config
from geomcli.fingerprint import fingerprint_from_histogram
from geomcli.schema import Record
from geomcli.store import Store
from geomcli.store_queries import TracePoint, TracePoints
from geomcli.tui.app import GeomApp
from geomcli.tui.cloud import TokenCloud, of_traces
from geomcli.tui.panes.manifold import ManifoldPane
from geomcli.tui.session import Overlay, Place, Session
from geomcli.tui.turn import Turn
from geomcli.tui.widgets.grid import Grid, Window, window_of
from geomcli.tui.widgets.manifold_texts import _fitting
from geomcli.zones import UNKNOWN, ZONE_NAMES
from tests.library.made_traces import LOCAL, LONG
from tests.tui.conftest import NARROW, WIDE, MakeApp
from tests.tui.made_stores import filled, made, noisy
from tests.tui.waiting import until


def pane(app: GeomApp) -> ManifoldPane:
    return cast(ManifoldPane, app.screen)


def text_of(app: GeomApp, name: str) -> str:
    return str(app.screen.query_one(name).render())


def picture(app: GeomApp) -> list[str]:
    scatter = pane(app).scatter
    return [scatter.render_line(y).text for y in range(scatter.size.height)]


async def at_store(app: GeomApp, scope: str = "all") -> None:
    pane(app).choose_scope(scope)  # type: ignore[arg-type]
    await until(lambda: not pane(app).manifold.loading)
    # Where there are points, the plane has its place on the screen.
    await until(lambda: not len(pane(app).manifold.cloud) or pane(app).scatter.size.width > 0)


async def test_the_session_s_tokens_are_points_with_the_cursor_on_the_newest(
    make_app: MakeApp, demo: list[list[Record]]
) -> None:
    app = make_app(demo, mode="manifold")
    async with app.run_test(size=WIDE) as pilot:
        await pilot.pause()
        manifold = pane(app).manifold
        assert manifold.scope == "session"
        captured = sum(token.captured for turn in app.session.turns for token in turn.tokens)
        assert len(manifold.cloud) == captured
        assert manifold.key == app.session.cursor
        assert manifold.is_here
        assert "●" in "".join(picture(app))
        assert f"{captured} tokens" in text_of(app, "#scopes")
        assert "PCA" in text_of(app, "#scopes")
        await until(lambda: "No discovery artifacts" in text_of(app, "#scopes"))
        assert manifold.cloud.projection.directions(0)[0].split(",")[0] in text_of(app, "#axis-across")
        assert manifold.cloud.projection.directions(1)[1] in text_of(app, "#axis-down")
        assert "● you" in text_of(app, "#point")
        assert "in this cell" not in text_of(app, "#point")


async def test_scopes_in_their_order_and_by_mouse(make_app: MakeApp, settings: config.Settings) -> None:
    filled(settings.db_path)
    app = make_app(mode="manifold")
    async with app.run_test(size=WIDE) as pilot:
        await until(lambda: len(pane(app).manifold.cloud) == 12)
        assert pane(app).manifold.scope == "recent"
        counts = {}
        for _ in range(4):
            await pilot.press("o")
            await until(lambda: not pane(app).manifold.loading)
            counts[pane(app).manifold.scope] = len(pane(app).manifold.cloud)
        assert counts == {"saved": 11, "all": 12, "session": 0, "recent": 12}
        await pilot.press("O")
        assert pane(app).manifold.scope == "session"
        await pilot.click("#scopes", offset=(text_of(app, "#scopes").index("saved") + 1, 0))
        assert pane(app).manifold.scope == "saved"


@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_arrows_reach_every_cell_and_n_every_point(
    make_app: MakeApp, settings: config.Settings, size: tuple[int, int]
) -> None:
    filled(settings.db_path, 40)
    app = make_app(mode="manifold")
    async with app.run_test(size=size) as pilot:
        await at_store(app)
        scatter, reached = pane(app).scatter, set()
        open_cells = [scatter._cell]
        while open_cells:
            cell = open_cells.pop()
            if cell is None or cell in reached:
                continue
            reached.add(cell)
            near = (scatter.grid.toward(cell, dx, dy) for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)))
            open_cells += [found for found in near if found is not None]
        assert reached == set(np.flatnonzero(scatter.grid.counts).tolist())
        for key, axis, sign in (("right", 0, 1), ("left", 0, -1), ("up", 1, 1), ("down", 1, -1)):
            for _ in range(40):
                before = scatter.cursor
                await pilot.press(key)
                if scatter.cursor == before:
                    break
            places = pane(app).manifold.cloud.xy[:, axis] * sign
            step = np.ptp(places) / (scatter.size.width if axis == 0 else scatter.size.height) * 1.1
            assert places[scatter.cursor] >= places.max() - step, key
            assert pane(app).manifold.chosen == scatter.cursor


async def test_points_in_one_cell_are_stepped_through(make_app: MakeApp, settings: config.Settings) -> None:
    with Store(settings.db_path) as store:
        for n in range(3):
            store.add(made(f"same{n}", [LOCAL, LOCAL]))
        store.add(made("other", [LONG, LONG]))
    app = make_app(mode="manifold")
    async with app.run_test(size=WIDE) as pilot:
        await at_store(app)
        pane(app).scatter.select(pane(app).manifold.cloud.index("same0"))
        await pilot.pause()
        assert "of 3 in this cell" in text_of(app, "#point")
        seen = []
        for _ in range(3):
            await pilot.press("n")
            seen.append(pane(app).manifold.key)
        assert set(seen) == {"same0", "same1", "same2"}
        await pilot.press("N")
        assert pane(app).manifold.key == seen[1]


async def test_enter_opens_the_trace_and_details_say_what_it_is(make_app: MakeApp, settings: config.Settings) -> None:
    filled(settings.db_path)
    app = make_app(mode="manifold")
    async with app.run_test(size=WIDE) as pilot:
        await at_store(app)
        pane(app).scatter.select(pane(app).manifold.cloud.index("t05"))
        await pilot.pause()
        said = text_of(app, "#point")
        for part in (
            "t05",
            "Question 5",
            "6 tokens",
            "semantic bridge",
            "local",
            "mass by distance",
            "Strong semantic",
        ):
            assert part in said, said
        pane(app).scatter.select(pane(app).manifold.cloud.index("t11"))
        await pilot.pause()
        assert "cut off" in text_of(app, "#point")
        await pilot.press("enter")
        await until(lambda: app.current_mode == "chat")
        assert [turn.id for turn in app.session.turns] == ["t11"]
        # The map knows now where the session is.
        await pilot.press("4")
        await pilot.pause()
        assert pane(app).manifold.is_here
        assert "you are here" in text_of(app, "#legend")


async def test_enter_on_a_token_goes_to_it_in_the_chat(make_app: MakeApp, demo: list[list[Record]]) -> None:
    app = make_app(demo, mode="manifold")
    async with app.run_test(size=WIDE) as pilot:
        await pilot.pause()
        pane(app).scatter.select(pane(app).manifold.cloud.index(Place(0, 3)))
        await pilot.pause()
        await pilot.press("enter")
        await until(lambda: app.current_mode == "chat")
        assert app.session.cursor == Place(0, 3)


async def test_compare_with_what_is_open_and_with_what_was_marked(
    make_app: MakeApp, settings: config.Settings, demo: list[list[Record]]
) -> None:
    filled(settings.db_path)
    app = make_app(demo, mode="manifold")
    async with app.run_test(size=WIDE) as pilot:
        await at_store(app)
        pane(app).scatter.select(pane(app).manifold.cloud.index("t03"))
        await pilot.pause()
        await pilot.press("c")
        await until(lambda: app.current_mode == "compare")
        assert [turn.id for turn in app.session.compared] == [app.session.turns[-1].id, "t03"]
    app = make_app(mode="manifold")
    async with app.run_test(size=WIDE) as pilot:
        await at_store(app)
        for name in ("t03", "t04"):
            pane(app).scatter.select(pane(app).manifold.cloud.index(name))
            await pilot.pause()
            await pilot.press("c")
            await until(lambda: bool(app.session.compared))
        await until(lambda: app.current_mode == "compare")
        assert [turn.id for turn in app.session.compared] == ["t03", "t04"]


async def test_a_click_selects_and_two_open(make_app: MakeApp, settings: config.Settings) -> None:
    filled(settings.db_path)
    app = make_app(mode="manifold")
    async with app.run_test(size=WIDE) as pilot:
        await at_store(app)
        await pilot.pause()
        scatter = pane(app).scatter
        other = next(n for n in range(12) if n != scatter.cursor and n not in scatter.here_too)
        cell = int(scatter.grid.cell[other])
        offset = (cell % scatter.grid.columns, cell // scatter.grid.columns)
        await pilot.click(scatter, offset=offset)
        assert pane(app).manifold.chosen in scatter.grid.members(cell)
        await pilot.click(scatter, offset=offset, times=2)
        await until(lambda: app.current_mode == "chat")


async def test_zoom_keeps_the_cursor_in_sight_and_returns(make_app: MakeApp, demo: list[list[Record]]) -> None:
    app = make_app(demo, mode="manifold")
    async with app.run_test(size=WIDE) as pilot:
        await pilot.pause()
        scatter = pane(app).scatter
        await pilot.press("plus", "plus", "plus", "plus")
        assert scatter.zoom == pytest.approx(1.5**4)
        assert scatter._cell is not None
        for index in range(0, len(pane(app).manifold.cloud), 7):
            scatter.select(index)
            assert scatter._cell is not None
        await pilot.press("minus")
        assert scatter.zoom == pytest.approx(1.5**3)
        await pilot.press("0")
        assert scatter.zoom == 1
        assert scatter.grid.inside.all()


async def test_dots_and_glyphs_and_no_colour(
    make_app: MakeApp, demo: list[list[Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(demo, mode="manifold")
    async with app.run_test(size=WIDE) as pilot:
        await pilot.pause()
        assert any(glyph in "".join(picture(app)) for glyph in "▂◆")
        await pilot.press("b")
        assert any(0x2800 <= ord(c) < 0x2900 for line in picture(app) for c in line)
        await pilot.press("b")
        assert not any(0x2800 <= ord(c) < 0x2900 for line in picture(app) for c in line)
    monkeypatch.setenv("NO_COLOR", "1")
    app = make_app(mode="manifold")
    async with app.run_test(size=WIDE) as pilot:
        app.session.show([made("many", noisy(LOCAL, 1, tokens=600))], title="many")
        pane(app).choose_scope("session")
        await pilot.pause()
        assert len(pane(app).manifold.cloud) == 600
        assert not pane(app).scatter.draws_dots


async def test_colours_follow_the_overlay(make_app: MakeApp, demo: list[list[Record]]) -> None:
    app = make_app(demo, mode="manifold")
    async with app.run_test(size=WIDE) as pilot:
        await pilot.pause()
        manifold = pane(app).manifold
        for overlay in (Overlay.ENTROPY, Overlay.DRIFT, Overlay.INFLUENCE):
            await pilot.press("s")
            values = manifold.values()
            assert app.session.overlay is overlay
            assert values is not None
            assert values.shape == (len(manifold.cloud),)
            assert np.nanmax(values) <= 1
            assert f"shaded by {overlay.value}" in text_of(app, "#legend")


async def test_copying_a_point(
    make_app: MakeApp, settings: config.Settings, demo: list[list[Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(settings.db_path)
    app = make_app(demo, mode="manifold")
    copied: list[str] = []
    monkeypatch.setattr(app, "copy_to_clipboard", copied.append)
    async with app.run_test(size=WIDE) as pilot:
        await pilot.pause()
        await pilot.press("y", "Y")
        assert json.loads(copied[0])["trace_id"] == app.session.turns[-1].id
        assert copied[1].startswith(("geom run", "curl"))
        await at_store(app)
        await pilot.press("y", "Y")
        point = json.loads(copied[2])
        assert point["trace_id"] == pane(app).manifold.key
        assert len(point["fingerprint"]) == 20
        assert copied[3] == f"geom traces show {point['trace_id']} --db {settings.db}"


async def test_what_is_written_appears_and_the_cursor_stays(make_app: MakeApp) -> None:
    app = make_app(mode="manifold")
    trace = made("live", noisy(LOCAL, 1, tokens=40))
    async with app.run_test(size=WIDE) as pilot:
        pane(app).choose_scope("session")
        await pilot.pause()
        assert "No token of this session has a fingerprint yet" in text_of(app, "#nothing")
        turn = app.session.begin()
        app.session.feed(turn, trace[:12])
        await until(lambda: len(pane(app).manifold.cloud) == 5)
        chosen = pane(app).manifold.key
        app.session.feed(turn, trace[12:])
        await until(lambda: len(pane(app).manifold.cloud) == 40)
        assert pane(app).manifold.key == chosen
        assert pane(app).manifold.cloud.projection.n == 40
        await pilot.press("g")
        assert pane(app).manifold.key == Place(0, 39)


async def test_nothing_to_show_says_what_to_do(make_app: MakeApp, settings: config.Settings) -> None:
    app = make_app(mode="manifold")
    async with app.run_test(size=NARROW) as pilot:
        await until(lambda: not pane(app).manifold.loading)
        await pilot.pause()
        said = text_of(app, "#nothing")
        assert "No fingerprints in the newest 200 traces" in said
        assert "geom run" in said
        await pilot.press("left", "n", "enter", "c", "y", "g", "plus", "b")
        assert not settings.db_path.exists()
    assert app._exception is None


async def test_a_store_that_cannot_be_read_is_a_sentence(make_app: MakeApp, settings: config.Settings) -> None:
    settings.db_path.write_text("no database")
    app = make_app(mode="manifold")
    async with app.run_test(size=WIDE) as pilot:
        await until(lambda: not pane(app).manifold.loading)
        await pilot.pause()
        assert "cannot be" in text_of(app, "#nothing")


@pytest.mark.parametrize("count", [1, 2])
async def test_one_point_and_two(make_app: MakeApp, settings: config.Settings, count: int) -> None:
    with Store(settings.db_path) as store:
        for n in range(count):
            store.add(made(f"t{n}", [LOCAL], question="量子もつれ 🙂 " * 9))
    app = make_app(mode="manifold")
    async with app.run_test(size=NARROW) as pilot:
        await at_store(app)
        await pilot.press("right", "down", "left", "up")
        assert pane(app).manifold.point is not None
        assert "…" in text_of(app, "#point")


def test_a_token_cloud_reads_each_token_once_and_knows_new_turns() -> None:
    trace = made("x", [*noisy(LOCAL, 0, tokens=8), None, *noisy(LONG, 1, tokens=3)])
    turn, cloud = Turn(trace[:6]), TokenCloud()
    assert len(cloud.update([turn])) == 2
    turn.take(trace[6:])
    made_cloud = cloud.update([turn])
    assert [key.token for key in made_cloud.keys if isinstance(key, Place)] == [*range(8), 9, 10, 11]
    assert made_cloud.xy == pytest.approx(made_cloud.projection.project(made_cloud.fingerprints))
    other = Turn(made("y", [LONG]))
    assert list(cloud.update([other]).keys) == [Place(0, 0)]
    assert len(cloud.update([])) == 0


def test_a_cell_has_the_zone_of_most_of_its_points() -> None:
    xy = np.array([[0.0, 0.0], [0.05, 0.0], [0.0, 0.1], [9.0, 9.0], [np.nan, 0.0]])
    zones = np.array([1, 2, 2, 0, 3])
    grid = Grid(xy, zones, Window(-1, 10, -1, 10), Size(10, 5))
    cell = int(grid.cell[0])
    assert grid.members(cell) == [0, 1, 2]
    assert grid.kinds[cell] == 2
    assert grid.counts.sum() == 4
    assert grid.cell[4] == -1
    assert grid.means(np.array([0.0, 0.5, 1.0, np.nan, 1.0]))[cell] == pytest.approx(0.5)
    assert grid.toward(cell, 1, 0) == int(grid.cell[3])
    assert grid.toward(int(grid.cell[3]), 1, 0) is None
    assert window_of(np.full((3, 2), 4.0)) == Window(3, 5, 3, 5)
    dots = grid.dots()
    assert np.array_equal(dots > 0, grid.counts > 0)


@pytest.mark.parametrize("room", range(45))
def test_directions_fit_or_say_that_they_do_not(room: int) -> None:
    text = "more mid-range, less local, more diffuse"
    kept = _fitting(text, room)
    assert len(kept) <= max(room, 1)
    assert kept == text or kept.endswith("…")


async def test_ten_thousand_points_and_four_thousand_tokens_stay_responsive(make_app: MakeApp) -> None:
    random = np.random.default_rng(0)
    app = make_app(mode="manifold")
    async with app.run_test(size=WIDE) as pilot:
        scatter = pane(app).scatter
        await at_store(app)
        hists = random.dirichlet(np.ones(16), 10_000)
        prints = np.array([fingerprint_from_histogram(hist) for hist in hists], dtype=np.float32)
        zones = random.choice(ZONE_NAMES, 10_000).tolist()
        points = [TracePoint(f"t{n}", n, "m", "", 9, 9, True, zone, {zone: 9}, None) for n, zone in enumerate(zones)]
        pane(app).manifold.take(of_traces(TracePoints(points, prints)))
        pane(app).draw()
        await pilot.pause()
        assert len(scatter.here_too) >= 1

        async def spent(action: Any) -> float:
            times = []
            for _ in range(7):
                began = time.process_time()
                action()
                await pilot.pause()
                times.append(time.process_time() - began)
            return sorted(times)[len(times) // 2]

        # Three to five times what a quiet machine needs: other work must not make this fail.
        assert await spent(scatter.redraw) < 0.1
        assert await spent(lambda: scatter.zoom_by(1.1)) < 0.1
        assert await spent(lambda: scatter.move(1, 0)) < 0.1
        trace = made("long", noisy(LOCAL, 2, tokens=4100))
        app.session.show([trace[: 2 + 2 * 4000]], title="long")
        pane(app).choose_scope("session")
        await pilot.pause()
        rest = iter(range(2 + 2 * 4000, len(trace), 10))

        def stream() -> None:
            start = next(rest)
            app.session.feed(app.session.turns[0], trace[start : start + 10])
            app.flush()

        assert await spent(stream) < 0.08


def test_a_session_of_unknown_zones_has_a_point_for_each() -> None:
    session = Session()
    session.show([made("x", [LOCAL])], title="x")
    session.turns[0].tokens[0].step["zone"] = "a zone of tomorrow"
    (counted,) = TokenCloud().update(session.turns).zone_counts()
    assert counted == (UNKNOWN, 1)
