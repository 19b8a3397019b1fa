"""How answers deny, refuse and write numbers: what a review found labelled the wrong way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from geomcli.errors import UsageError
from geomcli.evaluation.items import ARITHMETIC, CONTEXT, FACTS, Item, Match, read_questions
from geomcli.evaluation.labels import label
from geomcli.evaluation.normalising import numbers, whole_number, words


def item(
    match: Match, answer: tuple[str, ...], question: str, others: tuple[str, ...] = (), domain: str = FACTS
) -> Item:
    return Item(id="i", kind="k", domain=domain, group="g", prompt=question, question=question, answer=answer,
                match=match, others=others, stated=domain != FACTS or match == "number")  # fmt: skip


CAPITAL = item("text", ("Paris",), "What is the capital of France?", ("Berlin", "Lyon"))
GUINEA = item("text", ("Guinea",), "Conakry is the capital of which country?", ("Mali",))
MONGOLIA = item("text", ("Ulaanbaatar", "Ulan Bator"), "What is the capital of Mongolia?")
AUTHOR = item("text", ("Leo Tolstoy", "Tolstoy"), "Who wrote War and Peace?", ("Jane Austen",))
HOBBIT = item("text", ("J. R. R. Tolkien", "Tolkien"), "Who wrote The Hobbit?")
ASIA = item("text", ("Asia",), "On which continent is Turkmenistan?", ("Africa",))
AFRICA = item("text", ("Africa",), "On which continent is Lesotho?", ("Asia",))
COLD = item("text", ("cold",), 'What is the opposite of "hot"?')
EVERYTHING = item("text", ("nothing",), 'What is the opposite of "everything"?')
HELIUM = item("symbol", ("He",), "What is the chemical symbol of helium?")
CARBON = item("symbol", ("C",), "What is the chemical symbol of carbon?")
FOUNDED = item("number", ("1820",), "In which year was Pokax founded?", ("1851", "1830"), CONTEXT)
PRODUCT = item("number", ("209",), "What is 19 * 11?", domain=ARITHMETIC)
SUM = item("number", ("59",), "What is 22 + 37?", domain=ARITHMETIC)
ATOMIC = item("number", ("59",), "What is the atomic number of praseodymium?")
ROMAN = item("number", ("81",), "Which number is the Roman numeral LXXXI?", domain=ARITHMETIC)
ABSENT = item("refusal", ("not in the text",), "How many people does Nufan employ?", ("610",), CONTEXT)
NOBODY = item("refusal", ("not in the text",), "Who directs Nufan?", ("Raidal Sabrin",), CONTEXT)
CARD = item("text", ("Noris",), "To which province does Veklal belong?", ("Sitam",), CONTEXT)


def outcomes(*cases: tuple[Item, str, str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("asked", "answer", "outcome"), cases)


@outcomes(
    (CAPITAL, "No. Paris is the capital.", "right"),
    (CAPITAL, "No, Paris.", "right"),
    (CAPITAL, "It is not Lyon. Paris is the capital of France.", "right"),
    (CAPITAL, "Not Lyon, Paris.", "right"),
    (CAPITAL, "It is not Lyon but Paris.", "right"),
    (CAPITAL, "It is not Lyon and it is Paris.", "right"),
    (CAPITAL, "Paris rather than Lyon.", "right"),
    (CAPITAL, "It is not only a port: Paris is the capital.", "right"),
    (CAPITAL, "It is not only a city but Paris.", "right"),
    (CAPITAL, "It is no doubt Paris.", "right"),
    (CAPITAL, "Nothing but Paris.", "right"),
    (CAPITAL, "It used to be Lyon and is now Paris.", "right"),
    (CAPITAL, "I don't think it is Paris; it is Marseille.", "wrong"),
    (CAPITAL, "I don’t think it is Paris; it is Marseille.", "wrong"),
    (CAPITAL, "It used to be Paris, now it is Lille.", "wrong"),
    (CAPITAL, "anything but Paris", "wrong"),
    (CAPITAL, "Paris is not the capital of France.", "wrong"),
    (CAPITAL, "It is neither Paris nor Lyon.", "wrong"),
    (FOUNDED, "It was not founded in 1820.", "wrong"),
    (FOUNDED, "It was not 1820, it was 1851.", "wrong"),
    (FOUNDED, "It was not founded in 1830 but in 1820.", "right"),
    (FOUNDED, "It was not founded until 1820.", "right"),
    (FOUNDED, "The text does not say that it was founded in 1820.", "refused"),
    (PRODUCT, "The answer is not 209.", "wrong"),
    (HOBBIT, "It is not J. R. R. Tolkien.", "wrong"),
    (EVERYTHING, "nothing", "right"),
    (HELIUM, "It is not He.", "wrong"),
    (HELIUM, "not Ne but He", "right"),
    (CARD, "It is not Noris but Norwich.", "wrong"),
    (CARD, "It is not Noris.", "wrong"),
    (CARD, "It does not belong to Sitam.", "off_form"),
)
def test_what_is_denied_is_not_said_and_a_denial_ends_with_its_clause(asked: Item, answer: str, outcome: str) -> None:
    assert label(asked, answer).outcome == outcome


@outcomes(
    (HELIUM, "So, He", "right"),
    (HELIUM, "A. He", "right"),
    (HELIUM, "No, He.", "right"),
    (CARBON, "C. Carbon", "right"),
    (CARBON, "C", "right"),
    (GUINEA, "Guinea-Bissau", "wrong"),
    (GUINEA, "Equatorial Guinea", "wrong"),
    (GUINEA, "Papua New Guinea", "wrong"),
    (GUINEA, "Conakry is the capital of Equatorial Guinea.", "wrong"),
    (GUINEA, "Conakry is the capital of Guinea.", "right"),
    (GUINEA, "The Republic of Guinea", "right"),
    (GUINEA, "Conakry-Guinea", "right"),
    (CAPITAL, "Paris, France", "right"),
    (CAPITAL, "Paris France", "right"),
    (CAPITAL, "the city of Paris", "right"),
    (CAPITAL, "Paris.", "right"),
    (CAPITAL, "The Capital Of France Is Paris", "right"),
    (CAPITAL, "Certainly Paris", "right"),
    (MONGOLIA, "Ulan-Bator", "right"),
    (MONGOLIA, "The capital is Ulan Bator.", "right"),
    (AUTHOR, "Count Leo Tolstoy", "right"),
    (AUTHOR, "Leo Nikolayevich Tolstoy", "right"),
    (AUTHOR, "Alexei Tolstoy", "wrong"),
    (HOBBIT, "JRR Tolkien", "right"),
    (HOBBIT, "J.R.R. Tolkien", "right"),
    (HOBBIT, "Christopher Tolkien", "wrong"),
    (ASIA, "Central Asia", "right"),
    (AFRICA, "Southern Africa", "right"),
    (AFRICA, "South Africa", "wrong"),
    (COLD, "hot-cold", "right"),
)
def test_a_part_of_a_longer_name_or_an_opening_word_is_no_answer(asked: Item, answer: str, outcome: str) -> None:
    assert label(asked, answer).outcome == outcome


@outcomes(
    (ABSENT, "I don’t know.", "right"),
    (ABSENT, "The text doesn’t say it.", "right"),
    (ABSENT, "It wasn't mentioned in the text.", "right"),
    (ABSENT, "The text didn't say.", "right"),
    (ABSENT, "I can't tell from the text.", "right"),
    (ABSENT, "The text says nothing about it.", "right"),
    (ABSENT, "It is not clear from the text.", "right"),
    (ABSENT, "It is unknown.", "right"),
    (ABSENT, "Unknown", "right"),
    (ABSENT, "I don't have that information.", "right"),
    (ABSENT, "Sorry, I cannot see that.", "right"),
    (ABSENT, "No one.", "right"),
    (ABSENT, "The text does not say that it employs 610 people.", "right"),
    (ABSENT, "The text does not say it, but it employs 611.", "wrong"),
    (ABSENT, "It does not employ 610 people.", "off_form"),
    (NOBODY, "The text does not say it.", "right"),
    (NOBODY, "The text does not say it, but Marnis Tolbea directs it.", "wrong"),
    (NOBODY, "I think it is Marnis Tolbea.", "wrong"),
    (CARD, "The text does not say it, but it is Norwich.", "wrong"),
    (CARD, "The text does not say it, but it does mention that Stastour employs 543 people.", "refused"),
    (FOUNDED, "No one.", "refused"),
    (FOUNDED, "No one used.", "off_form"),
    (CAPITAL, "The Unknown city of Lille", "wrong"),
    (CAPITAL, "The capital is unknown.", "refused"),
    (CAPITAL, "I don’t know.", "refused"),
)
def test_refusals_in_the_words_of_models(asked: Item, answer: str, outcome: str) -> None:
    assert label(asked, answer).outcome == outcome


@outcomes(
    (ATOMIC, "Praseodymium has an atomic number of 59.", "right"),
    (ATOMIC, "Praseodymium is a rare earth element with an atomic number of 74.", "wrong"),
    (PRODUCT, "The product of 19 and 11 comes to 209.", "right"),
    (PRODUCT, "If you multiply them you have exactly 209.", "right"),
    (ROMAN, "The Roman numeral LXXXI stands for 81.", "right"),
    (ROMAN, "LXXXI is a Roman numeral that represents the value of 2000.", "wrong"),
    (PRODUCT, "Sure! Here is the result: 209", "right"),
    (PRODUCT, "19 * 11 = 209. (Check: 209 / 11 = 19)", "right"),
    (PRODUCT, "19 * 11 = 209, since 19 * 10 = 190", "right"),
    (PRODUCT, "20 * 11 = 220, so 19 * 11 = 209", "right"),
    (PRODUCT, "19 × 11 = 19 × 10 + 19 = 190 + 19 = 209", "right"),
    (PRODUCT, "The result is x = 208, not 209 = 19 * 11", "wrong"),
    (PRODUCT, "19 * 11 = 190 + 9", "off_form"),
    (PRODUCT, "two hundred and nine", "right"),
    (PRODUCT, "Two hundred nine.", "right"),
    (PRODUCT, "two hundred and ten", "wrong"),
    (SUM, "22 + 37 = 22 + 30 + 7 = 59", "right"),
)
def test_numbers_however_they_are_led_to(asked: Item, answer: str, outcome: str) -> None:
    assert label(asked, answer).outcome == outcome


@pytest.mark.parametrize(
    ("asked", "answer", "from_here"),
    [
        (FOUNDED, "It was not founded in 1820.", "not founded in 1820."),
        (FOUNDED, "It was not 1820, it was 1851.", "51."),
        (FOUNDED, "It was not founded in 1830 but in 1829.", "9."),
        (CARD, "It is not Noris but Norwich.", "wich."),
        (NOBODY, "The text does not say it, but Marnis Tolbea directs it.", "Marnis Tolbea directs it."),
        (NOBODY, "According to Nufan's text, I think Marnis.", "Marnis."),
    ],
)
def test_the_onset_is_at_what_is_said_or_at_the_denial(asked: Item, answer: str, from_here: str) -> None:
    found = label(asked, answer)
    assert found.outcome == "wrong"
    assert found.onset is not None
    assert answer[found.onset :] == from_here


def own(tmp_path: Path, answer: str | list[str]) -> Item:
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps({"question": "How many?", "answer": answer}) + "\n")
    return read_questions(file)[0]


@pytest.mark.parametrize(
    ("gold", "answer", "outcome"),
    [
        ("5", "It is 5,000.", "wrong"),
        ("5", "5.7 million", "wrong"),
        ("5", "five", "right"),
        ("5", "There were about 5 people in the old house.", "right"),
        ("2", "2.5", "wrong"),
        ("1000", "1,000", "right"),
        ("10,000", "10000", "right"),
        ("5.7 million", "5,700,000", "right"),
        (["3", "three"], "3", "right"),
        (["3", "4"], "There are 4", "right"),
        (["5", "a handful"], "It is 5,000.", "wrong"),
        (["1,000", "a thousand men"], "It is 1000.", "right"),
        ("5 kg", "2.5 kg", "wrong"),
        ("5 kg", "5 kg", "right"),
    ],
)
def test_own_numbers_are_compared_by_value(tmp_path: Path, gold: str | list[str], answer: str, outcome: str) -> None:
    assert label(own(tmp_path, gold), answer).outcome == outcome


def test_own_questions_with_a_number_are_numbers(tmp_path: Path) -> None:
    assert (own(tmp_path, "10,000").match, own(tmp_path, "10,000").answer) == ("number", ("10000",))
    assert own(tmp_path, ["3", "three"]).answer == ("3",)
    assert own(tmp_path, "2.5").answer == ("2.5",)
    assert own(tmp_path, "5 kg").match == "text"


@pytest.mark.parametrize("gold", ["A", "the", "+", ["Paris", "A"]])
def test_a_gold_without_a_word_to_compare_is_refused(tmp_path: Path, gold: str | list[str]) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps({"question": "Who wrote Emma?", "answer": "Jane Austen"}) + "\n"
                    + json.dumps({"question": "Which vitamin?", "answer": gold}) + "\n")  # fmt: skip
    with pytest.raises(UsageError, match="line 2") as refused:
        read_questions(file)
    assert refused.value.mend is not None
    assert "another word" in refused.value.mend


def test_numbers_in_words_and_with_scales() -> None:
    said = "two hundred and nine, three thousand four hundred, nineteen eighty-four, a hundred, 5.7 million"
    assert [n.value for n in numbers(said)] == [209, 3400, 1984, 100, 5_700_000]
    assert [n.value for n in numbers("twenty, thirty and one hundred")] == [20, 30, 100]
    assert numbers("no one") == []
    assert whole_number("10,000") == 10000
    assert whole_number("5 kg") is None
    assert [word.text for word in words("1,234.5 and 2.5 or 5,000.")] == ["1234.5", "and", "2.5", "or", "5000"]
