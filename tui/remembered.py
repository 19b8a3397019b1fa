"""What the explorer remembers of how it was left: widths. Kept in the state folder, and no loss when it is gone."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import msgspec

from geomcli import config


class Remembered(msgspec.Struct):
    """`lens_width`: cells, None until it was changed."""

    lens_width: Annotated[int, msgspec.Meta(ge=10, le=400)] | None = None


def _file() -> Path:
    return config.state_dir() / "explorer.json"


def load() -> Remembered:
    """What was kept last; nothing where there is no file, or none that can be read."""
    try:
        return msgspec.json.decode(_file().read_bytes(), type=Remembered)
    except (OSError, msgspec.MsgspecError):
        return Remembered()


def save(remembered: Remembered) -> None:
    """Keep it, if that is possible."""
    with contextlib.suppress(OSError):
        _file().parent.mkdir(parents=True, exist_ok=True)
        _file().write_bytes(msgspec.json.encode(remembered))
