"""What the scheduler takes in of a step to rank the prefix cache, and which trees it refuses to rank."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from geomcli.eviction.radix_value import LOCAL, Received
from geomcli.kernels import layout, row_records
from geomcli.kernels.reference import RowStatistics, row_statistics
from geomcli.server_patch import radix_options, radix_policy
from geomcli.server_patch.observed import Row
from geomcli.server_patch.request_options import CaptureOptions
from geomcli.server_patch.scheduler_state import scheduler

LAYERS, HEADS, PROMPT = (2, 5), 4, 50


@pytest.fixture(autouse=True)
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "layers", LAYERS)
    for name in (radix_options.CORE_VARIABLE, "SGLANG_EXPERIMENTAL_CPP_RADIX_TREE"):
        monkeypatch.delenv(name, raising=False)


def row(*, written: int = 0, finished: bool = False, retracted: bool = False, mask: int = 0) -> Row:
    options = CaptureOptions(
        mode="fingerprint", top_k=0, layers=LAYERS, heads=None, heads_total=HEADS, mask_prefix=mask, stride=1, limit=0,
        window=0, sink_tokens=4, head_stats=False, prompt_tokens=False, entries=False, ranked=True,
    )  # fmt: skip
    request = SimpleNamespace(
        origin_input_ids=[0] * PROMPT, output_ids=[0] * written, finished=lambda: finished, is_retracted=retracted
    )
    return Row(0, request, SimpleNamespace(options=options, stamp=7, received=Received()))


def step(one: Row, *, stamp: int = 7) -> tuple[NDArray[np.int32], list[RowStatistics]]:
    """Records [layers, 1, words] of the row, and what is in them."""
    torch.manual_seed(3)
    length = PROMPT + len(one.request.output_ids)
    first = one.state.options.mask_prefix
    every = [
        row_statistics(3 * torch.randn(HEADS, length - first), query_position=length - 1, first_key=first, top_k=64)
        for _ in LAYERS
    ]
    records = [row_records.encode(statistics, stamp=stamp, length=length) for statistics in every]
    return np.stack(records)[:, None], every


@pytest.mark.parametrize("mask", [0, 20])
def test_a_row_gives_its_keys_what_its_layers_say(mask: int) -> None:
    one = row(written=3, mask=mask)
    records, every = step(one)
    radix_policy.observe([one], records)
    length, first = PROMPT + 3, max(4, mask)
    end = length - LOCAL
    expected = np.zeros(length)
    for statistics in every:
        expected[statistics.positions.numpy()] += statistics.probabilities.numpy() * (end - first) / len(LAYERS)
    found = one.state.received.per_token(length)
    assert found[first:end] == pytest.approx(expected[first:end], rel=1e-6)
    assert np.isnan(found[:first]).all()
    assert np.isnan(found[end:]).all()


@pytest.mark.parametrize(
    ("one", "stamp"), [(row(), 8), (row(finished=True), 7), (row(retracted=True), 7)], ids=["foreign", "over", "back"]
)
def test_what_is_not_of_the_token_at_hand_is_left_out(one: Row, stamp: int) -> None:
    radix_policy.observe([one], step(one, stamp=stamp)[0])
    assert np.isnan(one.state.received.per_token(PROMPT)).all()


def test_a_record_of_another_length_or_with_a_number_that_is_none_is_left_out() -> None:
    late, broken = row(written=1), row()
    radix_policy.observe([late], step(row())[0])
    records, _ = step(broken)
    records.view(np.float32)[1, 0, layout.R_PROBABILITIES] = np.nan
    radix_policy.observe([broken], records)
    for one in (late, broken):
        assert np.isnan(one.state.received.per_token(PROMPT)).all()


@pytest.mark.parametrize(
    ("args", "environment", "named"),
    [
        ({}, {}, None),
        ({"disable_radix_cache": False, "radix_cache_backend": None}, {radix_options.CORE_VARIABLE: "python"}, None),
        ({"disable_radix_cache": True}, {}, "leave --disable-radix-cache out"),
        ({"enable_lmcache": True}, {}, "leave --enable-lmcache out"),
        ({"radix_cache_backend": "mine"}, {}, "leave --radix-cache-backend out"),
        ({}, {radix_options.CORE_VARIABLE: "rust"}, f"unset {radix_options.CORE_VARIABLE}"),
        ({}, {"SGLANG_EXPERIMENTAL_CPP_RADIX_TREE": "1"}, "unset SGLANG_EXPERIMENTAL_CPP_RADIX_TREE"),
    ],
)
def test_trees_that_cannot_be_ranked_are_refused(
    monkeypatch: pytest.MonkeyPatch, args: dict[str, Any], environment: dict[str, str], named: str | None
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = radix_options.refusal(SimpleNamespace(**args))
    assert found is None if named is None else found is not None and named in found


def test_the_tree_that_can_be_ranked_is_chosen_for_the_processes_that_start_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(radix_options.CORE_VARIABLE, "")
    radix_options.choose_core()
    assert radix_options.refusal(SimpleNamespace()) is None
