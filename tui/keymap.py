"""`[tui.keys]` of geom.toml: action id = key, checked before the app starts."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

from textual.keys import Keys

from geomcli import config
from geomcli.errors import UsageError
from geomcli.tui.actions import ACTIONS, APP, MODES, PANE, PROMPT, Action

_MEND = "press f1 in geom tui for the ids and their keys"
_MODIFIERS = {"ctrl", "shift", "alt", "super", "meta", "hyper"}


def checked(keys: Mapping[str, str]) -> dict[str, str]:
    """The same mapping; UsageError for an id that does not exist, a key that does not, or one key with two actions."""
    for name, value in keys.items():
        for key in value.split(","):
            if not _is_key(key.strip()):
                raise UsageError(f'geom.toml, [tui.keys]: "{key.strip()}" of "{name}" is not a key.', _MEND)
    config.Tui(keys=dict(keys)).check(actions={action.id for action in ACTIONS}, themes=())
    after = [action._replace(keys=keys.get(action.id, action.keys)) for action in ACTIONS]
    for one, other in combinations(after, 2):
        shared = _keys(one) & _keys(other)
        if shared and _together(one, other) and (one.id in keys or other.id in keys):
            raise UsageError(
                f'geom.toml, [tui.keys]: "{one.id}" and "{other.id}" are both on {", ".join(sorted(shared))}.', _MEND
            )
    return dict(keys)


def _keys(action: Action) -> set[str]:
    from textual.keys import _character_to_key

    return {_character_to_key(k) if len(k) == 1 else k for k in (key.strip() for key in action.keys.split(","))}


def _together(one: Action, other: Action) -> bool:
    """Whether both can be meant by the same key press."""
    return any({*one.where} & scope and {*other.where} & scope for scope in ({APP, PANE, m} for m in MODES)) or (
        PROMPT in one.where and PROMPT in other.where
    )


def _is_key(text: str) -> bool:
    from textual.keys import _character_to_key

    *modifiers, last = text.split("+") if text != "+" else ["+"]
    if not last or not set(modifiers) <= _MODIFIERS:
        return False
    named = {key.value for key in Keys} | {_character_to_key(chr(code)) for code in range(0x20, 0x7F)}
    return len(last) == 1 or last in named
