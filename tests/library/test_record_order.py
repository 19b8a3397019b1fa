"""The order of records: what a lost line leaves behind is found, whole traces pass."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geomcli.record_order import RecordOrder
from geomcli.schema import Record
from geomcli.trace import Trace
from tests.library.made_traces import LOCAL, MID, trace, traces

WHOLE = list(trace(["a", "b", "c"], [LOCAL, MID, LOCAL]).records())


def wrong(records: list[Record]) -> list[str]:
    order = RecordOrder()
    return [said for record in records if (said := order.wrong_with(record))]


@given(st.lists(traces(), max_size=3))
def test_whole_traces_pass(some: list[Trace]) -> None:
    assert wrong([record for one in some for record in one.records()]) == []


def test_what_a_lost_line_leaves_behind() -> None:
    token = next(n for n, record in enumerate(WHOLE) if record["record_type"] == "token")
    assert wrong([*WHOLE, *WHOLE[1:]])[0] == "token 0 is there twice", "the header of the second was lost"
    assert wrong(WHOLE[:token] + WHOLE[token + 1 :])[0] == "a step of token 0, which is not in front of it"
    assert "token 2 comes where 1 should" in wrong(
        [r for r in WHOLE if r.get("index") != 1 or r["record_type"] == "step"]
    )


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([WHOLE[0], WHOLE[-1], WHOLE[-1]], "a second `metrics` of one trace"),
        ([*WHOLE[:4], WHOLE[3]], "a second step of token 0 for the same layer"),
        ([*WHOLE[:6], WHOLE[3]], "a step of token 0 behind one of token 1"),
    ],
)
def test_records_that_contradict_those_before(records: list[Record], said: str) -> None:
    assert wrong(records) == [said]
