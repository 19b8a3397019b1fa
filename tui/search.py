"""Finding tokens: by text, by zone (`zone:diffuse`), by step (`@120`)."""

from __future__ import annotations

from collections.abc import Sequence

from geomcli.tui.session import Place
from geomcli.tui.turn import Turn
from geomcli.zones import ZONE_NAMES


def find(turns: Sequence[Turn], query: str) -> list[Place]:
    """Places of every match, in order; ValueError with a sentence for a query that means nothing.

    Text is looked for across token borders, whatever its case; a match is the token in which it begins.
    """
    if query.startswith("@"):
        return _steps(turns, query[1:])
    if query.startswith("zone:"):
        return _zones(turns, query[len("zone:") :])
    return [place for n, turn in enumerate(turns) for place in _texts(n, turn, query.lower())]


def _steps(turns: Sequence[Turn], number: str) -> list[Place]:
    if not number.isdecimal() or int(number) < 1:
        raise ValueError("a step is a number from 1 on, like @120")
    index = int(number) - 1
    return [Place(n, index) for n, turn in enumerate(turns) if index < len(turn.tokens)]


def _zones(turns: Sequence[Turn], name: str) -> list[Place]:
    zones = [zone for zone in ZONE_NAMES if zone.startswith(name)] if name else []
    if not zones:
        raise ValueError(f"there is no zone {name!r}; zones are {', '.join(ZONE_NAMES)}")
    return [
        Place(n, token.index)
        for n, turn in enumerate(turns)
        for token in turn.tokens
        if token.captured and token.zone in zones
    ]


def _texts(number: int, turn: Turn, query: str) -> list[Place]:
    if not query:
        return []
    ends, length = [], 0
    for token in turn.tokens:
        length += len(token.text.lower())
        ends.append(length)
    whole = "".join(token.text.lower() for token in turn.tokens)
    places: list[Place] = []
    index, start = 0, whole.find(query)
    while start >= 0:
        while ends[index] <= start:
            index += 1
        if not places or places[-1].token != index:
            places.append(Place(number, index))
        start = whole.find(query, start + 1)
    return places
