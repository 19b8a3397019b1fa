"""Apps without a server: nothing answers at their base URL, their store is empty, nothing moves by itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from geomcli import config, jsonl
from geomcli.schema import Record
from geomcli.tui.app import DEMO_FILE, GeomApp
from geomcli.tui.reading import Opened

os.environ["TEXTUAL_ANIMATIONS"] = "none"
WIDE, NARROW = (120, 36), (80, 24)
NOWHERE = "http://127.0.0.1:9"

MakeApp = Callable[..., GeomApp]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("NO_COLOR", "SSH_CONNECTION", "SSH_TTY", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def settings(tmp_path: Path) -> config.Settings:
    return config.Settings(base_url=NOWHERE, db=str(tmp_path / "traces.db"))


@pytest.fixture
def demo() -> list[list[Record]]:
    return jsonl.load(DEMO_FILE)


@pytest.fixture
def make_app(settings: config.Settings) -> MakeApp:
    """`make_app(traces)`: an app that shows these traces; without any, an empty chat."""

    def made(traces: list[list[Record]] | None = None, **more: Any) -> GeomApp:
        opened = more.pop("opened", [Opened("demo", traces)] if traces else [])
        return GeomApp(more.pop("settings", settings), opened=opened, **more)

    return made
