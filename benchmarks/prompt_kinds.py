"""Different prompts of five kinds: code, lists, question answering over a given text, story, arithmetic."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("code", "lists", "question", "story", "arithmetic")

_NAMES = ("Anna", "Boris", "Chen", "Dalia", "Emil", "Farah", "Goran", "Hana", "Ivo", "Jana", "Karim", "Lena")
_PLACES = ("a lighthouse", "an old mill", "a harbour", "a mountain hut", "a train station", "an island", "a library",
           "a desert camp", "a glass house", "a small theatre")  # fmt: skip
_JOBS = ("baker", "pilot", "teacher", "nurse", "carpenter", "gardener", "judge", "painter", "farmer", "watchmaker")
_TOWNS = ("Linden", "Marwick", "Osterby", "Calder", "Fenmoor", "Tarsa", "Velin", "Rook Bay", "Aldgrove", "Sunde")
_ANIMALS = ("fox", "heron", "donkey", "cat", "turtle", "raven", "goat", "otter", "mole", "horse")
_EVENTS = ("finds a map", "loses a key", "hears a strange song", "must cross a river", "wins a race", "hides from rain",
           "meets an old friend", "breaks a promise", "builds a boat", "cannot sleep")  # fmt: skip
_THINGS = ("fruits that grow on trees", "tools of a carpenter", "countries in Europe", "things to pack for a hike",
           "kinds of weather", "musical instruments", "animals that live in water", "reasons to learn a language",
           "ways to save water", "things found in a kitchen", "sports played with a ball",
           "colours of flowers", "jobs in a hospital", "things that are round", "habits of healthy people",
           "vegetables")  # fmt: skip
_OBJECTS = ("a list of numbers", "a string", "a dictionary", "a binary tree", "a matrix", "a linked list",
            "two sorted lists", "a file of words", "a list of dates", "a queue")  # fmt: skip
_TASKS = ("reverses", "counts the elements of", "finds the largest element of", "sorts", "copies", "prints",
          "removes duplicates from", "checks whether a value is in", "sums the values of", "compares")  # fmt: skip
_SEASONS = ("spring", "summer", "autumn", "winter")
_DEEDS = ("repaired a bridge", "painted a barn", "wrote a play", "opened a market")
_ASKED = ("What does {name} do for a living?", "In which town does {name} live?", "How many years has {name} worked?",
          "Which animal does {name} keep?")  # fmt: skip


class Prompt(NamedTuple):
    kind: str
    text: str


def _code() -> Iterator[str]:
    for task, thing, language in itertools.product(_TASKS, _OBJECTS, ("Python", "JavaScript")):
        yield f"Write a {language} function that {task} {thing}. Show the code."


def _lists() -> Iterator[str]:
    for thing, count in itertools.product(_THINGS, range(5, 15)):
        yield f"Give a numbered list of {count} {thing}."


def _question(rng: random.Random) -> Iterator[str]:
    for name, job, town, asked in itertools.product(_NAMES, _JOBS, _TOWNS, _ASKED):
        other, friend = rng.sample([n for n in _NAMES if n != name], 2)
        years, town_of_other = rng.randint(2, 40), rng.choice(_TOWNS)
        yield (
            f"Read the text and answer the question.\n\n{name} has been a {job} in {town} for {years} years and "
            f"keeps a {rng.choice(_ANIMALS)}. {other}, a {rng.choice(_JOBS)} from {town_of_other}, visits every "
            f"{rng.choice(_SEASONS)} and stays at {rng.choice(_PLACES)}. Together with {friend} they once "
            f"{rng.choice(_DEEDS)}.\n\nQuestion: {asked.format(name=name)} Answer in one sentence and say which "
            "words of the text told you."
        )


def _story() -> Iterator[str]:
    for animal, event, place in itertools.product(_ANIMALS, _EVENTS, _PLACES):
        yield f"Write a story about a {animal} that {event} near {place}."


def _arithmetic(rng: random.Random) -> Iterator[str]:
    while True:
        a, b, c = rng.randint(11, 99), rng.randint(11, 99), rng.randint(2, 9)
        yield f"Calculate step by step: {a} + {b} - {c}, then multiply the result by {c}."


def prompts(each: int, seed: int = 0) -> list[Prompt]:
    """`each` different prompts of every kind, in random order."""
    rng = random.Random(seed)
    made: list[Prompt] = []
    for kind, source in zip(
        KINDS, (_code(), _lists(), _question(rng), _story(), itertools.islice(_arithmetic(rng), 20 * each)), strict=True
    ):
        texts = list(dict.fromkeys(source))
        if len(texts) < each:
            raise ValueError(f"{kind} has {len(texts)} prompts only")
        made += [Prompt(kind, text) for text in rng.sample(texts, each)]
    rng.shuffle(made)
    return made
