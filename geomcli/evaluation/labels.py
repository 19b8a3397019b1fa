"""Labels of answers: right, wrong, refused or off-form, and where a wrong answer first contradicts the right one.

Exact match after normalisation, or an alias found word by word; numbers by value. No measure of overlap: a long answer
overlaps with everything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import msgspec

from geomcli.evaluation.items import ARITHMETIC, FACTS, Item
from geomcli.evaluation.normalising import Number, Word, find, numbers, whole_number, words

Outcome = Literal["right", "wrong", "refused", "off_form"]
RIGHT: Literal["right"] = "right"
WRONG: Literal["wrong"] = "wrong"
REFUSED: Literal["refused"] = "refused"
OFF_FORM: Literal["off_form"] = "off_form"
COMMITTED_WORDS = 12

# What is denied or refused goes no further than its clause.
_CUT = re.compile(
    r"[;:!?\n()…—]|[.,](?!\d)|\s[-–]\s|\band\s(?=(?:it|he|she|they|this|that)\b)"
    r"|(?<!\banything )(?<!\beverything )(?<!\banywhere )(?<!\bnothing )(?<!\ball )\bbut\b",
    re.IGNORECASE,
)
_DENIAL = re.compile(
    r"(?<!\bor )\bnot\b(?! only| just| merely| surprisingly)(?!.*\b(?:until|till)\b)|n't\b(?! only| just)"
    r"|\b(?:is|are|was|were|do|does|did)nt\b|\b(?:cannot|never|neither|nor|except|i doubt)\b"
    r"|\bno\b(?! doubt| question| wonder| other than)|\b(?:anything|everything|anywhere|all) but\b"
    r"|(?<!\bnone )(?<!\bno )\bother than\b|\brather than\b|\binstead of\b"
    r"|\b(?:used to|formerly|previously)\b(?!.*\bnow\b)|\b(?:false|untrue|wrong|incorrect) (?:that|to)\b",
    re.IGNORECASE,
)
_DENIED_BEHIND = re.compile(
    r"[\"'*]*\s+(?:(?:is|was|are|were)(?:n't| not)|cannot be|can't be)"
    r"(?:\s+(?:the|it|its|right|correct|true|that|one)\b|\W*$)"
    r"|[\"'*]*\s+(?:is|was) (?:wrong|incorrect|false|untrue)\b",
    re.IGNORECASE,
)
_NOT = r"(?:\bnot\b(?! only| just)|n't\b|\b(?:do|does|did|is|was|ca)nt\b|\bcannot\b|\bnever\b|\bunable to\b)\s+"
_UN = r"un(?:known|clear|specified|stated|certain)"
_REFUSALS = re.compile(
    _NOT + r"(?:(?!an?\b|the\b)\w+\s+){0,2}?(?:in (?:the|this) (?:text|passage)|say|said|state[ds]?|mention(?:ed)?|"
    r"give|given|provide[ds]?|specif\w+|includ\w+|contain\w*|available|know|known|possible|answer|answered|"
    r"determine[ds]?|found|find|tell|told|see|seen|clear|sure|certain|enough|disclose[ds]?|indicate[ds]?|identif\w+|reveal(?:ed)?|"
    r"listed|described?|recall|remember)\b"
    + "|" + _NOT + r"have\s+(?:\w+\s+){0,3}?(?:information|answer|data|access|knowledge|details|idea)\b"
    r"|\bno (?:\w+ ){0,2}?(?:information|mention|answer|indication|record|idea|clue)\b|\bdunno\b"
    r"|\b(?:say|says|said|state|states|mention|mentions) nothing\b"
    r"|\bnothing (?:is |was )?(?:said|stated|mentioned|about)\b"
    r"|\b(?:am|are|is|was|'m|'re) unable to\b|\binsufficient information\b"
    rf"|\b(?:is|are|was|were|remains?|currently|still)\s+{_UN}\b|^\W*{_UN}(?:\W*$|\s+(?:from|in|to|based|whether)\b)"
    rf"|(?<!\bthe )(?<!\ban )(?<!\bof ){_UN}\W*$|^\W*(?:no one|nobody|none|nothing|n/a|not applicable)\W*$",
    re.IGNORECASE,
)  # fmt: skip
_SYMBOL = re.compile(r"(?<![A-Za-z'])[A-Z][a-z]?(?![A-Za-z'])")
_ENGLISH = frozenset({"I", "A", "In", "Is", "It", "As", "At", "Be", "He", "No", "An", "On", "Of", "To", "We", "If",
                      "So", "My", "By", "Or", "Do", "Am", "Up", "Us"})  # fmt: skip
_OPENER = re.compile(r"\s*(?:(?:So|No|Oh|Ah)\s*[,.:!]|[A-E]\s*[.):])\s*(?=\S)")  # "So, He", "A. He"
_SIGN = r"(?:[-+*/×x−÷]|plus|minus|times|multiplied by|and)"
_EXPRESSION = re.compile(rf"\d+(?:\.\d+)?\s*{_SIGN}\s*\d+(?:\.\d+)?(?:\s*[-+*/×x−÷]\s*\d+)*", re.IGNORECASE)
_STEP = re.compile(r"=[ \t]*\d+(?:\.\d+)?(?:[ \t]*[-+*/×x−÷][ \t]*\d+(?:\.\d+)?)+(?:[ \t]*=)?")
_OPERATORS = {"plus": "+", "and": "+", "minus": "-", "−": "-", "times": "*", "multiplied by": "*", "×": "*", "x": "*",
              "÷": "/"}  # fmt: skip
_LEADING = re.compile(
    r"(?:\b(?:is|are|was|equals?|equal to|equivalent to|number|gives?|makes?|get|answer|result|total|comes? to|exactly|"
    r"amounts? to|adds? up to|yields?|totals|represent(?:s|ing)?|denotes|means|stands for|corresponds to|"
    r"(?:number|value|sum|total|result|product|difference|answer) of)"
    r"(?:\s+(?:exactly|about|approximately|simply|just|only|therefore|also))?|=)\W{1,3}$",
    re.IGNORECASE,
)
_IS = re.compile(r"\b(?:is|equals|equal to)\W{1,3}$", re.IGNORECASE)
_BARE, _TERSE = 3, 5  # words
_NAME = re.compile(r"(?:[A-Z][\w'-]*)(?:\s+[A-Z][\w'-]*)*")
_TELLS = re.compile(r"\b(?:mentions?|states?|says?|provides?|specif(?:y|ies))\b", re.IGNORECASE)
_NO_NAMES = {"i", "im", "id", "ill", "ive", "it", "its", "he", "she", "they", "we", "you", "this", "that", "there",
             "no", "not", "none", "nobody", "yes", "sorry", "unfortunately", "however", "according", "text", "passage",
             "question", "answer", "in", "on", "at", "of", "is", "are", "was", "and", "or", "so", "by", "from", "as",
             "with"}  # fmt: skip
_TITLES = {"mr", "mrs", "ms", "miss", "dr", "sir", "lord", "lady", "king", "queen", "president", "count", "monsieur"}
_SIDES = re.compile(r"(?:(?:north|south|east|west|central)(?:ern)?|(?:north|south)(?:east|west)(?:ern)?|sub|saharan)")


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
    answer = answer.replace("’", "'")
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
    """Whether one of its clauses says that the answer is not known."""
    ends = [*((m.start(), m.end()) for m in _CUT.finditer(answer)), (len(answer), len(answer))]
    begins = [0, *(end for _, end in ends)]
    return any(_REFUSALS.search(answer[a:b]) for a, (b, _) in zip(begins, ends, strict=False))


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


class _Place(NamedTuple):
    """Where a value is written."""

    start: int
    end: int


def _clause(answer: str, place: _Place) -> _Place:
    cuts = list(_CUT.finditer(answer))
    return _Place(
        max((cut.end() for cut in cuts if cut.end() <= place.start), default=0),
        min((cut.start() for cut in cuts if cut.start() >= place.end), default=len(answer)),
    )


def _denial(answer: str, place: _Place) -> int | None:
    """Where the words begin that deny what is written at `place`, in its clause."""
    start, end = _clause(answer, place)
    before = _DENIAL.search(answer[start : place.start])
    if before:
        return start + before.start()
    return place.end if _DENIED_BEHIND.match(answer[place.end : end]) else None


def _is_said(answer: str, place: _Place) -> bool:
    """Not denied, and not in a clause that refuses: "the text does not say that it was founded in 1820"."""
    start, end = _clause(answer, place)
    around = f"{answer[start : place.start]}…{answer[place.end : end]}"  # "nothing" may be the value itself
    return not _REFUSALS.search(around) and _denial(answer, place) is None


def _first_denied(answer: str, places: Iterable[_Place]) -> int | None:
    return min((at for at in (_denial(answer, place) for place in places) if at is not None), default=None)


def _written(item: Item, values: Sequence[str], answer: str, *, covered_by: Sequence[str] = ()) -> list[_Place]:
    """Where values are written that are no part of a longer value or name, in their order; numbers by value."""
    text = words(answer)
    longer = [span for value in covered_by for span in find(value, text)]
    found = []
    for value in values:
        number = whole_number(value)
        if number is not None:
            found += [_Place(n.start, n.end) for n in numbers(answer) if n.value == number]
            continue
        for first, last in find(value, text):
            inside = any(a <= first and last <= b and b - a > last - first for a, b in longer)
            if not inside and not _in_longer_name(item, values, answer, text, first, last):
                found.append(_Place(text[first].start, text[last - 1].end))
    # "Wells" in a denied "H. G. Wells" is not said either.
    return sorted(p for p in found if not any(q != p and q.start <= p.start and p.end <= q.end for q in found))


def _in_longer_name(item: Item, values: Sequence[str], answer: str, text: list[Word], first: int, last: int) -> bool:
    """Whether words [first, last) are a part of a hyphenated name (Guinea-Bissau), or one capitalised word of several
    (Equatorial Guinea). Words of the question are not: "Paris France".
    """
    asked = {word.text for word in words(item.question)}
    start, end = text[first].start, text[last - 1].end
    if first and answer[text[first - 1].end : start] == "-" and text[first - 1].text not in asked:
        return True
    if last < len(text) and answer[end : text[last].start] == "-" and text[last].text not in asked:
        return True
    if last - first > 1 or not answer[start].isupper():
        return False

    def belongs(place: int, neighbour: int) -> bool:
        word, left, right = text[place], *sorted((place, neighbour))
        opening = not answer[: word.start].strip(" *_\"'") and word.text.endswith("ly")
        between = answer[text[left].end : text[right].start]
        return bool(between) and not between.strip(" *_") and answer[word.start].isupper() and not (
            opening or word.text in asked or word.text in _NO_NAMES or word.text in _TITLES
        )  # fmt: skip

    a, b = first, last
    while a and belongs(a - 1, a):
        a -= 1
    while b < len(text) and belongs(b, b - 1):
        b += 1
    if b - a == 1:
        return False
    run, own = [word.text for word in text[a:b]], text[first].text
    if own in ("africa", "asia", "europe") and b == last and all(map(_SIDES.fullmatch, run[:-1])):
        return own == "africa" and run[-2] == "south"
    wholes = [[word.text for word in words(value)] for value in values]
    return not any(
        whole[-1:] == run[-1:] and (whole[0] == run[0] or "".join(w[0] for w in whole[:-1]) == "".join(run[:-1]))
        for whole in wholes if len(whole) > 1
    )  # fmt: skip


def _foreign_name(item: Item, answer: str) -> int | None:
    """Where the first name begins that is said and is not in the question; a sentence's first word alone is none.

    Beside a refusal, what the text tells instead is no answer: "it does mention that Stastour employs 543 people".
    """
    refused = refuses(answer)
    asked = {word.text for word in words(item.question)}
    size = len(words(answer))
    for match in _NAME.finditer(answer):
        for word in words(match.group()):
            at, text = match.start() + word.start, _plain_name(match.group()[word.start : word.end])
            before = answer[:at].rstrip()
            opens = not before or before[-1] in ".!?:\n"
            alone = opens and size > 3 and " " not in match.group()
            known = text in asked or text in _NO_NAMES or alone
            place = _Place(at, match.start() + word.end)
            clause = answer[slice(*_clause(answer, place))]
            told = refused and (_TELLS.search(clause) or _REFUSALS.search(clause))
            if not known and not told and _is_said(answer, place):
                return at
    return None


def _plain_name(word: str) -> str:
    return "".join(part.text for part in words(word.removesuffix("'s")))


def _text(item: Item, answer: str) -> Label:
    right_places = _written(item, item.answer, answer, covered_by=item.others)
    right = [place for place in right_places if _is_said(answer, place)]
    wrong = [p for p in _written(item, item.others, answer, covered_by=item.answer) if _is_said(answer, p)]
    if right and not wrong:
        return Label(outcome=RIGHT)
    if right and wrong:
        # A card's other value beside the right one is no answer; of common knowledge the first that is said counts.
        if item.stated:
            return Label(outcome=OFF_FORM, why="several values")
        return Label(outcome=RIGHT) if right[0] < wrong[0] else Label(outcome=WRONG)
    if wrong:
        return Label(outcome=WRONG, onset=_parting(answer, wrong[0].start, item.answer) if item.stated else None)
    name = _foreign_name(item, answer) if item.stated else None
    if name is not None:
        return Label(outcome=WRONG, onset=_parting(answer, name, item.answer))
    if refuses(answer):
        return Label(outcome=REFUSED)
    if not item.stated:
        return Label(outcome=WRONG)
    denied = _first_denied(answer, right_places)
    return Label(outcome=OFF_FORM, why="no value") if denied is None else Label(outcome=WRONG, onset=denied)


def _number(item: Item, answer: str) -> Label:
    given = [float(value) for value in item.answer]
    said = _said_numbers(answer)
    found = _answering(item, answer, said)
    if found is None:
        if refuses(answer):
            return Label(outcome=REFUSED)
        denied = _first_denied(answer, (_Place(n.start, n.end) for n in numbers(answer) if n.value in given))
        if denied is None:
            return Label(outcome=OFF_FORM, why="no number")
        return Label(outcome=WRONG, onset=denied if item.stated else None)
    if item.stated and item.others:
        values = {number.value for number in said}
        if values & set(given) and values & {float(other) for other in item.others}:
            return Label(outcome=OFF_FORM, why="several values")
    if found.value in given:
        return Label(outcome=RIGHT)
    onset = _parting(answer, found.start, item.answer) if item.stated else None
    return Label(outcome=WRONG, onset=onset)


def _said_numbers(answer: str) -> list[Number]:
    return [n for n in numbers(answer) if _is_said(answer, _Place(n.start, n.end))]


def _answering(item: Item, answer: str, said: Sequence[Number]) -> Number | None:
    """The number that answers: behind `=`; else the first that is neither in an expression nor in the question, in a
    longer answer to a fact or a sum only behind a verb or "number". One of the question's own only where nothing else
    is said, or behind "is".
    """
    if "=" in answer:
        behind = _behind_equals(item, answer)
        rest = [number for number in said if number.start >= behind]
        if rest:
            return rest[0]
    spans = [match.span() for match in _EXPRESSION.finditer(answer)]
    left = [n for n in said if not any(a <= n.start < b for a, b in spans)]
    asked = {number.value for number in numbers(item.question)}
    size = len(words(answer, articles=True))
    fresh = [n for n in left if n.value not in asked]
    if item.domain in (FACTS, ARITHMETIC) and size > _TERSE:
        fresh = [n for n in fresh if _LEADING.search(answer[: n.start])]
    if fresh:
        return fresh[0]
    if size <= _BARE:
        return left[0] if left else None
    led = [n for n in left if _IS.search(answer[: n.start])]
    return led[0] if led and size <= COMMITTED_WORDS else None


def _behind_equals(item: Item, answer: str) -> int:
    """Behind the `=` that the question's expression stands before, or the first, and behind steps: = 20 + 39 = 59."""
    asked = {_meaning(match.group()) for match in _EXPRESSION.finditer(item.question)}
    place = answer.index("=")
    for match in _EXPRESSION.finditer(answer):
        sign = re.match(r"[\s)*\"']*=", answer[match.end() :])
        if sign and _meaning(match.group()) in asked:
            place = match.end() + sign.end() - 1
            break
    while step := _STEP.match(answer, place):
        place = step.end() - step.group().endswith("=")
        if not step.group().endswith("="):
            break
    return place


