"""Which tokens of the chat had left the KV cache when the token that one looks at was written. Knows no widget."""

from __future__ import annotations

from typing import Any

from geomcli.kept import cache_of
from geomcli.tui.session import Place, Session
from geomcli.tui.turn import Token, Turn


def has_left(session: Session, place: Place) -> bool:
    """Whether the token under the mouse, else that under the cursor, was written without the token at `place`.

    What neither that answer nor its prompt holds goes by the end of its own answer. False where it is not known.
    """
    if place.turn >= len(session.turns):
        return False  # drawn before the session was begun anew
    turn, here = session.turns[place.turn], session.hover or session.cursor
    if turn.prompt_length is None:
        return False
    position = turn.prompt_length + place.token
    if here is not None and place.turn <= here.turn < len(session.turns):
        looked = session.turns[here.turn]
        if looked is turn or looked.continues(turn):
            return looked.kept.left_at(position, here.token) is not None
    return turn.kept.left_at(position) is not None


def state(session: Session) -> list[Any]:
    """What `has_left` depends on: while it is the same, so are all its answers."""
    here = session.hover or session.cursor
    gone = [
        turn.kept.gone(here.token if here is not None and here.turn == number else None)
        for number, turn in enumerate(session.turns)
    ]
    return [None if here is None else here.turn, *gone] if any(gone) else []


def facts(token: Token, turn: Turn) -> list[str]:
    """What the token's step had of the text, and when the token itself left; nothing where no token leaves."""
    said = []
    if (cache := cache_of(token.step)) is not None:
        share = f"{cache.share:.2f}".removeprefix("0")
        held = f"{cache.kept} tokens held, {cache.freed} left, share {share}"
        unknown = cache.freed and turn.kept.gone(token.index) is None
        said.append(f"{held}; which ones is not known" if unknown else held)
    if turn.prompt_length is not None:
        left = turn.kept.left_at(turn.prompt_length + token.index)
        if left is not None:
            said.append(f"left the cache at #{left}")
    return said
