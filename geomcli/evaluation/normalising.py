"""Texts as they are compared: words without case, accents, articles and punctuation, each with its place."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

# A number is one word with its point and without its commas: 2.5 is no 2, and 5,000 no 5.
_FIGURES = r"(?<![\w.,])\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\w)|(?<![\w.,])\d+\.\d+(?!\w|\.\d)"
_WORD = re.compile(rf"{_FIGURES}|\w+(?:['’]\w+)*", re.UNICODE)
_NUMBER = re.compile(r"(?<![\w.,])[-−]?\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\w)|(?<![\w.])[-−]?\d+(?:\.\d+)?")
_SCALE = re.compile(r"[ -](hundred|thousand|million|billion)\b", re.IGNORECASE)
_ARTICLES = frozenset({"the", "a", "an"})
_SMALL = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
          "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")  # fmt: skip
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SPELLED = {word: value for value, word in enumerate(_SMALL)} | {word: 10 * at for at, word in enumerate(_TENS, 2)}
_SCALES = {"hundred": 100, "thousand": 1_000, "million": 10**6, "billion": 10**9}


class Word(NamedTuple):
    """`text`: as compared; the word lies at [start, end) of the text it came from."""

    text: str
    start: int
    end: int


class Number(NamedTuple):
    value: float
    start: int
    end: int


def words(text: str, *, articles: bool = False) -> list[Word]:
    """Words in their order; `articles`: keep the, a and an."""
    found = [Word(_plain(match.group()), match.start(), match.end()) for match in _WORD.finditer(text)]
    return [word for word in found if word.text and (articles or word.text not in _ARTICLES)]


def _plain(word: str) -> str:
    if word[0].isdigit() and not word.isalnum():
        word = word.replace(",", "")
        return word if "." in word else "".join(c for c in word if c.isalnum())
    decomposed = unicodedata.normalize("NFKD", word.replace("ß", "ss").replace("œ", "oe").casefold())
    return "".join(c for c in decomposed if c.isalnum())


def find(phrase: str, text: list[Word]) -> list[tuple[int, int]]:
    """Word ranges [first, last) of `text` that are the phrase, word by word."""
    wanted = [word.text for word in words(phrase)]
    size = len(wanted)
    if not size:
        return []
    given = [word.text for word in text]
    return [(at, at + size) for at in range(len(given) - size + 1) if given[at : at + size] == wanted]


def numbers(text: str) -> list[Number]:
    """Numbers in digits (1,234.5, -3, 5.7 million) and in English words, in their order."""
    found = []
    for match in _NUMBER.finditer(text):
        value, end = float(match.group().replace(",", "").replace("−", "-")), match.end()
        if scale := _SCALE.match(text, end):
            value, end = value * _SCALES[scale.group(1).lower()], scale.end()
        found.append(Number(value, match.start(), end))
    spelled = words(text, articles=True)
    short = len(spelled) <= 3
    at = 0
    while at < len(spelled):
        value, after = _spelled(spelled, text, at)
        lone = after == at + 1 and spelled[at].text == "one"
        none = at > 0 and spelled[at - 1].text == "no" and not text[spelled[at - 1].end : spelled[at].start].strip()
        if after > at and not (lone and (none or not short)):  # "no one", "the one that"
            found.append(Number(float(value), spelled[at].start, spelled[after - 1].end))
        at = max(after, at + 1)
    return sorted(found, key=lambda number: number.start)


def whole_number(text: str) -> float | None:
    """The value of a text that is a number and nothing else."""
    text = text.strip()
    found = numbers(text)
    return found[0].value if len(found) == 1 and (found[0].start, found[0].end) == (0, len(text)) else None


def _spelled(given: list[Word], text: str, at: int) -> tuple[int, int]:
    """The number in words that begins at word `at`, and the word behind it: `at` where none begins."""
    total = group = 0
    last, after = "", at
    for place in range(at, len(given)):
        word = given[place].text
        if place > at and text[given[place - 1].end : given[place].start] not in (" ", "-"):
            break
        value = _SPELLED.get(word)
        if value is not None and (last in ("", "scale") or (last == "tens" and 0 < value < 10)):
            group, last = group + value, "tens" if value >= 20 else "end"
        elif value is not None and value >= 10 and place == at + 1 and 11 <= group <= 20:  # "nineteen eighty-four"
            group, last = group * 100 + value, "tens" if value >= 20 else "end"
        elif word in ("a", "an") and place == at:
            group, last = 1, "article"
            continue
        elif word == "and" and last == "scale":
            continue
        elif word == "hundred" and last not in ("", "scale") and 0 < group < 100:
            group, last = group * 100, "scale"
        elif word in _SCALES and word != "hundred" and last != "" and 0 < group < 1000:
            total, group, last = total + group * _SCALES[word], 0, "scale"
        else:
            break
        after = place + 1
    return total + group, after
