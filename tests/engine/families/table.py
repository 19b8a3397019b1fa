"""The table of docs/compatibility.md, made of what the tests ran. `make compatibility` runs them and writes it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tests.engine.families.cases import Case

DOCUMENT = Path(__file__).parents[3] / "docs" / "compatibility.md"
WRITE = "GEOM_WRITE_TABLE"
_HEAD = (
    "| family | model class | attention backend | compared with transformers | engine and model |",
    "|" + "---|" * 5,
)
_BEGIN, _END = "<!-- made by make compatibility -->\n", "<!-- end -->\n"


class Ran(NamedTuple):
    """One case that passed, and what it compared."""

    case: Case
    architecture: str
    source: str
    compared: list[str]

    @property
    def line(self) -> str:
        case = self.case
        return (
            f"| {case.family} | `{self.architecture}` | `{case.backend}` ({self.source}) "
            f"| {', '.join(self.compared)} | {case.deviation or 'the same'} |"
        )


def documented() -> list[str]:
    text = DOCUMENT.read_text()
    rows = text[text.index(_BEGIN) + len(_BEGIN) : text.index(_END)].splitlines()
    assert tuple(rows[:2]) == _HEAD
    return rows[2:]


def write(lines: list[str]) -> None:
    text = DOCUMENT.read_text()
    before, after = text[: text.index(_BEGIN)], text[text.index(_END) :]
    DOCUMENT.write_text(before + _BEGIN + "\n".join([*_HEAD, *lines]) + "\n" + after)
