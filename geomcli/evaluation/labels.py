"""Labels of answers: right, wrong, refused or off-form, and where a wrong answer first contradicts the right one.

Exact match after normalisation, or an alias found word by word; numbers by value. No measure of overlap: a long answer
overlaps with everything.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import msgspec

from geomcli.evaluation.items import CONTEXT, Item
from geomcli.evaluation.normalising import Number, Word, find, numbers, words

Outcome = Literal["right", "wrong", "refused", "off_form"]
RIGHT: Literal["right"] = "right"
WRONG: Literal["wrong"] = "wrong"
REFUSED: Literal["refused"] = "refused"
OFF_FORM: Literal["off_form"] = "off_form"
COMMITTED_WORDS = 12

_REFUSALS = re.compile(
    r"\b(?:not|n't|isn't|doesn't)\s+(?:\w+\s+){0,2}?(?:in the text|say|state[ds]?|mention(?:ed)?|given|provide[ds]?|"
    r"specif\w+|includ\w+|contain\w*|available|known|know|possible|answer|determine[ds]?|found|tell)\b"
    r"|\bno (?:information|mention|answer)\b|\bunknown\b|\bi don'?t know\b|\bcannot (?:be|answer|determine|say|tell)\b"
    r"|\bunable to\b|\bnot in (?:the|this) (?:text|passage)\b|\bunclear\b",
    re.IGNORECASE,
)
_SYMBOL = re.compile(r"(?<![A-Za-z'’])[A-Z][a-z]?(?![A-Za-z'’])")
_ENGLISH = frozenset({"I", "A", "In", "Is", "It", "As", "At", "Be", "He", "No", "An", "On", "Of", "To", "We", "If",
                      "So", "My", "By", "Or", "Do", "Am", "Up", "Us"})  # fmt: skip
_EXPRESSION = re.compile(
    r"\d+(?:\.\d+)?\s*(?:[-+*/×x−÷]|plus|minus|times|multiplied by|and)\s*\d+(?:\.\d+)?(?:\s*(?:[-+*/×x−÷])\s*\d+)*",
    re.IGNORECASE,
)
_LEADING = re.compile(
    r"\b(?:is|are|was|equals?|equal to|equivalent to|number|gives?|makes?|get|answer)\W{1,3}$", re.IGNORECASE
)
_IS = re.compile(r"\b(?:is|equals|equal to)\W{1,3}$", re.IGNORECASE)
_BARE, _TERSE = 3, 5  # words
_NAME = re.compile(r"(?:[A-Z][\w'’-]*)(?:\s+[A-Z][\w'’-]*)*")
_NEGATIONS = frozenset({"not", "isnt", "never", "no", "cannot", "arent", "wasnt"})


class Label(msgspec.Struct, frozen=True, kw_only=True):
    """why: of an off-form answer; committed: a short answer in one line, ended by the model; onset: the character of
    the answer from which it contradicts the right one, None where that cannot be told exactly.
    """

    outcome: Outcome
    why: str = ""
    committed: bool = False
    onset: int | None = None


def label(item: Item, answer: str, finish_reason: str | None = "stop") -> Label:
    """How an answer is graded. finish_reason: as the server said it; an answer cut off by `length` is not committed."""
    given = words(answer, articles=True)
    if not given and not any(c.isalnum() for c in answer):
        return Label(outcome=OFF_FORM, why="empty")
    if loops([word.text for word in given]):
        return Label(outcome=OFF_FORM, why="loop")
    short = finish_reason == "stop" and len(given) <= COMMITTED_WORDS and "\n" not in answer.strip()
    grade = {"text": _text, "number": _number, "symbol": _symbol, "refusal": _refusal}[item.match]
    found = grade(item, answer)
    return msgspec.structs.replace(found, committed=short and found.outcome in (RIGHT, WRONG))


def loops(given: Sequence[str], repeats: int = 4) -> bool:
    """Whether up to 8 words come `repeats` times in a row and fill 8 words at least."""
    for size in range(1, 9):
        needed = max(repeats, -(-8 // size)) * size
        run = size
        for at in range(size, len(given)):
            run = run + 1 if given[at] == given[at - size] else size
            if run >= needed:
                return True
    return False


def refuses(answer: str) -> bool:
    return _REFUSALS.search(answer) is not None


def onset_token(onset: int | None, tokens: Sequence[str | None], answer: str) -> int | None:
    """Index of the token in which character `onset` lies; None where the tokens do not spell the answer.

    The answer may lack white space that its tokens begin with, and have no more at its end.
    """
    if onset is None or any(token is None for token in tokens):
        return None
    spelled = "".join(token or "" for token in tokens)
    shift = spelled.rfind(answer.strip())  # behind what was thought
    if shift < 0:
        return None
    place, end = onset - (len(answer) - len(answer.lstrip())) + shift, 0
    for index, token in enumerate(tokens):
        end += len(token or "")
        if place < end:
            return index
    return None


def _text(item: Item, answer: str) -> Label:
    text = words(answer)
    right = _stated(item.answer, text, covered_by=item.others)
    wrong = _stated(item.others, text, covered_by=item.answer)
    if right and not wrong:
        return Label(outcome=RIGHT)
    if right and wrong:
        # A card's other value beside the right one is no answer; of common knowledge the first that is said counts.
        if item.stated:
            return Label(outcome=OFF_FORM, why="several values")
        return Label(outcome=RIGHT) if right[0].start < wrong[0].start else Label(outcome=WRONG)
    if not wrong and refuses(answer):
        return Label(outcome=REFUSED)
    if not item.stated:
        return Label(outcome=WRONG)
    if wrong:
        return Label(outcome=WRONG, onset=_parting(answer, wrong[0].start, item.answer))
    name = _foreign_name(item, answer)
    if name is None:
        return Label(outcome=OFF_FORM, why="no value")
    return Label(outcome=WRONG, onset=_parting(answer, name, item.answer))


def _stated(values: Sequence[str], text: list[Word], *, covered_by: Sequence[str]) -> list[Word]:
    """Where values are said and not denied, and are no part of a longer value, in their order."""
    longer = [span for value in covered_by for span in find(value, text)]
    found = []
    for value in values:
        for first, last in find(value, text):
            inside = any(a <= first and last <= b and b - a > last - first for a, b in longer)
            denied = _NEGATIONS & {word.text for word in text[max(0, first - 2) : first]}
            if not inside and not denied:
                found.append(text[first])
    return sorted(found, key=lambda word: word.start)


def _foreign_name(item: Item, answer: str) -> int | None:
    """Where the first name begins that the question does not have; a sentence's first word needs more than that."""
    asked = {word.text for word in words(item.question)}
    for match in _NAME.finditer(answer):
        for word in words(match.group()):
            at = match.start() + word.start
            before = answer[:at].rstrip()
            opens = not before or before[-1] in ".!?:\n"
            alone = opens and len(words(answer)) > 3 and " " not in match.group()
            if word.text not in asked and not alone:
                return at
    return None


