"""Short texts about things that do not exist, and a question that the text answers, leaves open, or answers twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from geomcli.evaluation.items import CONTEXT, REFUSAL, Item, Match

KINDS = ("card_present", "card_absent", "card_conflict")
_SHARES = (0.4, 0.3, 0.3)
_INSTRUCTION = f'Answer from the text, in a few words. If the text does not say it, answer "{REFUSAL}".'
_ONSETS = ("b", "br", "d", "dr", "f", "g", "gr", "h", "k", "kl", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v",
           "w", "z")  # fmt: skip
_VOWELS = ["a", "e", "i", "o", "u", "ai", "ea", "ou"]
_CODAS = ["l", "m", "n", "nd", "r", "rk", "s", "th", "x"]


@dataclass(frozen=True)
class _Attribute:
    sentence: str  # of {name} and {value}
    question: str
    match: Match
    least: int = 0
    most: int = 0


_ATTRIBUTES = (
    _Attribute("{name} was founded in {value}.", "In which year was {name} founded?", "number", 1710, 1995),
    _Attribute("{name} employs {value} people.", "How many people does {name} employ?", "number", 120, 980),
    _Attribute("A day ticket for {name} costs {value} crowns.", "How many crowns does a day ticket for {name} cost?",
               "number", 12, 98),
    _Attribute("{name} lies {value} metres above the sea.", "How many metres above the sea does {name} lie?", "number",
               1010, 4890),
    _Attribute("The archive of {name} holds {value} letters.", "How many letters does the archive of {name} hold?",
               "number", 2100, 9800),
    _Attribute("{name} is directed by {value}.", "Who directs {name}?", "text"),
    _Attribute("The bridge of {name} was designed by {value}.", "Who designed the bridge of {name}?", "text"),
    _Attribute("{name} belongs to the province of {value}.", "To which province does {name} belong?", "text"),
)  # fmt: skip
_SOURCES = ("the harbour register", "the town ledger", "the museum guide", "the yearly report", "the parish book")


def draw(n: int, seed: int) -> list[Item]:
    """n cards, each its own group: 2 of 5 answered by the text, 3 of 10 not, 3 of 10 told apart by their source."""
    generator = np.random.default_rng([seed, 2])
    kinds = generator.permutation(np.repeat(KINDS, _counts(n)))
    return [_card(generator, number, str(kind)) for number, kind in enumerate(kinds)]


def _counts(n: int) -> list[int]:
    present, absent = round(n * _SHARES[0]), round(n * _SHARES[1])
    return [present, absent, n - present - absent]


def _card(generator: np.random.Generator, number: int, kind: str) -> Item:
    names = _names(generator, 3)
    chosen = [_ATTRIBUTES[i] for i in generator.permutation(len(_ATTRIBUTES))]
    asked, rest = chosen[0], chosen[1:4]
    values = _values(generator, asked, 3)
    lines = [_line(generator, one, names[0]) for one in rest]
    others = [values[1]]
    # The same attribute of another thing stands in every text: an answer can always be taken from the wrong line.
    lines.append(asked.sentence.format(name=names[1], value=values[1]))
    lines.append(_line(generator, rest[0], names[1]))
    question = asked.question.format(name=names[0])
    answer: tuple[str, ...] = (values[0],)
    if kind == "card_present":
        lines.append(asked.sentence.format(name=names[0], value=values[0]))
    elif kind == "card_conflict":
        right, wrong = generator.choice(_SOURCES, size=2, replace=False)
        for source, value in ((right, values[0]), (wrong, values[2])):
            lines.append(
                f"According to {source}, {_within(asked.sentence.format(name=names[0], value=value), names[0])}"
            )
        question = f"According to {right}, {_lowered(question)}"
        others.append(values[2])
    else:
        answer = (REFUSAL,)
    text = " ".join(lines[i] for i in generator.permutation(len(lines)))
    return Item(
        id=f"{kind}:{number}", kind=kind, domain=CONTEXT, group=f"card:{number}",
        prompt=f"{_INSTRUCTION}\n\nText: {text}\n\nQuestion: {question}", question=question, answer=answer,
        match="refusal" if kind == "card_absent" else asked.match, others=tuple(others), stated=True,
    )  # fmt: skip


def _line(generator: np.random.Generator, attribute: _Attribute, name: str) -> str:
    return attribute.sentence.format(name=name, value=_values(generator, attribute, 1)[0])


def _within(sentence: str, name: str) -> str:
    return sentence if sentence.startswith(name) else _lowered(sentence)


def _lowered(text: str) -> str:
    return text[0].lower() + text[1:]


def _values(generator: np.random.Generator, attribute: _Attribute, n: int) -> list[str]:
    if attribute.match == "number":
        span = range(attribute.least, attribute.most)
        return [str(span[i]) for i in generator.choice(len(span), size=n, replace=False)]
    if "province" in attribute.sentence:
        return _names(generator, n)
    first, last = _names(generator, n), _names(generator, n)
    return [f"{a} {b}" for a, b in zip(first, last, strict=True)]


def _names(generator: np.random.Generator, n: int) -> list[str]:
    made: dict[str, Any] = {}
    while len(made) < n:
        syllables = [generator.choice(_ONSETS) + generator.choice(_VOWELS) for _ in range(2)]
        made["".join([*syllables, generator.choice(_CODAS)]).capitalize()] = None
    return list(made)
