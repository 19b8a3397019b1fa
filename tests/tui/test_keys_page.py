"""docs/explorer.md names every key as it is: its table is made from actions.py, by `make keys-page`."""

from __future__ import annotations

import os
import re
from pathlib import Path

from geomcli.config import SIGNALS
from geomcli.tui.actions import ACTIONS, APP, MODES, PANE, PROMPT, Action
from geomcli.tui.themes import THEMES

WRITE = "GEOM_WRITE_TABLE"
PAGE = Path(__file__).parents[2] / "docs" / "explorer.md"
BEGIN, END = "<!-- keys: made from tui/actions.py by make keys-page -->", "<!-- end of keys -->"
_NAMES = {
    "space": "space", "slash": "/", "plus": "+", "minus": "-", "question_mark": "?", "left": "←", "right": "→",
    "up": "↑", "down": "↓", "greater_than_sign": ">", "less_than_sign": "<", "right_square_bracket": "]",
    "left_square_bracket": "[", "right_curly_bracket": "}", "left_curly_bracket": "{", "full_stop": ".", "comma": ",",
    "pagedown": "page down", "pageup": "page up", "equals_sign": "=", "underscore": "_", "escape": "esc",
}  # fmt: skip


def _shown(key: str) -> str:
    return f"`{_NAMES.get(key, key)}`"


def _where(action: Action) -> str:
    if APP in action.where or PANE in action.where:
        return "everywhere"
    if PROMPT in action.where:
        return "text field"
    return "every mode" if set(action.where) == set(MODES) else ", ".join(action.where)


def table() -> str:
    """Markdown: keys, what they do, where, and the id by which geom.toml changes them."""
    rows = ["| key | does | where | id |", "|---|---|---|---|"]
    for action in ACTIONS:
        keys = " ".join(_shown(key.strip()) for key in action.keys.split(","))
        rows.append(f"| {keys} | {action.help} | {_where(action)} | `{action.id}` |")
    return "\n".join(rows)


def with_table(page: str) -> str:
    """The page with the table of now between its marks."""
    head, _, rest = page.partition(BEGIN)
    return f"{head}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}"


def test_the_page_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    if os.environ.get(WRITE):
        page = with_table(page)
        PAGE.write_text(page, encoding="utf-8")
    assert page == with_table(page), "make keys-page"
    for action in ACTIONS:
        assert f"| `{action.id}` |" in page


def test_the_page_names_the_themes_the_signals_and_pictures_that_there_are() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert all(f"`{theme.name}`" in page for theme in THEMES)
    assert all(signal in page for signal in SIGNALS)
    pictures = re.findall(r"\]\((screenshots/[^)]+)\)", page)
    assert len(pictures) >= 5
    assert all((PAGE.parent / picture).exists() for picture in pictures)
