"""Questions with known answers: one item is one question, and items about one fact share a group."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from geomcli.errors import UsageError
from geomcli.evaluation.normalising import whole_number, words

Match = Literal["text", "number", "symbol", "refusal"]
CONTEXT, FACTS, ARITHMETIC, QUESTIONS = "context", "facts", "arithmetic", "questions"
REFUSAL = "not in the text"


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """answer: aliases of the right one, for `number` its digits, for `refusal` none is looked for. others: known values
    that would be wrong, as they would be written. stated: whether a wrong answer's onset can be told exactly. group:
    what a split never divides.
    """

    id: str
    kind: str
    domain: str
    group: str
    prompt: str
    question: str
    answer: tuple[str, ...]
    match: Match = "text"
    others: tuple[str, ...] = ()
    stated: bool = False


class _Line(msgspec.Struct):
    question: str
    answer: str | list[str]
    id: str = ""
    kind: str = QUESTIONS
    group: str = ""


CLOSED_BOOK = "Answer in a few words."


def closed_book(question: str) -> str:
    return f"{question} {CLOSED_BOOK}"


def read_questions(path: Path) -> list[Item]:
    """Items of a JSON Lines file of {question, answer: [aliases]}, optionally id, kind, group."""
    items: list[Item] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text.", "convert it with iconv") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            given = msgspec.json.decode(line, type=_Line)
        except msgspec.MsgspecError as error:
            raise UsageError(
                f"{path}, line {number}: {error}.", '{"question": "Who wrote Emma?", "answer": ["Jane Austen"]}'
            ) from None
        aliases = [given.answer] if isinstance(given.answer, str) else given.answer
        aliases = [alias.strip() for alias in aliases if alias.strip()]
        if not given.question.strip() or not aliases:
            raise UsageError(f"{path}, line {number}: question or answer is empty.")
        if silent := [alias for alias in aliases if not words(alias)]:
            raise UsageError(
                f"{path}, line {number}: the answer {silent[0]!r} has no word that can be compared: articles and "
                "punctuation are left out.", 'write it with another word, such as "vitamin A", or leave it out'
            )  # fmt: skip
        answers, match = _compared(aliases)
        name = given.id or f"line{number}"
        items.append(
            Item(
                id=f"{given.kind}:{name}", kind=given.kind, domain=QUESTIONS,
                group=f"{given.kind}:{given.group or given.question.strip().casefold()}",
                prompt=closed_book(given.question.strip()), question=given.question.strip(), answer=answers,
                match=match,
            )
        )  # fmt: skip
    refuse_repeated(items, str(path))
    return items


def _compared(aliases: list[str]) -> tuple[tuple[str, ...], Match]:
    """Numbers by value and in digits, where every alias is one; else all word by word."""
    values = [value for value in map(whole_number, aliases) if value is not None]
    if len(values) < len(aliases):
        return tuple(aliases), "text"
    return tuple(str(int(value)) if value.is_integer() else repr(value) for value in dict.fromkeys(values)), "number"


def refuse_repeated(items: Iterable[Item], where: str) -> None:
    """UsageError when two items have one id."""
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise UsageError(f"{where}: two questions have the id {item.id!r}.", "give each its own id")
        seen.add(item.id)
