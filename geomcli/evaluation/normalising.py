"""Texts as they are compared: words without case, accents, articles and punctuation, each with its place."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

_WORD = re.compile(r"\w+(?:['’]\w+)*", re.UNICODE)
_NUMBER = re.compile(r"(?<![\w.,])[-−]?\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\w)|(?<![\w.])[-−]?\d+(?:\.\d+)?")
_ARTICLES = frozenset({"the", "a", "an"})
_SMALL = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
          "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")  # fmt: skip
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_WORDS_OF_NUMBERS = {word: value for value, word in enumerate(_SMALL)} | {
    word: 10 * value for value, word in enumerate(_TENS, 2)
}


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
    """Numbers in digits (1,234.5, -3) and in English words up to ninety-nine, in their order."""
    found = [
        Number(float(match.group().replace(",", "").replace("−", "-")), match.start(), match.end())
        for match in _NUMBER.finditer(text)
    ]
    spelled = words(text, articles=True)
    short = len(spelled) <= 3
    at = 0
    while at < len(spelled):
        word = spelled[at]
        value = _WORDS_OF_NUMBERS.get(word.text)
        end = word.end
        if value is not None and (short or word.text != "one"):  # "no one", "the one that"
            after = spelled[at + 1] if at + 1 < len(spelled) else None
            unit = _WORDS_OF_NUMBERS.get(after.text) if after and text[word.end : after.start] in ("-", " ") else None
            if value >= 20 and unit is not None and 0 < unit < 10 and after:
                value, end, at = value + unit, after.end, at + 1
            found.append(Number(float(value), word.start, end))
        at += 1
    return sorted(found, key=lambda number: number.start)