def _meaning(expression: str) -> tuple[str, ...]:
    signs = [_OPERATORS.get(sign.casefold(), sign) for sign in re.findall(_SIGN, expression, re.IGNORECASE)]
    values = [format(float(value), "g") for value in re.findall(r"\d+(?:\.\d+)?", expression)]
    return (*signs, *(sorted(values) if set(signs) in ({"+"}, {"*"}) else values))


def _symbol(item: Item, answer: str) -> Label:
    places = _symbols(answer)
    opener = _OPENER.match(answer)
    if opener and any(place.start >= opener.end() for place in places):
        places = [place for place in places if place.start >= opener.end()]
    said = [answer[p.start : p.end] for p in places if _is_said(answer, p)]
    if said:
        return Label(outcome=RIGHT if said[0] == item.answer[0] else WRONG)
    if refuses(answer):
        return Label(outcome=REFUSED)
    denied = item.answer[0] in {answer[p.start : p.end] for p in places}
    return Label(outcome=WRONG) if denied else Label(outcome=OFF_FORM, why="no symbol")


def _symbols(answer: str) -> list[_Place]:
    """Symbols, but for English words before another word: "He is"."""
    found = [_Place(match.start(), match.end()) for match in _SYMBOL.finditer(answer)]
    return [p for p in found if answer[p.start : p.end] not in _ENGLISH or not re.match(r"\s+[a-z]", answer[p.end :])]


def _refusal(item: Item, answer: str) -> Label:
    """Right is to say that the text does not say it; whatever value is stated is wrong, beside a refusal too."""
    asked = {number.value for number in numbers(item.question)}
    values = [number.start for number in _said_numbers(answer) if number.value not in asked]
    values += [place.start for place in _written(item, item.others, answer) if _is_said(answer, place)]
    if not values:
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
