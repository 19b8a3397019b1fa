"""Long answers: an update costs what is new, whatever is there already; counted in work, not in seconds."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from geomcli import config
from geomcli.schema import Record
from geomcli.tui.app import GeomApp
from geomcli.tui.live import State
from geomcli.tui.widgets.timeline import _Columns
from tests.tui.conftest import WIDE, MakeApp
from tests.tui.faulty import entry, event, serving
from tests.tui.test_live import END
from tests.tui.waiting import until


def token_records(first: int, count: int, phase: str = "main") -> list[Record]:
    records: list[Record] = []
    for index in range(first, first + count):
        word = (" light", " is", " a", " wave", ",\n")[index % 5]
        links = {
            "token_positions": [index, 0],
            "attention_scores": [0.6, 0.4],
            "topk_logits": [-1.0, -1.4],
            "logsumexp_candidates": 0.0,
        }
        step = entry(index + 1, word, layer_id=29)
        records.append({"record_type": "token", "index": index, "text": word, "segmentId": f"s-{phase}"})
        records.append({"record_type": "step", "tokenIndex": index, "attention": links, **step})
    return records


def calls(action: Callable[[], object]) -> int:
    """Python functions that an action calls: its work, however busy the machine is."""
    count = 0

    def noted(_frame: object, what: str, _argument: object) -> None:
        nonlocal count
        count += what == "call"

    sys.setprofile(noted)
    try:
        action()
    finally:
        sys.setprofile(None)
    return count


async def work_of_an_update(make_app: MakeApp, length: int, *, phase: str = "main", frozen: bool = False) -> int:
    """Calls for taking five tokens and drawing every widget that changed, after `length` tokens."""
    app = make_app()
    async with app.run_test(size=WIDE) as pilot:
        turn = app.session.begin()
        head = [{"record_type": "header", "version": "1.0", "trace_id": "t", "model": "m"}]
        app.session.feed(turn, [*head, *token_records(0, length, phase)])
        if frozen:
            app.session.freeze()
            app.session.feed(turn, token_records(length, length, phase))
            length *= 2
        await asyncio.sleep(0.3)
        await pilot.pause()

        def update() -> None:
            app.session.feed(turn, token_records(length, 5, phase))
            app.flush()
            for widget in app.screen.walk_children():
                if hasattr(widget, "lines") and callable(widget.lines):
                    widget.lines()
            view = app.screen.query_one("TokenView")
            for y in range(view.size.height):
                view.render_line(y)  # type: ignore[attr-defined]

        update()
        length += 5
        return calls(update)


@pytest.mark.parametrize("how", [{}, {"phase": "think"}, {"frozen": True}], ids=["answer", "thinking", "frozen"])
async def test_an_update_costs_the_same_however_long_the_answer_is(make_app: MakeApp, how: dict[str, Any]) -> None:
    short = await work_of_an_update(make_app, 1000, **how)
    long = await work_of_an_update(make_app, 4000, **how)
    assert long < 1.3 * short + 500, (short, long)


def test_the_columns_of_the_timeline_are_counted_once(make_app: MakeApp, demo: list[list[Record]]) -> None:
    app = make_app()
    turn = app.session.begin()
    columns = _Columns(turn)
    turn.take([{"record_type": "header", "version": "1.0", "trace_id": "t", "model": "m"}])
    worked = 0
    for first in range(0, 4000, 20):
        turn.take(token_records(first, 20))
        worked += calls(lambda: columns.upto(60))
    fresh = _Columns(turn)
    assert columns.upto(60) == fresh.upto(60)
    assert 30 < len(fresh.upto(60)) <= 60
    # Each column once, and all of them each time that the columns are doubled.
    assert worked < 200 * 4000


async def test_two_thousand_tokens_over_a_socket_leave_nothing_behind_but_themselves(
    make_app: MakeApp, settings: config.Settings
) -> None:
    words = [event(f" word{n}", entry(n, f" word{n}")) for n in range(1, 2001)]
    async with serving(*words, END, "[DONE]") as server:
        app: GeomApp = make_app(settings=msgspec.structs.replace(settings, base_url=server.url))
        async with app.run_test(size=WIDE) as pilot:
            await until(lambda: app.live.state is State.READY)
            await app.live.ask("Go on")
            await pilot.pause()
            first = _counted(app)
            await app.live.ask("Go on")
            await pilot.pause()
            second = _counted(app)
            assert [len(turn.tokens) for turn in app.session.turns] == [2000, 2000]
            # Objects by kind: what grows is the second answer, once again as much as the first.
            assert second < 2.4 * first, (first, second)


def _counted(app: GeomApp) -> int:
    gc.unfreeze()
    gc.collect()
    return sum(type(o).__name__ in ("Token", "Piece", "Line", "dict", "Strip", "Segment") for o in gc.get_objects())


async def test_full_collections_wait_for_the_end_of_an_answer(make_app: MakeApp, demo: list[list[Record]]) -> None:
    before = gc.get_threshold()
    app = make_app(demo)
    async with app.run_test(size=WIDE) as pilot:
        await asyncio.sleep(0.1)
        await pilot.pause()
        assert gc.get_threshold()[2] > 100_000
        assert gc.get_freeze_count() > 0
        app._rest()
        assert gc.get_freeze_count() > 0
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
