"""Texts of servers and traces that look like markup or escapes, wherever the app says a sentence of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.widgets._toast import Toast

from geomcli import jsonl
from geomcli.store import Store
from geomcli.tui.app import DEMO_FILE, GeomApp
from tests.tui.conftest import WIDE

HOSTILE = ("oom [/red] x", "[@click=app.leave]click me[/]", "\x1b]52;c;aGk=\x07", "\x9b31m", "\u202egnp", "[[[")


def shown(app: GeomApp) -> str:
    return "".join(strip.text for strip in app.screen._compositor.render_strips())


@pytest.mark.parametrize("text", HOSTILE)
async def test_a_toast_is_no_markup_and_no_escape(make_app: Callable[..., GeomApp], text: str) -> None:
    app = make_app()
    async with app.run_test(size=WIDE, notifications=True) as pilot:
        app._notice(text, "error")
        await pilot.pause(0.2)
        assert len(app.screen.query(Toast)) == 1
        screen = shown(app)
        assert not any(c in screen for c in "\x1b\x9b\u202e\x07")
        assert not [style for strip in app.screen._compositor.render_strips() for _, style, _ in strip
                    if style is not None and "@click" in (style.meta or {})]  # fmt: skip
        for word in ("oom [/red] x", "click me"):
            if word in text:
                assert word in screen


async def test_the_palette_outlives_titles_and_models_that_look_like_markup(
    make_app: Callable[..., GeomApp], tmp_path: Path
) -> None:
    app = make_app()
    records = jsonl.load(DEMO_FILE)[0]
    with Store(app.storage.path) as store:
        for n, text in enumerate(HOSTILE):
            store.add(_renamed(records, f"20261126-00000{n}-aaaaaa", text))
    async with app.run_test(size=WIDE) as pilot:
        await pilot.press("ctrl+p")
        await asyncio.sleep(0.2)
        await pilot.press(*"trace")
        await pilot.pause(0.3)
        assert "oom [/red] x" in shown(app)
        assert app.is_running


def _renamed(records: list[dict[str, Any]], trace_id: str, text: str) -> list[dict[str, Any]]:
    found = []
    for record in records:
        kind = record["record_type"]
        if kind == "header":
            found.append({**record, "trace_id": trace_id, "model": text})
        elif kind == "message" and record["role"] == "user":
            found.append({**record, "content": text})
        else:
            found.append(record)
    return found


async def test_an_id_that_is_a_path_names_a_file_here(
    make_app: Callable[..., GeomApp], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "deep" / "here"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    records = _renamed(jsonl.load(DEMO_FILE)[0], "../../evil\0", "hello")
    async with make_app([records]).run_test(size=WIDE) as pilot:
        await pilot.press("e")
        await pilot.pause(0.2)
    assert [path.name for path in tmp_path.rglob("*.jsonl")] == ["_.._evil_.jsonl"]
    assert list(here.glob("*.jsonl"))


async def test_a_step_without_numbers_is_shown_as_one(make_app: Callable[..., GeomApp]) -> None:
    records = [
        {**record, "fingerprint": None} if record["record_type"] == "step" else record
        for record in jsonl.load(DEMO_FILE)[0]
    ]
    for mode in ("chat", "inspect", "router", "manifold"):
        app = make_app([records], mode=mode)
        async with app.run_test(size=WIDE) as pilot:
            await pilot.pause(0.2)
            assert app.session.turn is not None
            assert not any(token.captured for token in app.session.turn.tokens)
