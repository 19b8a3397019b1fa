"""Questions about a context whose answers are known: needles, variables and common words, in the spirit of RULER.

RULER (Hsieh et al., 2024, arXiv 2404.06654) fills a context up to a length with text or noise and hides in it what is
asked for at its end. The kinds here are its kinds; names, sentences and the haystack are ours. `of_kind` makes an item:
the context, the question with the beginning of its answer, and the strings that an answer has to hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

Dice = np.random.Generator
PLACES = (
    "harbour", "library", "station", "museum", "garden", "bakery", "theatre", "market", "castle", "factory", "airport",
    "hospital", "stadium", "bridge", "temple", "school",
)  # fmt: skip
NOISE = "The road is long and the fields are wide. It rains a little, and then the sun is back. Nobody is in a hurry."
WORDS = (
    "apple", "river", "stone", "cloud", "table", "horse", "paper", "glass", "tiger", "lemon", "chair", "ocean", "bread",
    "pearl", "flame", "grass", "plane", "smoke", "sugar", "wheel", "drum", "coin", "lamp", "rope", "seed", "tent",
    "wolf", "yard", "zebra", "nail", "milk", "kite", "iron", "hill", "gate", "fork", "desk", "corn", "boat", "arrow",
)  # fmt: skip
COMMON = 3  # words of a list that are common


@dataclass(frozen=True)
class Item:
    """context: tokens; question: text behind it; answers: what has to be said."""

    kind: str
    context: list[int]
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Maker:
    tokenizer: Any
    haystack: list[int]  # of a long text
    length: int  # tokens of a context
    dice: Dice

    def ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def text(self, n: int) -> list[int]:
        start = int(self.dice.integers(0, len(self.haystack) - n))
        return self.haystack[start : start + n]

    def hidden(self, sentences: Sequence[str], noise: bool = False) -> list[int]:
        """The sentences in their order at random places of a text or of noise; none in its last 100 tokens."""
        needles = [self.ids(f" {sentence}") for sentence in sentences]
        room = self.length - sum(map(len, needles))
        straw = (self.ids(" ".join([NOISE] * (room // 20 + 2)))[:room]) if noise else self.text(room)
        made: list[int] = []
        before = 0
        for at, needle in zip(sorted(self.dice.integers(20, room - 100, len(needles))), needles, strict=True):
            made += [*straw[before:at], *needle]
            before = at
        return made + straw[before:]

    def number(self) -> str:
        return str(self.dice.integers(10_000, 100_000))

    def places(self, n: int) -> list[str]:
        return [str(place) for place in self.dice.choice(PLACES, n, replace=False)]


def needle(make: Maker, noise: bool = False) -> Item:
    (place,), number = make.places(1), make.number()
    context = make.hidden([f"The pass code of the {place} is {number}."], noise)
    return Item("", context, f"\n\nThe pass code of the {place} is", (number,))


def needle_in_noise(make: Maker) -> Item:
    return needle(make, noise=True)


def words(make: Maker) -> Item:
    """A needle whose answer is two common words, which stand out of a text less than a number does."""
    (place,) = make.places(1)
    said = " ".join(str(word) for word in make.dice.choice(WORDS, 2, replace=False))
    context = make.hidden([f"The pass phrase of the {place} is {said}."])
    return Item("", context, f"\n\nThe pass phrase of the {place} is", (said,))


def one_of_four(make: Maker) -> Item:
    places = make.places(4)
    numbers = [make.number() for _ in places]
    context = make.hidden([f"The pass code of the {p} is {n}." for p, n in zip(places, numbers, strict=True)])
    asked = int(make.dice.integers(4))
    return Item("", context, f"\n\nThe pass code of the {places[asked]} is", (numbers[asked],))


def three_values(make: Maker) -> Item:
    (place,) = make.places(1)
    numbers = [make.number() for _ in range(3)]
    context = make.hidden([f"One of the pass codes of the {place} is {number}." for number in numbers])
    return Item("", context, f"\n\nThe three pass codes of the {place} are", tuple(numbers))


def two_questions(make: Maker) -> Item:
    places = make.places(2)
    numbers = [make.number() for _ in places]
    context = make.hidden([f"The pass code of the {p} is {n}." for p, n in zip(places, numbers, strict=True)])
    return Item("", context, f"\n\nThe pass codes of the {places[0]} and of the {places[1]} are", tuple(numbers))


def variables(make: Maker) -> Item:
    names = ["".join(make.dice.choice(list("ABCDEFGHJKLMNPQRSTUVWXYZ"), 3)) for _ in range(3)]
    number = make.number()
    steps = [f"VAR {names[0]} = {number}.", *(f"VAR {b} = VAR {a}." for a, b in pairwise(names))]
    context = make.hidden(steps, noise=True)
    return Item("", context, f"\n\nThe variables that have the value {number} are VAR", tuple(names))


def common_words(make: Maker) -> Item:
    """Three words ten times each, among others once or twice, numbered; which are the most common?"""
    words = [str(word) for word in make.dice.permutation(WORDS)]
    common, rare = words[:COMMON], words[COMMON:]
    per_word = len(make.ids(" 100. horse"))
    many = make.length // per_word
    times = max(4, many // 8)
    listed = [word for word in common for _ in range(times)]
    listed += [rare[n % len(rare)] for n in range(many - len(listed))]
    order = make.dice.permutation(len(listed))
    context = make.ids(" ".join(f"{n}. {listed[at]}" for n, at in enumerate(order, 1)))[: make.length]
    return Item("", context, "\n\nThe three most common words in the list above are", tuple(common))


KINDS: dict[str, Callable[[Maker], Item]] = {
    "needle in noise": needle_in_noise,
    "needle": needle,
    "words": words,
    "one of four": one_of_four,
    "three values": three_values,
    "two questions": two_questions,
    "variables": variables,
    "common words": common_words,
}
RETRIEVAL = tuple(KINDS)[:6]
NEEDLES = tuple(KINDS)[:4]  # with one answer


def of_kind(kind: str, make: Maker) -> Item:
    made = KINDS[kind](make)
    return Item(kind, made.context, made.question, made.answers)


def share_found(item: Item, answer: str) -> float:
    """Share of the strings asked for that the answer holds."""
    return sum(one in answer for one in item.answers) / len(item.answers)
