"""Closed-book questions of easier kinds, made from tables and from arithmetic, each fact in several wordings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from geomcli.evaluation import tables
from geomcli.evaluation.items import ARITHMETIC, FACTS, Item, Match, closed_book
from geomcli.evaluation.normalising import find, words

_LIMITS = {"sum": (11, 90), "difference": (11, 90), "product": (2, 20)}


@dataclass(frozen=True)
class _Fact:
    """subject: what facts of several kinds may have in common; wordings: the same question, in other words; name: what
    tells facts of one kind and subject apart.
    """

    kind: str
    subject: str
    wordings: tuple[str, ...]
    answer: tuple[str, ...]
    match: Match = "text"
    others: tuple[str, ...] = ()
    name: str = ""


def pool() -> list[Item]:
    """Every item that can be drawn, each wording of each fact, in a fixed order, but for questions that hold their
    own answer.
    """
    return list(_all())


@cache
def _all() -> tuple[Item, ...]:
    return tuple(item for fact in _facts() for item in _items(fact))


def draw(n: int, seed: int) -> list[Item]:
    """n items, as many of each kind as there can be, a second wording of a fact only when each fact has its first."""
    generator = np.random.default_rng([seed, 1])
    queues: list[list[Item]] = []
    for kind in _by(pool(), "kind"):
        facts = _by(kind, "group")
        orders = [generator.permutation(len(wordings)) for wordings in facts]
        turns = max(len(wordings) for wordings in facts)
        queue: list[Item] = []
        for turn in range(turns):
            of_turn = [f[o[turn]] for f, o in zip(facts, orders, strict=True) if turn < len(f)]
            queue += [of_turn[place] for place in generator.permutation(len(of_turn))]
        queues.append(queue)
    chosen = [queue[place] for place in range(max(map(len, queues))) for queue in queues if place < len(queue)]
    return chosen[:n]


def _by(items: Iterable[Item], field: str) -> list[list[Item]]:
    found: dict[str, list[Item]] = {}
    for item in items:
        found.setdefault(getattr(item, field), []).append(item)
    return list(found.values())


def _items(fact: _Fact) -> Iterator[Item]:
    domain = ARITHMETIC if fact.match == "number" and fact.kind in (*_LIMITS, "roman") else FACTS
    for number, question in enumerate(fact.wordings):
        if fact.match == "text" and any(find(alias, words(question)) for alias in fact.answer):
            continue
        yield Item(
            id=f"{fact.kind}:{fact.name or fact.subject}:{number}", kind=fact.kind, domain=domain, group=fact.subject,
            prompt=closed_book(question), question=question, answer=fact.answer, match=fact.match, others=fact.others,
            stated=fact.match == "number",
        )  # fmt: skip


def _facts() -> Iterator[_Fact]:
    yield from _of_countries()
    yield from _of_elements()
    yield from _of_words()
    yield from _of_numbers()


def _others(values: Sequence[Sequence[str]], own: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value[0] for value in values if not set(value) & set(own)))


def _of_countries() -> Iterator[_Fact]:
    capitals = [capital for _, capital, _ in tables.COUNTRIES]
    for country, capital, continent in tables.COUNTRIES:
        subject = f"country:{country}"
        wordings = (f"What is the capital of {country}?", f"Which city is the capital of {country}?",
                    f"Name the capital city of {country}.")  # fmt: skip
        yield _Fact("capital", subject, wordings, tuple(capital), others=_others(capitals, capital))
        others = tuple(name for name in tables.CONTINENTS if name not in continent and name != "America")
        on = (f"On which continent is {country}?", f"Which continent does {country} belong to?")
        yield _Fact("continent", subject, on, tuple(continent), others=others)
        plain = country.removeprefix("the ")
        of = (f"{capital[0]} is the capital of which country?",)
        names = [[c.removeprefix("the ")] for c, _, _ in tables.COUNTRIES]
        yield _Fact("country", subject, of, (plain,), others=_others(names, [plain]))


def _of_elements() -> Iterator[_Fact]:
    for number, (name, symbol) in enumerate(tables.ELEMENTS, 1):
        subject = f"element:{name}"
        signs = (f"What is the chemical symbol of {name}?", f"Which symbol does the element {name} have?")
        yield _Fact("symbol", subject, signs, (symbol,), "symbol")
        numbers = (f"What is the atomic number of {name}?", f"Which atomic number does {name} have?")
        yield _Fact("atomic_number", subject, numbers, (str(number),), "number")


def _of_words() -> Iterator[_Fact]:
    for word, opposites in tables.ANTONYMS:
        wordings = (f'What is the opposite of "{word}"?', f'Name an antonym of the word "{word}".')
        yield _Fact("antonym", f"word:{word}", wordings, tuple(opposites))
    for verb, forms in tables.PAST_TENSES:
        wordings = (f'What is the past tense of the verb "{verb}"?', f'What is the simple past of "to {verb}"?')
        yield _Fact("past_tense", f"word:{verb}", wordings, tuple(forms))
    for noun, forms in tables.PLURALS:
        wordings = (f'What is the plural of "{noun}"?', f'How is the plural of the noun "{noun}" written?')
        yield _Fact("plural", f"word:{noun}", wordings, tuple(forms))
    for english, meanings in tables.TRANSLATIONS:
        for language, translations in meanings.items():
            wordings = (f'What is "{english}" in {language}?', f'Translate the word "{english}" into {language}.')
            yield _Fact("translation", f"word:{english}", wordings, tuple(translations), name=f"{english}:{language}")
    authors = [names for _, names in tables.AUTHORS]
    for title, names in tables.AUTHORS:
        # Books of one author are one group: who learned the author from one of them knows the other's.
        wordings = (f"Who wrote {title}?", f"Who is the author of {title}?")
        yield _Fact("author", f"author:{names[0]}", wordings, tuple(names), others=_others(authors, names), name=title)


def _of_numbers() -> Iterator[_Fact]:
    generator = np.random.default_rng(7)
    for kind, sign, word in (("sum", "+", "plus"), ("difference", "-", "minus"), ("product", "*", "times")):
        least, most = _LIMITS[kind]
        first, second = np.meshgrid(np.arange(least, most), np.arange(least, most))
        pairs = np.column_stack([first.ravel(), second.ravel()])
        pairs = pairs[pairs[:, 0] > pairs[:, 1]]
        for a, b in pairs[generator.choice(len(pairs), size=min(170, len(pairs)), replace=False)].tolist():
            result = {"+": a + b, "-": a - b, "*": a * b}[sign]
            asked = [f"What is {a} {sign} {b}?", f"How much is {a} {word} {b}?"]
            if sign != "-":
                asked.append(f"What is {b} {sign} {a}?")
            yield _Fact(kind, f"{kind}:{a}:{b}", tuple(asked), (str(result),), "number")
    for value in range(4, 100):
        numerals = (f"Which number is the Roman numeral {_roman(value)}?",
                    f"Write the Roman numeral {_roman(value)} in digits.")  # fmt: skip
        yield _Fact("roman", f"roman:{value}", numerals, (str(value),), "number")


def _roman(value: int) -> str:
    made = ""
    for size, letters in ((90, "XC"), (50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")):
        while value >= size:
            made, value = made + letters, value - size
    return made
