"""The table of actions: every one works when it is pressed, footer and help are made from it, keys can be changed."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from textual.pilot import Pilot

from geomcli import config
from geomcli.errors import UsageError
from geomcli.schema import Record
from geomcli.tui import panes
from geomcli.tui.actions import (
    ACTIONS,
    APP,
    FOOTER,
    FOOTER_LENGTH,
    MODES,
    PANE,
    PROMPT,
    Action,
    actions_in,
    actions_of,
    bindings,
)
from geomcli.tui.app import GeomApp
from geomcli.tui.keymap import checked
from geomcli.tui.live import State
from geomcli.tui.panes.compare import ComparePane
from geomcli.tui.panes.manifold import ManifoldPane
from geomcli.tui.reading import Opened
from geomcli.tui.session import Overlay
from tests.tui.conftest import NARROW, WIDE, MakeApp
from tests.tui.made_discovery import learned
from tests.tui.waiting import until

OFFERED = [mode for _, mode in panes.offered()]
PRESSES = [
    (mode, action)
    for mode in OFFERED
    for action in actions_in(mode)
    if not action.id.startswith("mode.") or action.id[5:] in OFFERED
]
SLOW = {"engine.start"}  # starts a real engine: pressed in tests/tui/test_terminal.py
# What has to be pressed before, for an action that has nothing to do where a pane begins.
BEFORE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("token.next", "token.last", "scrub.next", "segment.next"), ("home",)),
    "inspect:row.next": ("up",),
    "inspect:page.next": ("pageup",),
    "router:row.next": ("up",),
    "router:page.next": ("pageup",),
    "manifold:point.left": ("l", "l", "l"),
    "manifold:point.here": ("l", "l", "l"),
    "manifold:zoom.out": ("plus",),
    "manifold:zoom.all": ("plus",),
    "compare:report.up": ("J",),
    **{f"compare:{name}": ("end",) for name in ("row.prev", "page.prev", "row.first", "difference.first")},
    # The lens is closed there.
    **{
        f"{mode}:{name}": ("i",)
        for mode in ("inspect", "router")
        for name in (
            "lens.tab", "split.grow", "split.shrink", "token.pin", "sink.toggle", "semantic.toggle", "layer.next",
            "layer.prev",
        )
    },
}  # fmt: skip
ONLY_NARROW = {"list.toggle"}


def look(app: GeomApp) -> object:
    """All that a person can see, colours included, and what the app says."""
    cells = [[(s.text, s.style) for s in strip] for strip in app.screen._compositor.render_strips()]
    said = [notification.message for notification in app._notifications]
    return cells, said, app.current_mode, type(app.screen), app.screen.focused, app._exit


async def at_rest(app: GeomApp, pilot: Pilot[Any]) -> object:
    """`look`, once it has stayed the same for a quarter of a second."""
    seen, same = look(app), 0
    while same < 5:
        await pilot.pause(0.05)
        before, seen = seen, look(app)
        same = same + 1 if seen == before else 0
    return seen


@pytest.mark.parametrize(
    ("mode", "action"),
    [(m, a) for m, a in PRESSES if a.id not in SLOW],
    ids=lambda v: v if isinstance(v, str) else v.id,
)
async def test_every_action_of_a_pane_shows_what_its_key_did(
    make_app: MakeApp, demo: list[list[Record]], mode: str, action: Action
) -> None:
    opened = [Opened(f"{name}.jsonl", [trace]) for name, trace in zip("ab", demo, strict=True)]
    app = make_app(opened=opened) if mode == "compare" else make_app(demo, mode=mode)
    async with app.run_test(size=NARROW if action.id in ONLY_NARROW else WIDE) as pilot:
        await until(lambda: app.live.state is State.ABSENT)
        pane = app.screen
        if isinstance(pane, ComparePane):
            await until(lambda: pane.comparing.result is not None)
        if isinstance(pane, ManifoldPane):
            await until(lambda: pane.manifold.grouping.found is not None)
        assert app.current_mode == mode
        if action.id == "run.stop":
            app.play_demo()
        if action.id == f"mode.{mode}":
            await pilot.press("1" if mode != "chat" else "2")
        await pilot.press(*BEFORE.get(f"{mode}:{action.id}", BEFORE.get(action.id, ())))
        before = await at_rest(app, pilot)
        await pilot.press(action.keys.split(",")[0])
        await until(lambda: look(app) != before)
        assert app.return_code in (None, 0)
    assert app._exception is None


@pytest.mark.parametrize("action", actions_of("manifold"), ids=lambda a: a.id)
async def test_every_action_of_the_manifold_works_on_the_learned_map(
    make_app: MakeApp, settings: config.Settings, demo: list[list[Record]], action: Action
) -> None:
    learned(settings.db_path)
    app = make_app(demo, mode="manifold")
    async with app.run_test(size=WIDE) as pilot:
        await until(lambda: app.live.state is State.ABSENT and app.learned.looked)
        pane = app.screen
        assert isinstance(pane, ManifoldPane)
        await until(lambda: pane.manifold.grouping.found is not None)
        await pilot.press("t", *BEFORE.get(f"manifold:{action.id}", ()))
        await until(lambda: pane.manifold.on_map and len(pane.manifold.mapping.xy) == len(pane.manifold.cloud))
        before = await at_rest(app, pilot)
        await pilot.press(action.keys.split(",")[0])
        await until(lambda: look(app) != before)
    assert app._exception is None


@pytest.mark.parametrize("action", actions_of(PROMPT), ids=lambda a: a.id)
async def test_every_action_of_the_prompt_is_run_by_its_key(make_app: MakeApp, action: Action) -> None:
    app = make_app()
    async with app.run_test(size=WIDE) as pilot:
        await pilot.press("enter", *"Hi")
        prompt = app.screen.query_one("Prompt")
        await pilot.press(action.keys.split(",")[-1])
        await pilot.pause()
        if action.id == "prompt.leave":
            assert app.screen.focused is not prompt
        elif action.id == "prompt.newline":
            assert prompt.text == "Hi\n"
        else:
            # There is no server: the question is back in the field, and the app says what to do.
            assert prompt.text == "Hi"
            assert any("E starts the built-in engine" in n.message for n in app._notifications)


def test_every_action_belongs_somewhere_and_has_a_method() -> None:
    assert len({action.id for action in ACTIONS}) == len(ACTIONS)
    for action in ACTIONS:
        assert set(action.where) <= {APP, PANE, PROMPT, *MODES}, action
        assert action.help[0].isupper(), action
    for mode in OFFERED:
        made = panes.pane(mode)
        for action in actions_of(mode, PANE):
            assert hasattr(made, f"action_{action.method}"), (mode, action.id)


def test_no_key_has_two_meanings_in_one_place() -> None:
    for mode in MODES:
        keys = [key for action in actions_in(mode) for key in action.keys.split(",")]
        assert len(keys) == len(set(keys)), [key for key in keys if keys.count(key) > 1]


def test_the_footer_is_short_and_names_actions() -> None:
    for place, names in FOOTER.items():
        shown = len(names) + (0 if place == APP else len(FOOTER[APP]))
        assert shown <= FOOTER_LENGTH
        assert set(names) <= {action.id for action in ACTIONS}
    assert [b.id for b in bindings("chat", PANE) if b.show] == list(FOOTER["chat"])


async def test_the_help_lists_every_key_with_its_id(make_app: MakeApp) -> None:
    app = make_app(keys={"token.pin": "ctrl+y"})
    async with app.run_test(size=(120, 80)) as pilot:
        await pilot.press("f1")
        text = str(app.screen.query_one("#help-text").render())
        for action in actions_in("chat"):
            if action.id.startswith("mode.") and action.id[5:] not in OFFERED:
                assert action.id not in text
            else:
                assert f" {action.id}\n" in text
        assert "^y  Keep this token" in text
        await pilot.press("escape")
        assert type(app.screen).__name__ == "ChatPane"


async def test_a_changed_key_works_and_the_old_one_does_not(make_app: MakeApp, demo: list[list[Record]]) -> None:
    app = make_app(demo, keys={"token.pin": "ctrl+y"})
    async with app.run_test(size=WIDE) as pilot:
        await pilot.pause()
        await pilot.press("p")
        assert app.session.pins == []
        await pilot.press("ctrl+y")
        assert app.session.pins == [app.session.cursor]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"token.pinn": "y"}, "there is no action 'token.pinn'; did you mean token.pin."),
        ({"token.pin": "crtl+k"}, '"crtl+k" of "token.pin" is not a key'),
        ({"token.pin": "i"}, "both on i"),
        ({"token.pin": "space"}, "both on space"),
        ({"prompt.send": "ctrl+j"}, "both on ctrl+j"),
    ],
)
def test_keys_that_cannot_be_meant_are_refused(keys: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=r"geom\.toml") as refused:
        checked(keys)
    assert said in str(refused.value)


def test_keys_may_be_exchanged() -> None:
    keys = {
        "token.pin": "i",
        "lens.toggle": "p",
        "view.freeze": "ctrl+y",
        "find.open": "ctrl+f,slash",
        "layer.next": "+",
    }
    assert checked(keys) == keys


async def test_the_palette_finds_actions_themes_and_stored_traces(make_app: MakeApp, demo: list[list[Record]]) -> None:
    app = make_app()
    async with app.run_test(size=WIDE) as pilot:
        await app.storage.add(demo[0])
        stored = str(demo[0][0]["trace_id"])
        await pilot.press("ctrl+p", *stored)
        await _settled(pilot.pause)
        await pilot.press("enter")
        await _settled(pilot.pause)
        assert [turn.id for turn in app.session.turns] == [stored]
        assert app.session.turns[0].saved
        await pilot.press("ctrl+p", *"theme: geom-light")
        await _settled(pilot.pause)
        await pilot.press("enter")
        await _settled(pilot.pause)
        assert app.theme == "geom-light"


async def _settled(pause: object) -> None:
    for _ in range(12):
        await asyncio.sleep(0.05)
        await pause()  # type: ignore[operator]


def test_overlays_are_the_signals_of_the_configuration(make_app: MakeApp, settings: config.Settings) -> None:
    assert tuple(overlay.value for overlay in Overlay) == config.SIGNALS
    for signal in config.SIGNALS:
        app = make_app(settings=msgspec.structs.replace(settings, tui=config.Tui(signal=signal)))
        assert app.session.overlay.value == signal


def test_a_theme_that_does_not_exist_is_refused(make_app: MakeApp) -> None:
    with pytest.raises(UsageError, match="there is no theme 'neon'"):
        make_app(theme="neon")
    tui = config.Tui(theme="geom-lihgt")
    with pytest.raises(UsageError, match="did you mean geom-light"):
        make_app(settings=config.Settings(tui=tui))
