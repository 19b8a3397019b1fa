"""Records are believed only for the token, the request and the heads that they were written for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import orjson
import pytest
import torch

from geomcli.kernels import layout, row_records
from geomcli.kernels.reference import row_statistics
from geomcli.server_patch import results
from geomcli.server_patch.answers import Answer
from geomcli.server_patch.building import build
from geomcli.server_patch.device_derotation import DerotatedRows
from geomcli.server_patch.device_step import DeviceStep
from geomcli.server_patch.options import CaptureOptions
from geomcli.server_patch.request_state import RequestState
from geomcli.server_patch.values import Sent

LAYERS = (3, 7)
PROMPT = 20


def request(stamp: int, **changes: Any) -> tuple[Any, RequestState]:
    options = CaptureOptions(
        **{
            "mode": "raw", "top_k": 2, "layers": LAYERS, "heads": None, "heads_total": 4, "mask_prefix": 0, "stride": 1,
            "limit": 0, "window": 0, "sink_tokens": 4, "head_stats": False, "prompt_tokens": False, **changes,
        }
    )  # fmt: skip
    of_request = RequestState(options, msgspec.json.encode(options).decode())
    of_request.stamp = stamp
    req = SimpleNamespace(origin_input_ids=[1] * PROMPT, output_ids=[], customized_info=None, require_reasoning=False)
    return req, of_request


def records(n: int, *, heads: int = 4, length: int = PROMPT) -> torch.Tensor:
    made = torch.zeros(len(LAYERS), n, layout.RECORD_WORDS, dtype=torch.int32)
    values = made.view(torch.float32)
    made[..., layout.R_STAMP] = torch.arange(1, n + 1, dtype=torch.int32)
    made[..., layout.R_LENGTH], made[..., layout.R_HEADS] = length, heads
    made[..., layout.R_LINKS] = 2
    values[..., layout.R_HISTOGRAM] = 0.5
    at = layout.R_PROBABILITIES
    values[..., at], values[..., at + 1] = 0.5, 0.25
    at = layout.R_POSITIONS
    made[..., at], made[..., at + 1] = 19, 5
    return made


def entries_of(asking: list[tuple[int, Any, RequestState]], on_device: torch.Tensor, **step: Any) -> list[Any]:
    made = DeviceStep(asking, LAYERS, (-1, -1), **step)
    made.records = on_device
    made = made.copy_to_host(lambda tensor: tensor.clone())
    due = [results.Due(row, req, of_request, len(req.output_ids)) for row, req, of_request in asking]
    found = results._rows(due, made)
    sent = [Sent(*results.sent(7, one, found, made.flags)) for one in due]
    built = build([(Answer(one.options), [one]) for one in sent], LAYERS)
    return [orjson.loads(b"{" + value.body + b"}") for (value,) in built]


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
    wrong[1, 0, change["word"]] = change["value"]
    first, second = entries_of(asking, wrong)
    assert first["flags"] == ["error"]
    assert "fingerprint" not in first
    assert second["flags"] == []


def test_a_number_that_is_not_finite_is_an_error_entry() -> None:
    asking = [(row, *request(row + 1)) for row in range(2)]
    wrong = records(2)
    wrong.view(torch.float32)[0, 1, layout.R_LSE] = float("nan")
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


def test_rows_with_links_and_without_share_a_step() -> None:
    asking = [(0, *request(1)), (1, *request(2, mode="fingerprint", top_k=0)), (2, *request(3, mode="sketch"))]
    on_device = records(3)
    on_device[:, 1, layout.R_LINKS] = 0
    raw, fingerprint, sketch = entries_of(asking, on_device)
    assert raw["token_positions"] == [19, 5]
    assert "token_positions" not in fingerprint
    assert sketch["layer_sketches"]["3"]["top_hubs"] == [[19, 0.5], [5, 0.25]]
    assert raw["fingerprint"] == fingerprint["fingerprint"] == sketch["fingerprint"]


def scores_of(rows: tuple[int, ...]) -> DerotatedRows:
    """Of row r, layer l: content 10 l + r + .5, position -content, for every link."""
    content = torch.tensor([[10.0 * layer + row + 0.5 for row in rows] for layer in range(len(LAYERS))])
    return DerotatedRows(rows, torch.stack([content, -content], dim=2)[..., None].expand(-1, -1, -1, layout.KEEP))


def test_scores_of_links_reach_the_rows_that_asked() -> None:
    asking = [
        (0, *request(1, derotate=True)),
        (1, *request(2)),
        (2, *request(3, derotate=True, layers=(7,), top_k=5)),
    ]
    entries = entries_of(asking, records(3), derotated=scores_of((2, 0)))
    assert entries[0]["layers"]["3"]["derotated"] == {"content": [0.5, 0.5], "position": [-0.5, -0.5]}
    assert entries[0]["derotated"] == entries[0]["layers"]["7"]["derotated"]
    assert entries[0]["derotated"]["content"] == [10.5, 10.5]
    assert entries[2]["derotated"] == {"content": [12.5, 12.5], "position": [-12.5, -12.5]}
    assert "layers" not in entries[2]
    assert "derotated" not in str(entries[1])
    assert entries[0]["bytes"] == entries[1]["bytes"] + 2 * 2 * 8
    assert all(entry["flags"] == [] for entry in entries)


def test_scores_that_are_missing_or_not_finite_are_error_entries() -> None:
    asking = [(0, *request(1, derotate=True)), (1, *request(2))]
    assert [e["flags"] for e in entries_of(asking, records(2))] == [["error"], []]
    broken = scores_of((0,))
    broken = DerotatedRows(broken.rows, broken.scores.clone().index_fill_(0, torch.tensor(1), float("nan")))
    assert [e["flags"] for e in entries_of(asking, records(2), derotated=broken)] == [["error"], []]


def test_recomputed_scores_are_filled_up_where_there_are_fewer_links() -> None:
    packed = row_records.derotated_bytes([torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(2, 0)], 3)
    found = torch.frombuffer(bytearray(packed), dtype=torch.float32).reshape(2, 2, 3)
    assert found.tolist() == [[[1, 2, 0], [3, 4, 0]], [[0] * 3] * 2]


def test_several_tokens_of_an_answer_move_its_compass_one_by_one() -> None:
    (_, req, of_request), *_ = [(0, *request(1))]
    tokens: dict[bool, list[Sent]] = {}
    for cut in (False, True):
        made = []
        for step in range(40):
            due = results.Due(0, req, of_request, step)
            of_step = records(1, length=PROMPT + step)
            of_step.view(torch.float32)[..., layout.R_HISTOGRAM + step % 5] += step / 40
            # Cut behind what a fingerprint needs, as the scheduler does where nobody asks for links.
            on_host = of_step[..., : layout.R_POSITIONS].contiguous() if cut else of_step
            on_host[..., layout.R_LINKS] = 0
            found = results._rows([due], DeviceStep([], LAYERS, (-1, -1), records=on_host))
            made.append(Sent(*results.sent(step, due, found, ())))
        tokens[cut] = made
    assert len(tokens[True][0].records) < len(tokens[False][0].records)
    one, other = Answer(of_request.encoded), Answer(of_request.encoded)
    together = build([(one, tokens[True])], LAYERS)[0]
    apart = [value for token in tokens[False] for value in build([(other, [token])], LAYERS)[0]]
    assert together == apart
    assert orjson.loads(b"{" + together[-1].body + b"}")["drift"] is not None


def test_the_recomputed_row_travels_like_a_record() -> None:
    logits = torch.randn(4, PROMPT)
    statistics = row_statistics(
        logits, query_position=PROMPT - 1, first_key=0, prompt_len=PROMPT, sink_tokens=4, top_k=5
    )
    record = row_records.encode(statistics, stamp=3, length=PROMPT)
    back = row_records.statistics_of(record, first_key=0, prompt_len=PROMPT, sink_tokens=4)
    assert row_records.stamp_of(record) == (3, PROMPT)
    assert (back.heads, back.positions.tolist()) == (statistics.heads, statistics.positions.tolist())
    for name in ("lse", "entropy_bits", "sink_mass", "histogram", "probabilities", "profile"):
        torch.testing.assert_close(torch.as_tensor(getattr(back, name)), torch.as_tensor(getattr(statistics, name)),
                                   rtol=1e-6, atol=1e-7, check_dtype=False)  # fmt: skip
