"""Manifold and Compare as pictures: empty, with the demo, and in a narrow terminal.

After a change that is meant: pytest tests/tui/test_map_snapshots.py --snapshot-update, and look at every picture.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from geomcli import config
from geomcli.schema import Record
from geomcli.tui.app import GeomApp, Opened
from geomcli.tui.live import State
from geomcli.tui.panes.compare import ComparePane
from geomcli.tui.panes.manifold import ManifoldPane
from tests.tui.conftest import NARROW, WIDE, MakeApp
from tests.tui.made_stores import until


@pytest.fixture(autouse=True)
def in_one_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


async def at_rest(pilot: Any) -> None:
    """Nothing is looked for, read or compared any more."""
    app: GeomApp = pilot.app
    await until(lambda: app.live.state is State.ABSENT)
    pane = app.screen_stack[0]
    if isinstance(pane, ManifoldPane):
        await until(lambda: not pane.manifold.loading)
    if isinstance(pane, ComparePane) and len(pane.comparing.sides()) == 2:
        await until(lambda: pane.comparing.result is not None)
    await pilot.pause(0.2)


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("mode", ["manifold", "compare"])
def test_empty(snap_compare: Any, make_app: MakeApp, mode: str, size: tuple[int, int]) -> None:
    assert snap_compare(make_app(mode=mode), terminal_size=size, run_before=at_rest)


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_the_demo_on_the_manifold(
    snap_compare: Any, make_app: MakeApp, demo: list[list[Record]], size: tuple[int, int]
) -> None:
    assert snap_compare(make_app(demo, mode="manifold"), terminal_size=size, run_before=at_rest)


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_the_demo_compared(
    snap_compare: Any, settings: config.Settings, demo: list[list[Record]], size: tuple[int, int]
) -> None:
    opened = [Opened(f"{name}.jsonl", [trace]) for name, trace in zip("ab", demo, strict=True)]
    assert snap_compare(GeomApp(settings, opened=opened), terminal_size=size, run_before=at_rest)


def test_one_trace_asks_for_another(snap_compare: Any, make_app: MakeApp, demo: list[list[Record]]) -> None:
    assert snap_compare(make_app(demo, mode="compare"), terminal_size=WIDE, run_before=at_rest)


def test_the_list_of_traces(snap_compare: Any, make_app: MakeApp, demo: list[list[Record]]) -> None:
    async def opened(pilot: Any) -> None:
        await at_rest(pilot)
        await pilot.press("b")
        await pilot.pause(0.3)
        # A cursor that blinks would be another picture every time.
        pilot.app.screen.query_one("Input").cursor_blink = False

    assert snap_compare(make_app(demo, mode="compare"), terminal_size=WIDE, run_before=opened)
