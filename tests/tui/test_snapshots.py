"""How every mode looks, empty, with the recording, and where it is narrow; and what lies over them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from textual.pilot import Pilot

from geomcli import config
from geomcli.links import links_of
from geomcli.schema import Record
from geomcli.tui import panes
from geomcli.tui.app import GeomApp
from geomcli.tui.live import State
from geomcli.tui.panes.manifold import ManifoldPane
from geomcli.tui.reading import Opened
from tests.tui.conftest import NARROW, WIDE, MakeApp
from tests.tui.made_discovery import learned
from tests.tui.made_stores import SHAPES, made, noisy
from tests.tui.snapshots import assert_same
from tests.tui.waiting import until

MODES = [mode for _, mode in panes.offered()]


async def calm(pilot: Pilot[Any], app: GeomApp) -> None:
    """Waits until the server was looked for, what changed is drawn, and no message is shown."""
    for _ in range(400):
        if app.live.state is not State.LOOKING:
            break
        await asyncio.sleep(0.02)
    app.clear_notifications()
    await asyncio.sleep(0.25)
    if isinstance(app.screen, ManifoldPane):
        # Clusters are looked for beside the app.
        manifold = app.screen.manifold
        await until(
            lambda: not len(manifold.cloud) or (manifold.grouping.found is not None and not manifold.grouping.busy)
        )
        await asyncio.sleep(0.1)
    await pilot.pause()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", ["empty", "demo", "narrow"])
async def test_a_mode(make_app: MakeApp, demo: list[list[Record]], mode: str, case: str) -> None:
    shown = [] if case == "empty" else demo
    app = make_app(shown, mode=mode)
    if mode == "compare" and shown:
        app = make_app(opened=[Opened(f"{name}.jsonl", [trace]) for name, trace in zip("ab", shown, strict=True)])
    async with app.run_test(size=NARROW if case == "narrow" else WIDE) as pilot:
        await calm(pilot, app)
        assert_same(app, f"{mode}-{case}", shown=case == "demo")


class Scene(NamedTuple):
    """The recording after some keys."""

    name: str
    keys: tuple[str, ...] = ()
    theme: str = ""
    size: tuple[int, int] = WIDE
    shown: bool = False
    mode: str = "chat"
    traces: bool = True


SCENES = [
    Scene("lens-signal", ("t",), shown=True),
    Scene("lens-experts", ("t", "t")),
    Scene("lens-derotated", ("d", "greater_than_sign", "greater_than_sign"), shown=True),
    Scene("lens-pinned", ("home", "l", "l", "l", "p", "end", "x")),
    Scene("lens-narrow", ("i",), size=NARROW),
    Scene("overlay-entropy", ("s",)),
    Scene("overlay-influence", ("s", "s", "s")),
    Scene("frozen", ("space",)),
    Scene("found", ("slash", *"the", "enter")),
    Scene("find-refused", ("slash", *"zone:nowhere", "enter")),
    Scene("palette", ("ctrl+p", *"theme")),
    Scene("help", ("f1",)),
    Scene("theme-light", theme="geom-light", shown=True),
    Scene("theme-colour-blind", theme="geom-colour-blind"),
    Scene("theme-ansi", theme="geom-ansi"),
    Scene("inspect-list", ("v",), size=NARROW, mode="inspect"),
    Scene("inspect-lens", ("h", "minus", "x", "i", "t"), mode="inspect"),
    Scene("inspect-ansi", theme="geom-ansi", mode="inspect"),
    Scene("router-applied", ("up", "enter", "A"), mode="router"),
    Scene("manifold-empty-narrow", size=NARROW, mode="manifold", traces=False),
    Scene("compare-empty-narrow", size=NARROW, mode="compare", traces=False),
    Scene("compare-one", mode="compare"),
    Scene("compare-list", ("b",), mode="compare"),
    Scene("router-ansi", theme="geom-ansi", size=NARROW, mode="router"),
]


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
async def test_a_scene(make_app: MakeApp, demo: list[list[Record]], scene: Scene) -> None:
    app = make_app(demo if scene.traces else None, theme=scene.theme, mode=scene.mode)
    async with app.run_test(size=scene.size) as pilot:
        await calm(pilot, app)
        await pilot.press(*scene.keys)
        await calm(pilot, app)
        if scene.name in ("palette", "compare-list"):
            await asyncio.sleep(0.5)
            await pilot.pause()
        assert_same(app, scene.name, shown=scene.shown)


@pytest.mark.parametrize("case", ["wide", "narrow"])
async def test_clusters(make_app: MakeApp, case: str) -> None:
    hists = [noisy(shape, seed, tokens=15) for seed, shape in enumerate(SHAPES)]
    trace = made("20261127-090000-made", [hist for four in zip(*hists, strict=True) for hist in four])
    trace[-1]["tokensPerSecond"] = 20.0
    app = make_app([trace])
    async with app.run_test(size=NARROW if case == "narrow" else WIDE) as pilot:
        await pilot.press("4")
        await calm(pilot, app)
        await pilot.press("v")
        await calm(pilot, app)
        assert_same(app, f"manifold-clusters-{case}")


class MapScene(NamedTuple):
    """A mode with a discovery of the recording's model beside the store, after some keys."""

    name: str
    mode: str
    keys: tuple[str, ...] = ()
    theme: str = ""
    size: tuple[int, int] = WIDE
    shown: bool = False
    model: str = "smollm2"


