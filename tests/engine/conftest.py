"""Every test of this folder talks to the real engine; it fails when that cannot start."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
# Of every process of every engine that is started here.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_HERE / "quick_imports"), os.environ.get("PYTHONPATH"))))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.engine)
