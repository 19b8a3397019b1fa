"""Shared fixtures: an isolated home for everything that geom writes, and the installed `geom` command."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says nothing on a busy machine.
settings.register_profile("geom", deadline=None)
settings.load_profile("geom")

GEOM = Path(sysconfig.get_path("scripts")) / "geom"


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """An environment whose data, state and config folders are empty; the model cache stays the user's."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GEOM_") and k != "OPENAI_BASE_URL"}
    for name in ("DATA", "STATE", "CONFIG"):
        environment[f"XDG_{name}_HOME"] = str(tmp_path / name.lower())
    return environment
