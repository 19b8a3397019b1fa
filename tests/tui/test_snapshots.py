"""How the panes look: empty, with the recorded demo, and on a narrow screen.

`pytest tests/tui/test_snapshots.py --snapshot-update` writes the pictures anew; look at them before they are committed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Footer

from geomcli.schema import Record
from geomcli.tui.app import GeomApp
from geomcli.tui.live import State
from tests.tui.conftest import NARROW, WIDE, MakeApp
from tests.tui.made import settled, until

LOOKS: dict[str, tuple[bool, tuple[int, int], tuple[str, ...]]] = {
    "empty": (False, WIDE, ()),
    "demo": (True, WIDE, ()),
    "narrow": (True, NARROW, ()),
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("mode", ["inspect", "router"])
def test_looks(
    snap_compare: Callable[..., bool], make_app: MakeApp, demo: list[list[Record]], mode: str, look: str
) -> None:
    opened, size, keys = LOOKS[look]
    app = make_app(demo if opened else None, mode=mode)
    assert snap_compare(app, terminal_size=size, run_before=lambda pilot: _shown(app, pilot, keys))


def test_the_list_of_a_narrow_inspect(
    snap_compare: Callable[..., bool], make_app: MakeApp, demo: list[list[Record]]
) -> None:
    app = make_app(demo, mode="inspect")
    assert snap_compare(app, terminal_size=NARROW, run_before=lambda pilot: _shown(app, pilot, ("v",)))


def test_advice_that_is_applied(snap_compare: Callable[..., bool], make_app: MakeApp, demo: list[list[Record]]) -> None:
    app = make_app(demo, mode="router")
    assert snap_compare(app, terminal_size=WIDE, run_before=lambda pilot: _shown(app, pilot, ("up", "enter", "A")))


async def _shown(app: GeomApp, pilot: Pilot[Any], keys: tuple[str, ...]) -> None:
    """Wait until nothing changes by itself any more: no server was found, and the footer is there."""
    await until(lambda: app.live.state is State.ABSENT)
    for key in keys:
        await pilot.press(key)
    app.clear_notifications()
    await settled(pilot)
    await until(lambda: len(app.screen.query_one(Footer).children) > 1)
    await settled(pilot, 0.3)