def _number(item: Item, answer: str) -> Label:
    found = _answering(item, answer)
    right = float(item.answer[0])
    if found is None:
        return Label(outcome=REFUSED) if refuses(answer) else Label(outcome=OFF_FORM, why="no number")
    if item.stated and item.others:
        said = {number.value for number in numbers(answer)}
        if right in said and said & {float(other) for other in item.others}:
            return Label(outcome=OFF_FORM, why="several values")
    if found.value == right:
        return Label(outcome=RIGHT)
    onset = _parting(answer, found.start, item.answer) if item.stated else None
    return Label(outcome=WRONG, onset=onset)


def _answering(item: Item, answer: str) -> Number | None:
    """The number that answers: behind the last `=`; else, in a card's answer or a short one, the first that is neither
    in an expression nor in the question, in a longer one the first of those that a verb or "number" leads to. One of
    the question's own only where nothing else is said, or behind "is".
    """
    if "=" in answer:
        behind = answer.rindex("=") + 1
        rest = [number for number in numbers(answer) if number.start >= behind]
        if rest:
            return rest[0]
    spans = [match.span() for match in _EXPRESSION.finditer(answer)]
    left = [n for n in numbers(answer) if not any(a <= n.start < b for a, b in spans)]
    asked = {number.value for number in numbers(item.question)}
    size = len(words(answer, articles=True))
    fresh = [n for n in left if n.value not in asked]
    if item.match == "number" and item.domain != CONTEXT and size > _TERSE:
        fresh = [n for n in fresh if _LEADING.search(answer[: n.start])]
    if fresh:
        return fresh[0]
    if size <= _BARE:
        return left[0] if left else None
    said = [n for n in left if _IS.search(answer[: n.start])]
    return said[0] if said and size <= COMMITTED_WORDS else None


def _symbol(item: Item, answer: str) -> Label:
    found = []
    for match in _SYMBOL.finditer(answer):
        after = re.match(r"\s+([a-z])", answer[match.end() :])
        if not (match.group() in _ENGLISH and after):
            found.append(match.group())
    if not found:
        return Label(outcome=REFUSED) if refuses(answer) else Label(outcome=OFF_FORM, why="no symbol")
    return Label(outcome=RIGHT if found[0] == item.answer[0] else WRONG)


def _refusal(item: Item, answer: str) -> Label:
    """Right is to say that the text does not say it; whatever value is stated is wrong, beside a refusal too."""
    asked = {number.value for number in numbers(item.question)}
    values = [number.start for number in numbers(answer) if number.value not in asked]
    values += [word.start for word in _stated(item.others, words(answer), covered_by=())]
    if not values and not refuses(answer):
        name = _foreign_name(item, answer)
        values = [] if name is None else [name]
    if values:
        return Label(outcome=WRONG, onset=min(values))
    return Label(outcome=RIGHT) if refuses(answer) else Label(outcome=OFF_FORM, why="no value")


def _parting(answer: str, start: int, right: Sequence[str]) -> int:
    """The first character from `start` on that no alias has at its place; one that stops too early parts at its end."""
    said = answer[start:]
    common = 0
    for alias in right:
        same = next((i for i, (a, b) in enumerate(zip(said, alias, strict=False)) if a.casefold() != b.casefold()),
                    min(len(said), len(alias)))  # fmt: skip
        common = max(common, same)
    return min(start + common, len(answer) - 1)
