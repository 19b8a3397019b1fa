"""Records are believed only for the token, the request and the heads that they were written for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from geomcli.kernels import layout
from geomcli.server_patch import results
from geomcli.server_patch.device_step import DeviceStep
from geomcli.server_patch.options import CaptureOptions
from geomcli.server_patch.request_state import RequestState
from geomcli.server_patch.step_numbers import Due

LAYERS = (3, 7)
PROMPT = 20


def request(stamp: int, **changes: Any) -> tuple[Any, RequestState]:
    options = CaptureOptions(
        **{
            "mode": "raw", "top_k": 2, "layers": LAYERS, "heads": None, "heads_total": 4, "mask_prefix": 0, "stride": 1,
            "limit": 0, "window": 0, "sink_tokens": 4, "head_stats": False, "prompt_tokens": False, **changes,
        }
    )  # fmt: skip
    state = RequestState(options)
    state.stamp = stamp
    req = SimpleNamespace(origin_input_ids=[1] * PROMPT, output_ids=[], customized_info=None, require_reasoning=False)
    return req, state


def records(n: int, *, heads: int = 4, length: int = PROMPT) -> torch.Tensor:
    made = torch.zeros(len(LAYERS), n, layout.RECORD_WORDS.value, dtype=torch.int32)
    values = made.view(torch.float32)
    made[..., layout.R_STAMP.value] = torch.arange(1, n + 1, dtype=torch.int32)
    made[..., layout.R_LENGTH.value], made[..., layout.R_HEADS.value] = length, heads
    made[..., layout.R_LINKS.value] = 2
    values[..., layout.R_HISTOGRAM.value] = 0.5
    at = layout.R_PROBABILITIES.value
    values[..., at], values[..., at + 1] = 0.5, 0.25
    at = layout.R_POSITIONS.value
    made[..., at], made[..., at + 1] = 19, 5
    return made


def entries_of(asking: list[tuple[int, Any, RequestState]], on_device: torch.Tensor, **step: Any) -> list[Any]:
    made = DeviceStep(asking, LAYERS, (-1, -1), **step)
    made.records = on_device
    made = made.copy_to_host(lambda tensor: tensor.clone())
    live = [(7, Due(row, req, state, len(req.output_ids))) for row, req, state in asking]
    entries = results._entries(live, made)
    return [entries[row] for row, _, _ in asking]


def test_a_record_of_its_token_becomes_an_entry() -> None:
    asking = [(row, *request(row + 1)) for row in range(3)]
    for entry in entries_of(asking, records(3), flags=("eight_bit_keys",)):
        assert entry["flags"] == ["eight_bit_keys"]
        assert entry["token_positions"] == [19, 5]
        assert entry["topk_mass"] == 0.75
        assert set(entry["layers"]) == {"3", "7"}
        assert entry["fingerprint"][4] == 1.0
        assert entry["query_position"] == PROMPT - 1


@pytest.mark.parametrize(
    "change",
    [
        {"word": layout.R_STAMP, "value": 99},  # another request's
        {"word": layout.R_LENGTH, "value": PROMPT + 1},  # another token's
        {"word": layout.R_HEADS, "value": 3},  # a rank is missing
    ],
    ids=["stamp", "length", "heads"],
)
def test_a_record_of_something_else_is_an_error_entry(change: dict[str, Any]) -> None:
    asking = [(row, *request(row + 1)) for row in range(2)]
    wrong = records(2)
    wrong[1, 0, change["word"].value] = change["value"]
    first, second = entries_of(asking, wrong)
    assert first["flags"] == ["error"]
    assert "fingerprint" not in first
    assert second["flags"] == []


def test_a_number_that_is_not_finite_is_an_error_entry() -> None:
    asking = [(row, *request(row + 1)) for row in range(2)]
    wrong = records(2)
    wrong.view(torch.float32)[0, 1, layout.R_LSE.value] = float("nan")
    assert [e["flags"] for e in entries_of(asking, wrong)] == [[], ["error"]]


def test_a_layer_that_was_not_asked_for_need_not_be_written() -> None:
    asking = [(0, *request(1, layers=(7,)))]
    half = records(1)
    half[0] = -1
    (entry,) = entries_of(asking, half)
    assert entry["flags"] == []
    assert entry["layer_id"] == 7


def test_a_step_that_failed_gives_error_entries() -> None:
    asking = [(0, *request(1))]
    (entry,) = entries_of(asking, records(1), error="RuntimeError")
    assert entry["flags"] == ["error"]