MAP_SCENES = [
    MapScene("learned-map", "manifold", ("t",), shown=True),
    MapScene("learned-map-narrow", "manifold", ("t",), size=NARROW),
    MapScene("learned-map-clusters", "manifold", ("t", "v"), theme="geom-light"),
    MapScene("learned-map-ansi", "manifold", ("t",), theme="geom-ansi"),
    MapScene("learned-other-model", "manifold", model="llama"),
    MapScene("learned-router", "router", shown=True),
    MapScene("learned-router-narrow", "router", size=NARROW),
    MapScene("learned-lens", "chat", ("t",)),
]


@pytest.mark.parametrize("scene", MAP_SCENES, ids=lambda scene: scene.name)
async def test_a_discovery(
    make_app: MakeApp, settings: config.Settings, demo: list[list[Record]], scene: MapScene
) -> None:
    learned(settings.db_path, scene.model)
    app = make_app(demo, theme=scene.theme, mode=scene.mode)
    async with app.run_test(size=scene.size) as pilot:
        await until(lambda: app.learned.looked)
        await calm(pilot, app)
        await pilot.press(*scene.keys)
        await calm(pilot, app)
        if isinstance(app.screen, ManifoldPane):
            manifold = app.screen.manifold
            await until(lambda: not manifold.on_map or len(manifold.mapping.xy) == len(manifold.cloud))
            await calm(pilot, app)
        assert_same(app, scene.name, shown=scene.shown)


async def test_without_colours(make_app: MakeApp, demo: list[list[Record]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    app = make_app(demo)
    async with app.run_test(size=WIDE) as pilot:
        await calm(pilot, app)
        assert_same(app, "no-color")


@pytest.mark.parametrize("mode", ["chat", "inspect"])
async def test_tokens_that_have_left(make_app: MakeApp, demo: list[list[Record]], mode: str) -> None:
    app = make_app([leaving(demo[0])], mode=mode)
    async with app.run_test(size=WIDE) as pilot:
        await calm(pilot, app)
        await pilot.press(*("t", *["left_square_bracket"] * 2) if mode == "chat" else ["h"] * 4)
        await calm(pilot, app)
        assert_same(app, f"left-{mode}")


def leaving(trace: list[Record]) -> list[Record]:
    """The recording, had at every tenth token half of what nobody looks at any more left."""
    looked = {
        record["tokenIndex"]: {link.position for link in links_of(record)} for record in trace if "tokenIndex" in record
    }
    gone: set[int] = set()
    made = []
    for record in trace:
        if record["record_type"] == "step":
            length = record["query_position"] + 1
            now = gone
            if (n := record["tokenIndex"]) % 10 == 9:
                now = gone | (set(range(5, length - 6, 2)) - set().union(*(looked[m] for m in looked if m >= n)))
            kv = {"kept": length - len(now), "freed": len(now), "share": 1 - len(now) / length}
            made.append(
                {**record, "kv": kv | ({"left": [[p, p + 1] for p in sorted(now - gone)]} if now > gone else {})}
            )
            gone = now
        else:
            made.append(record)
    return made


def _broken_off(app: GeomApp, demo: list[list[Record]]) -> None:
    cut = [record for record in demo[0][:60] if record["record_type"] != "metrics"]
    app.session.show([[*cut, {"record_type": "metrics", "error": "the connection was lost"}]], title="")
    app.live._become(State.LOST)


def _refused(app: GeomApp, _demo: list[list[Record]]) -> None:
    app.live.detail = "http://127.0.0.1:9 wants a key: X-Attention-Key is missing. Try: GEOM_ATTENTION_KEY=… geom …"
    app.live._become(State.REFUSED)


def _nothing_captured(app: GeomApp, demo: list[list[Record]]) -> None:
    app.session.show([[r for r in demo[0] if r["record_type"] != "step"]], title="no capture")


@pytest.mark.parametrize("prepare", [_broken_off, _refused, _nothing_captured], ids=lambda f: f.__name__[1:])
async def test_what_went_wrong(
    make_app: MakeApp, demo: list[list[Record]], prepare: Callable[[GeomApp, list[list[Record]]], None]
) -> None:
    app = make_app()
    async with app.run_test(size=WIDE) as pilot:
        await calm(pilot, app)
        app.workers.cancel_group(app, "watch")
        prepare(app, demo)
        await calm(pilot, app)
        assert_same(app, prepare.__name__[1:].replace("_", "-"))
