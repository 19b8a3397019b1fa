"""The panes, one module for each mode of `actions.MODES`; a mode is offered when its module is there.

A pane's module has `PANE`, its subclass of `base.Pane`, and is imported when the mode is first shown.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from geomcli.tui.actions import MODES

if TYPE_CHECKING:
    from geomcli.tui.panes.base import Pane


@cache
def offered() -> tuple[tuple[int, str], ...]:
    """(number, mode) of the panes that there are."""
    return tuple((n, mode) for n, mode in enumerate(MODES, 1) if find_spec(f"{__name__}.{mode}") is not None)


def pane(mode: str) -> Pane:
    """A new pane of a mode."""
    made: Pane = import_module(f"{__name__}.{mode}").PANE()
    return made
