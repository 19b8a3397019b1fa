"""Search: every kind of condition finds what it says, and a wrong one is named with what is known instead."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geomcli.errors import UsageError
from geomcli.search import find, parse
from geomcli.trace import Trace
from tests.library.made_traces import FLAT, LOCAL, LONG, MID, entry, records, trace, traces

TRACE = Trace(
    records([
        entry(1, "The", LOCAL, think_phase="think"),
        entry(2, " quan", MID, drift=0.1),
        entry(3, "tum", FLAT, drift=0.4, compass="WARN"),
        entry(4, " std::", LONG, entropy_bits=3.5),
        entry(5, "a<b", flags=["capture_stopped"]),
        entry(6, " The\n", LOCAL, sink_mass=0.5),
    ])
)  # fmt: skip


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("the", [0, 5]),
        ("QUANTUM", [1, 2]),
        ("the quan", [0, 1]),
        ("  tum   std:: ", [2, 3]),
        ('"the\\n"', []),
        ('" the"', [5]),
        ("std::", [3]),
        ("a<b", [4]),
        ("@3", [3]),
        ("@1-3", [1, 2, 3]),
        ("@4-", [4, 5]),
        ("@99", []),
        ("zone:diffuse", [2]),
        ("ZONE:Long_Range", [3]),
        ("phase:think", [0]),
        ("compass:warn", [2]),
        ("flag:capture_stopped", [4]),
        ("entropy>0.9", [2]),
        ("drift>=0.1", [1, 2]),
        ("drift<0.3 drift>0.05", [1]),
        ("bits=3.5", [3]),
        ("long>.5", [3]),
        ("sink>0", [5]),
        ("local=1", [0, 5]),
        ("zone:syntax_floor the @1-", [5]),
        ('zone:syntax_floor "the" phase:output', [5]),
        ("nothing of this", []),
        ('""  the', [0, 5]),
        ("@home", []),
        ("http://x", []),
    ],
)
def test_what_is_found(query: str, found: list[int]) -> None:
    assert find(TRACE, query) == found


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("", "nothing to search for"),
        ('  "" ', "nothing to search for"),
        ("zone:difuse", "there is no zone 'difuse'; known: syntax_floor, .*Try: zone:diffuse"),
        ("zone:", "zone: is followed by nothing"),
        ("phase:thinking", "no phase 'thinking'; known: think, output"),
        ("zoen:diffuse", "zoen cannot be asked for.*Try: zone:diffuse"),
        ("entropy>high", "'high' is no number.*Try: entropy>0.5"),
        ("entropy>nan", "'nan' is no number"),
        ("entropi>0.7", "no value is called entropi; known: local, .*Try: entropy>0.7"),
        ("x>3", 'no value is called x.*"x>3" for the text'),
        ("@3-1", "ends before it begins.*Try: @1-3"),
        ("@3x", "@3x is no place"),
        ("@-3", "@-3 is no place"),
        ('"open', "not closed"),
        ("flag:", "flag: is followed by nothing"),
    ],
)
def test_what_is_refused(query: str, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse(query)
    assert re.search(said, str(refused.value)), refused.value


def test_zones_of_another_ruleset_can_be_asked_for() -> None:
    own = Trace(records([entry(1, "a", LOCAL, zone="tables"), entry(2, "b", LOCAL)]))
    assert find(own, "zone:tables") == [0]
    with pytest.raises(UsageError, match="no zone 'tables'"):
        find(TRACE, "zone:tables")


@given(traces(), st.text(st.sampled_from("abcd \n"), min_size=1, max_size=4))
def test_text_is_found_wherever_it_runs(x: Trace, text: str) -> None:
    quoted = '"' + text + '"'
    texts = [t["text"] or "" for t in x.tokens]
    owner = [index for index, piece in enumerate(texts) for _ in piece]
    whole = "".join(texts)
    expected = {owner[at + k] for at in range(len(whole)) if whole.startswith(text, at) for k in range(len(text))}
    assert find(x, quoted) == sorted(expected)


@given(st.text(max_size=20))
def test_any_line_is_a_query_or_a_sentence(line: str) -> None:
    try:
        said = ""
        conditions = parse(line).conditions
    except UsageError as error:
        said, conditions = error.message, ()
    assert bool(conditions) != said.endswith(".")


def test_four_thousand_tokens() -> None:
    long = trace(["ab"] * 4000, [None] * 3999 + [LOCAL])
    assert find(long, "ba") == list(range(4000))
    assert find(long, "zone:syntax_floor") == [3999]
