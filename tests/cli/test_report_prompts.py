"""The prompt on the page of `geom report`: lengths that mean nothing, and one that no template stands in front of."""

from __future__ import annotations

from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

from geomcli.errors import TraceError
from geomcli.sources import LONGEST_PROMPT
from geomcli.trace import Trace
from tests.cli.report_browser import Open
from tests.cli.reports import linked
from tests.library.made_traces import LOCAL, entry, records


def with_prompt_of(*lengths: Any, query: int = 10) -> Trace:
    """An answer whose steps say these lengths of their prompt; `...` says none."""
    made = []
    for n, length in enumerate(lengths, 1):
        links = linked({3: 0.4, 6: 0.2, query + n - 1: 0.1})
        made.append(entry(n, f" w{n}", LOCAL, mode="raw", query_position=query + n - 1, **links))
        if length is ...:
            del made[-1]["prompt_len"]
        else:
            made[-1]["prompt_len"] = length
    return Trace(records(made))


@pytest.mark.parametrize(
    ("lengths", "head"),
    [
        ((..., ..., ...), "3tokens"),
        ((None, "7", [11]), "3tokens"),
        ((7.5, {}, "-1"), "3tokens"),
        ((0, 0, 0), "3tokens"),
        ((..., "x", 11), "3tokens after 11 of prompt"),
        ((11, -11, 10**9), "3tokens after 11 of prompt"),
        ((LONGEST_PROMPT,) * 3, f"3tokens after {LONGEST_PROMPT} of prompt"),
    ],
    ids=str,
)
def test_a_length_of_the_prompt_that_means_nothing(open_page: Open, lengths: tuple[Any, ...], head: str) -> None:
    page = open_page(with_prompt_of(*lengths, query=max(10, lengths[0] if isinstance(lengths[0], int) else 0)))
    assert page.text(".tiles li") == head
    assert page.texts(".answer .t") == [" w1", " w2", " w3"]
    first, *_, last = page.all(".answer .t")
    for element in (first, last):
        page.click(element)
        page.hover(element)
        assert page.texts("table.links tbody tr b"), "its links are there"
    page.keys("s", "s", "s", "x", "g", "b", "z", Keys.HOME, Keys.END, Keys.ARROW_UP, Keys.ESCAPE)
    assert page.texts(".answer .t") == [" w1", " w2", " w3"]


@pytest.mark.parametrize("length", [-1, -(2**63), LONGEST_PROMPT + 1, 2**70])
def test_a_length_that_no_prompt_has_makes_no_page(open_page: Open, length: int) -> None:
    with pytest.raises(TraceError, match=f"`prompt_len` of the step of token 0 is {length}: no prompt has that many"):
        open_page(with_prompt_of(length, 11))


def test_the_first_words_of_a_prompt_without_a_template_are_its_own(open_page: Open) -> None:
    made = [entry(1, "Yes", LOCAL, mode="raw", prompt_len=6, query_position=5, **linked({0: 0.5, 5: 0.4}))]
    made[0]["prompt_tokens"] = ["Is", " the", " sky", " blue", " today", "?"]
    page = open_page(Trace(records(made, messages=[{"role": "user", "content": "Is the sky blue today?"}])))
    assert not page.all(".template")
    assert page.texts(".turn > h2") == ["user", "answer"]
    assert "".join(page.texts(".prompt .t")) == "Is the sky blue today?"
    assert page.texts("#overview thead th") == ["#", "sentence", "sinks", "user", "answer", "unseen"]
