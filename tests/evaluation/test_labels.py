"""Labels of answers as models write them, case by case."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geomcli.evaluation.items import Item, Match
from geomcli.evaluation.labels import Label, label, loops, onset_token
from geomcli.evaluation.normalising import numbers


def item(
    match: Match, answer: tuple[str, ...], question: str, others: tuple[str, ...] = (), *, stated: bool = False
) -> Item:
    domain = "context" if others and stated else "facts"
    return Item(id="i", kind="k", domain=domain, group="g", prompt=question, question=question, answer=answer,
                match=match, others=others, stated=stated)  # fmt: skip


CAPITAL = item("text", ("Paris",), "What is the capital of France?", ("Berlin", "Lyon"))
COUNTRY = item("text", ("Guinea",), "Conakry is the capital of which country?", ("Papua New Guinea", "Mali"))
MONGOLIA = item("text", ("Ulaanbaatar", "Ulan Bator"), "What is the capital of Mongolia?", ("Paris",))
ANTONYM = item("text", ("cold", "cool"), 'What is the opposite of "hot"?')
SPANISH = item("text", ("pajaro", "ave"), 'What is "bird" in Spanish?')
GERMAN = item("text", ("weiss",), 'What is "white" in German?')
SUM = item("number", ("59",), "What is 22 + 37?", stated=True)
TWICE = item("number", ("29",), "How much is 58 minus 29?", stated=True)
NUMBER = item("number", ("68",), "Which atomic number does erbium have?", stated=True)
ROMAN = item("number", ("12",), "Which number is the Roman numeral XII?", stated=True)
THOUSANDS = item("number", ("4817",), "How many letters does the archive of Vaipark hold?", ("2210",), stated=True)
POTASSIUM = item("symbol", ("K",), "What is the chemical symbol of potassium?")
IODINE = item("symbol", ("I",), "What is the chemical symbol of iodine?")
ABSENT = item("refusal", ("not in the text",), "How many people does Nufan employ?", ("610",), stated=True)
NOBODY = item("refusal", ("not in the text",), "Who directs Nufan?", ("Raidal Sabrin",), stated=True)
CARD = item("text", ("Noris",), "According to the parish book, to which province does Veklal belong?", ("Sitam",),
            stated=True)  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "answer", "outcome"),
    [
        (CAPITAL, "Paris", "right"),
        (CAPITAL, "paris.", "right"),
        (CAPITAL, "The capital of France is **Paris**.", "right"),
        (CAPITAL, "PARIS, France", "right"),
        (CAPITAL, "Lyon", "wrong"),
        (CAPITAL, "It is not Paris.", "wrong"),
        (CAPITAL, "Berlin, not Paris", "wrong"),
        (CAPITAL, "Berlin, or perhaps Paris", "wrong"),
        (CAPITAL, "Paris, not Berlin", "right"),
        (CAPITAL, "Parisian", "wrong"),
        (CAPITAL, "Bordeaux", "wrong"),
        (CAPITAL, "I don't know.", "refused"),
        (CAPITAL, "", "off_form"),
        (CAPITAL, " \n…\n", "off_form"),
        (CAPITAL, "the of the of the of the of the of", "off_form"),
        (COUNTRY, "Guinea", "right"),
        (COUNTRY, "Papua New Guinea", "wrong"),
        (COUNTRY, "Conakry is the capital of Guinea.", "right"),
        (MONGOLIA, "Ulan-Bator", "right"),
        (MONGOLIA, "ulaanbaatar", "right"),
        (MONGOLIA, "Ulan", "wrong"),
        (ANTONYM, "The opposite of hot is cold.", "right"),
        (ANTONYM, "colder", "wrong"),
        (ANTONYM, "warm", "wrong"),
        (SPANISH, "Pájaro", "right"),
        (SPANISH, '"El pájaro"', "right"),
        (SPANISH, "avenue", "wrong"),
        (GERMAN, "weiß", "right"),
        (SUM, "59", "right"),
        (SUM, "22 + 37 = 59", "right"),
        (SUM, "22 + 37 = 22 + 30 + 7 = 59", "right"),
        (SUM, "The sum of 22 and 37 is 59.", "right"),
        (SUM, "22 plus 37 is 59", "right"),
        (SUM, "fifty-nine", "right"),
        (SUM, "Fifty nine.", "right"),
        (SUM, "59.0", "right"),
        (SUM, "58", "wrong"),
        (SUM, "590", "wrong"),
        (SUM, "-59", "wrong"),
        (SUM, "22 + 37 = 61, not 59", "wrong"),
        (SUM, "22", "wrong"),
        (SUM, "The result", "off_form"),
        (SUM, "To solve this problem, you need to multiply 22 by 37 and then add 37.", "off_form"),
        (SUM, "To solve this problem, you need to find 22 + 37 and then add 1 to that result.", "off_form"),
        (SUM, "To solve this problem, you need to multiply 22 by 37. 22 * 37 equals 3800.", "wrong"),
        (SUM, "To solve this, first convert 22 to a decimal, which is 22, and then add 37 to it.", "off_form"),
        (TWICE, "58 minus 29 is 29.", "right"),
        (TWICE, "58 - 29 = 29", "right"),
        (TWICE, "29", "right"),
        (ROMAN, "In Roman numerals, XII is equivalent to 2000.", "wrong"),
        (NUMBER, "Erbium is a chemical element with the atomic number 89.", "wrong"),
        (NUMBER, "Erbium is a chemical element with the atomic number 68.", "right"),
        (SUM, "unknown", "refused"),
        (ROMAN, "XII is 12.", "right"),
        (ROMAN, "XII", "off_form"),
        (ROMAN, "twelve", "right"),
        (THOUSANDS, "4,817 letters", "right"),
        (THOUSANDS, "4817", "right"),
        (THOUSANDS, "4817 or 2210", "off_form"),
        (THOUSANDS, "2210", "wrong"),
        (THOUSANDS, "Not in the text.", "refused"),
        (POTASSIUM, "K", "right"),
        (POTASSIUM, "The chemical symbol of potassium is K.", "right"),
        (POTASSIUM, "Potassium (K)", "right"),
        (POTASSIUM, "In chemistry it is K", "right"),
        (POTASSIUM, "Po", "wrong"),
        (POTASSIUM, "k", "off_form"),
        (POTASSIUM, "Potassium", "off_form"),
        (IODINE, "I", "right"),
        (IODINE, "I think it is Io", "wrong"),
        (IODINE, "It is I.", "right"),
        (ABSENT, "not in the text", "right"),
        (ABSENT, "The text does not say.", "right"),
        (ABSENT, "The text doesn't mention how many people it employs.", "right"),
        (ABSENT, "There is no information about it.", "right"),
        (ABSENT, "610", "wrong"),
        (ABSENT, "Nufan employs 610 people.", "wrong"),
        (ABSENT, "It is not in the text, but Romur employs 610.", "wrong"),
        (ABSENT, "six", "wrong"),
        (ABSENT, "Nufan employs people.", "off_form"),
        (ABSENT, "No one is named; the text does not say.", "right"),
        (NOBODY, "Raidal Sabrin", "wrong"),
        (NOBODY, "Nufan is directed by Humom Bameand.", "wrong"),
        (NOBODY, "Nufan", "off_form"),
        (NOBODY, "The text does not say who directs Nufan.", "right"),
        (CARD, "Noris", "right"),
        (CARD, "Veklal belongs to the province of Noris.", "right"),
        (CARD, "Sitam", "wrong"),
        (CARD, "Norwich", "wrong"),
        (CARD, "Noris and Sitam", "off_form"),
        (CARD, "Noris, not Sitam", "right"),
        (CARD, "Veklal", "off_form"),
        (CARD, "The parish book.", "off_form"),
        (CARD, "not in the text", "refused"),
    ],
)
def test_outcomes(asked: Item, answer: str, outcome: str) -> None:
    assert label(asked, answer).outcome == outcome


@pytest.mark.parametrize(
    ("asked", "answer", "finish", "committed"),
    [
        (CAPITAL, "Paris", "stop", True),
        (CAPITAL, "The capital of France is Lyon.", "stop", True),
        (CAPITAL, "Paris", "length", False),
        (CAPITAL, "Paris\nIt lies on the Seine", "stop", False),
        (CAPITAL, "Paris is a large city in the north of France, which lies on the Seine.", "stop", False),
        (CAPITAL, "I don't know", "stop", False),
        (ABSENT, "The text does not say.", "stop", True),
    ],
)
def test_committed_answers_are_short_and_ended_by_the_model(
    asked: Item, answer: str, finish: str, committed: bool
) -> None:
    assert label(asked, answer, finish).committed is committed


@pytest.mark.parametrize(
    ("asked", "answer", "from_here"),
    [
        (SUM, "58", "8"),
        (SUM, "22 + 37 = 61", "61"),
        (SUM, "590", "0"),
        (SUM, "The answer is 5", "5"),
        (THOUSANDS, "It holds 4871 letters.", "71 letters."),
        (ABSENT, "Nufan employs 610 people.", "610 people."),
        (NOBODY, "Nufan is directed by Humom Bameand.", "Humom Bameand."),
        (CARD, "Veklal belongs to the province of Sitam.", "Sitam."),
        (CARD, "the province of Norwich", "wich"),
    ],
)
def test_a_wrong_answer_parts_where_no_right_one_goes_on_so(asked: Item, answer: str, from_here: str) -> None:
    found = label(asked, answer)
    assert found.outcome == "wrong"
    assert found.onset is not None
    assert answer[found.onset :] == from_here


def test_common_knowledge_has_no_exact_onset() -> None:
    assert label(CAPITAL, "Lyon") == Label(outcome="wrong", committed=True)


@given(st.lists(st.text(max_size=4), min_size=1, max_size=8), st.data())
def test_the_token_of_a_character_is_the_one_that_spells_it(tokens: list[str], data: st.DataObject) -> None:
    answer = "".join(tokens)
    if not answer.strip():
        return
    place = data.draw(st.integers(0, len(answer) - 1))
    found = onset_token(place, tokens, answer)
    assert found is not None
    before = sum(map(len, tokens[:found]))
    assert before <= place < before + len(tokens[found])


def test_an_answer_without_the_space_its_tokens_begin_with_is_found() -> None:
    assert onset_token(4, [" It", " is", " 61", ""], "It is 61") == 1
    assert onset_token(6, [" It", " is", " 61", ""], "It is 61") == 2
    assert onset_token(6, [" It", None, " 61"], "It is 61") is None
    assert onset_token(0, ["a"], "b") is None
    assert onset_token(0, ["<think>", "61", "</think>", "61"], "61") == 3
    assert onset_token(None, ["a"], "a") is None


def test_loops_are_found_and_lists_are_not() -> None:
    assert loops(["a", "b", "a", "b", "a", "b", "a", "b", "a", "b"])
    assert loops(["x"] * 8)
    assert not loops(["no", "no", "no"])
    assert not loops(["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])


def test_numbers_in_digits_and_words() -> None:
    assert [n.value for n in numbers("1,234.5 and -3, then forty-two; a1 is none, 7.")] == [1234.5, -3, 42, 7]
    assert [n.value for n in numbers("no one but two")] == [2]
