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
    grown = [e for end in range(1, 6) for e in cumulative.new_entries(0, values[:end])]
    chunks = [e for part in (values[:2], values[2:4], values[4:]) for e in incremental.new_entries(0, part)]
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
    first = collector.new_entries(0, [entry(1, 0)])
    second = collector.new_entries(1, [entry(1, 5)])
    assert [(e["index"], e["token"]) for e in first + second] == [(0, "a"), (1, "f")]


def test_an_entry_whose_text_fails_is_flagged(main_state: state.MainState) -> None:
    entries = Collector(incremental=False).new_entries(0, [entry(1, -200)])
    assert entries[0]["flags"] == ["error"]
    assert entries[0]["token"] is None
    assert main_state.counters.errors == 1


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
