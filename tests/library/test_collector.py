"""From the scheduler's values to finished entries: each once, in order, whatever is missing."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from geomcli.server_patch import faults, state
from geomcli.server_patch.requests import PARAMS_KEY, Collector, _set_params


class Letters:
    """A tokenizer whose token n is the n-th letter."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(chr(97 + i) for i in ids)


@pytest.fixture(autouse=True)
def main_state(monkeypatch: pytest.MonkeyPatch) -> state.MainState:
    fresh = state.MainState()
    fresh.tokenizer = Letters()
    monkeypatch.setattr(state, "main", fresh)
    return fresh


def entry(step: int, token_id: int) -> dict[str, Any]:
    return {"decode_step": step, "token_id": token_id, "flags": []}


def test_cumulative_and_incremental_lists_give_the_same_entries(main_state: state.MainState) -> None:
    values: list[Any] = [entry(1, 0), 1, entry(3, 2), None, entry(5, 4)]
    cumulative, incremental = Collector(incremental=False), Collector(incremental=True)
    grown = [e for end in range(1, 6) for e in cumulative.new_entries(0, values[:end], end)]
    cuts = ((0, 2), (2, 4), (4, 5))
    chunks = [e for start, end in cuts for e in incremental.new_entries(0, values[start:end], end)]
    assert grown == chunks
    assert [(e["decode_step"], e["token"], e["flags"]) for e in grown] == [
        (1, "a", []),
        (3, "c", []),
        (4, None, ["error"]),
        (5, "e", []),
    ]
    assert main_state.counters.as_dict() == {"requests": 0, "entries": 8, "errors": 2}


def test_choices_do_not_mix() -> None:
    collector = Collector(incremental=False)
    first = collector.new_entries(0, [entry(1, 0)], 1)
    second = collector.new_entries(1, [entry(1, 5)], 1)
    assert [(e["index"], e["token"]) for e in first + second] == [(0, "a"), (1, "f")]


def test_an_entry_whose_text_fails_keeps_its_numbers(main_state: state.MainState) -> None:
    entries = Collector(incremental=False).new_entries(0, [entry(1, -200)], 1)
    assert entries == [{"index": 0, "decode_step": 1, "token_id": -200, "flags": [], "token": None}]
    assert main_state.counters.errors == 0


@pytest.mark.parametrize("incremental", [False, True])
def test_a_value_that_never_came_is_an_entry_that_says_so(main_state: state.MainState, incremental: bool) -> None:
    collector = Collector(incremental=incremental)
    # Of the first three tokens the last one's value is missing; of the next three the first one's.
    sent = [[entry(1, 0), entry(2, 1)], [entry(5, 4), entry(6, 5)]]
    lists = sent if incremental else [sent[0], sent[0] + sent[1]]
    found = [collector.new_entries(0, values, total) for values, total in zip(lists, (3, 6), strict=True)]
    steps = [[(e["decode_step"], "error" in e["flags"]) for e in entries] for entries in found]
    assert steps == [[(1, False), (2, False), (3, True)], [(4, True), (5, False), (6, False)]]
    assert main_state.counters.as_dict() == {"requests": 0, "entries": 6, "errors": 2}


def test_a_request_of_which_nothing_came_has_an_entry_for_every_token() -> None:
    entries = Collector(incremental=False).new_entries(0, [], 3)
    assert [(e["decode_step"], e["flags"], e["token"]) for e in entries] == [(n, ["error"], None) for n in (1, 2, 3)]


def test_values_beyond_the_answer_wait_for_theirs() -> None:
    collector = Collector(incremental=False)
    values = [entry(1, 0), entry(2, 1), entry(3, 2)]  # SGLang's own list, already longer than the answer being read
    assert [e["decode_step"] for e in collector.new_entries(0, values, 2)] == [1, 2]
    assert [e["decode_step"] for e in collector.new_entries(0, values, 3)] == [3]


@pytest.mark.parametrize("sent", [{PARAMS_KEY: "x", "mine": 1}, {PARAMS_KEY: None}, {"mine": 1}, None, "text"])
@pytest.mark.parametrize("batched", [False, True])
def test_only_the_server_writes_our_parameter(sent: Any, batched: bool) -> None:
    class Obj:
        sampling_params: Any = [{"custom_params": sent}] if batched else {"custom_params": sent}

    obj = Obj()
    _set_params(obj, None)
    one = obj.sampling_params[0] if batched else obj.sampling_params
    custom = one["custom_params"]
    assert not (isinstance(custom, dict) and PARAMS_KEY in custom)
    if isinstance(sent, dict) and "mine" in sent:
        assert custom == {"mine": 1}


def test_a_fault_that_repeats_is_not_logged_every_time(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, logger="geom"):
        for _ in range(2000):
            try:
                raise RuntimeError("again")
            except RuntimeError:
                faults.report("a test failed")
    assert len(caplog.records) == 12
    assert "(2000. time)" in caplog.records[-1].message
