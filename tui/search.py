"""Searching a session: the query of `geomcli.search` over every turn, as places."""

from __future__ import annotations

from collections.abc import Sequence

from geomcli.tui.session import Place
from geomcli.tui.turn import Turn


def find(turns: Sequence[Turn], source: str) -> list[Place]:
    """The tokens shown that meet a query, in order; UsageError with a sentence for a query that means nothing."""
    from geomcli import search

    # What arrived while the view is frozen is in the trace already, but not on screen.
    return [
        Place(number, index)
        for number, turn in enumerate(turns)
        for index in search.find(turn.trace, source)
        if index < len(turn.tokens)
    ]
