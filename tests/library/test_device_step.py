"""Records are believed only for the token, the request and the heads that they were written for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest
import torch

from geomcli.kernels import layout, ranks, row_records
from geomcli.kernels.reference import row_statistics
from geomcli.server_patch import results, transport, worker
from geomcli.server_patch.attention_ranks import AttentionRanks
from geomcli.server_patch.device import DeviceCapture
from geomcli.server_patch.device_step import DeviceStep
from geomcli.server_patch.logit_statistics import Logits
from geomcli.server_patch.presence import packed
from geomcli.server_patch.publisher import Publisher
from geomcli.server_patch.receiver import Receiver
from geomcli.server_patch.request_options import CaptureOptions
from geomcli.server_patch.scheduler_state import scheduler
from geomcli.server_patch.values import Value
from geomcli.server_patch.worker import Builder, Order

LAYERS = (3, 7)
PROMPT = 20
TOKEN = 7


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Builder]:
    """Reads what this test's scheduler publishes."""
    publisher = Publisher(LAYERS, 1 << 16)
    monkeypatch.setattr(scheduler, "publisher", publisher)
    receiver = Receiver(publisher.address)
    yield Builder(receiver)
    receiver.close()


def options(**changes: Any) -> str:
    made = CaptureOptions(
        **{
            "mode": "raw", "top_k": 2, "layers": LAYERS, "heads": None, "heads_total": 4, "mask_prefix": 0, "stride": 1,
            "limit": 0, "window": 0, "sink_tokens": 4, "head_stats": False, "prompt_tokens": False, "derotate": False,
            **changes,
        }
    )  # fmt: skip
    return msgspec.json.encode(made).decode()


def announce(*requests: str) -> None:
    """Requests "0", "1", … with the stamps 1, 2, …"""
    for number, encoded in enumerate(requests):
        scheduler.publisher.announce(number + 1, (str(number), encoded, PROMPT))


def publish(on_device: torch.Tensor, **step: Any) -> None:
    made = DeviceStep(windows=(-1, -1), records=on_device, **step)
    made.copy_to_host(lambda tensor: tensor).publish(scheduler.publisher)


def order(requests: Sequence[str], first: int = 0, count: int = 1, over: Sequence[str] = ()) -> Order:
    ids = [TOKEN] * count
    return Order([(str(n), first, ids, encoded, PROMPT) for n, encoded in enumerate(requests)], list(over))


def read(builder: Builder, order: Order) -> list[list[Any]]:
    built = builder.build(order)
    return [[orjson.loads(b"{" + Value(*value).body + b"}") for value in values] for values in built.values()]


def entries_of(builder: Builder, requests: Sequence[str], on_device: torch.Tensor, **step: Any) -> list[Any]:
    """The entry of each request's first token after one step."""
    announce(*requests)
    publish(on_device, **step)
    return [entry for (entry,) in read(builder, order(requests))]


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


def test_a_record_of_its_token_becomes_an_entry(builder: Builder) -> None:
    for entry in entries_of(builder, [options()] * 3, records(3), flags=("eight_bit_keys",)):
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
def test_a_record_of_something_else_is_an_error_entry(builder: Builder, change: dict[str, Any]) -> None:
    wrong = records(2)
    wrong[1, 0, change["word"]] = change["value"]
    first, second = entries_of(builder, [options()] * 2, wrong)
    assert first["flags"] == ["error"]
    assert "fingerprint" not in first
    assert second["flags"] == []


def test_a_number_that_is_not_finite_is_an_error_entry(builder: Builder) -> None:
    wrong = records(2)
    wrong.view(torch.float32)[0, 1, layout.R_LSE] = float("nan")
    assert [e["flags"] for e in entries_of(builder, [options()] * 2, wrong)] == [[], ["error"]]


def test_a_layer_that_was_not_asked_for_need_not_be_written(builder: Builder) -> None:
    half = records(1)
    half[0] = -1
    (entry,) = entries_of(builder, [options(layers=(7,))], half)
    assert entry["flags"] == []
    assert entry["layer_id"] == 7


def test_a_step_that_failed_gives_error_entries(builder: Builder) -> None:
    (entry,) = entries_of(builder, [options()], records(1), error="RuntimeError")
    assert entry["flags"] == ["error"]


def test_rows_with_links_and_without_share_a_step(builder: Builder) -> None:
    on_device = records(3)
    on_device[:, 1, layout.R_LINKS] = 0
    requests = [options(), options(mode="fingerprint", top_k=0), options(mode="sketch")]
    raw, fingerprint, sketch = entries_of(builder, requests, on_device)
    assert raw["token_positions"] == [19, 5]
    assert "token_positions" not in fingerprint
    assert sketch["layer_sketches"]["3"]["top_hubs"] == [[19, 0.5], [5, 0.25]]
    assert raw["fingerprint"] == fingerprint["fingerprint"] == sketch["fingerprint"]


def test_several_tokens_of_an_answer_move_its_compass_one_by_one(builder: Builder) -> None:
    requests = [options(), options()]
    announce(*requests)
    entries: list[list[Any]] = [[], []]
    for step in range(40):
        of_step = records(2, length=PROMPT + step)
        of_step.view(torch.float32)[..., layout.R_HISTOGRAM + step % 5] += step / 40
        of_step[..., layout.R_LINKS] = 0
        # Cut behind what a fingerprint needs now and then, as it is where nobody asks for links.
        publish(of_step[..., : layout.R_POSITIONS].contiguous() if step % 3 else of_step)
        entries[0] += read(builder, order(requests[:1], step))[0]
    entries[1] = read(builder, Order([("1", 0, [TOKEN] * 40, requests[1], PROMPT)], []))[0]
    assert entries[0] == entries[1]
    assert entries[0][-1]["drift"] is not None


def test_what_a_row_still_holds_of_an_earlier_request_changes_nothing(builder: Builder) -> None:
    requests = [options(), options(layers=(7,))]
    announce(*requests)
    publish(records(1))
    # The row now belongs to the second request, which asks for the second layer alone.
    mixed = records(1, length=PROMPT)
    mixed[1, 0, layout.R_STAMP] = 2
    mixed.view(torch.float32)[1, 0, layout.R_PROBABILITIES] = 0.125
    publish(mixed)
    (first,), (second,) = read(builder, order(requests))
    assert (first["flags"], first["topk_mass"]) == ([], 0.75)
    assert (second["flags"], second["topk_mass"]) == ([], 0.375)


def test_steps_that_nobody_asked_about_are_told_apart_from_lost_ones(builder: Builder) -> None:
    requests = [options(stride=2, limit=2)]
    announce(*requests)
    for step in (0, 2):
        publish(records(1, length=PROMPT + step))
    values = builder.build(order(requests, count=5))["0"]
    entries = [orjson.loads(b"{" + body + b"}") if (body := Value(*value).body) else None for value in values]
    assert [None if e is None else e["flags"] for e in entries] == [[], None, [], None, ["capture_stopped"]]
    assert [Value(*value).token_id for value in values] == [TOKEN] * 5


def test_a_request_that_was_never_announced_has_error_entries(builder: Builder) -> None:
    publish(records(1))
    ((entry,),) = read(builder, order([options()]))
    assert (entry["flags"], entry["query_position"]) == (["error"], PROMPT - 1)


def test_a_new_reader_hears_of_the_requests_that_live(builder: Builder) -> None:
    requests = [options(), options()]
    announce(*requests)
    publish(records(2))
    builder.take_in()
    scheduler.publisher.forget(2)
    late = Builder(Receiver(scheduler.publisher.address))
    publish(records(2, length=PROMPT + 1))
    late.take_in()
    assert [key for key, _ in late._by_stamp.values()] == ["0"]
    ((lost, found),) = read(late, order(requests[:1], count=2))
    assert (lost["flags"], found["flags"]) == (["error"], [])
    builder.take_in()
    assert builder._receiver is not None
    assert not builder._receiver.open


def held(length: int, gone: int) -> torch.Tensor:
    made = records(2, length=length)
    made[..., layout.R_KEPT] = length - gone
    return made


def left(length: int, *gone: int) -> None:
    """Tokens of the first two requests' texts, of so many tokens, have left."""
    there = np.setdiff1d(np.arange(length), gone)
    for stamp in (1, 2):
        scheduler.publisher.keep(stamp, length, packed(there, length))


def test_entries_say_which_tokens_have_left(builder: Builder) -> None:
    requests = [options(retention=0.5), options(retention=0.5, mode="fingerprint")]
    announce(*requests)
    publish(held(PROMPT, 0))
    left(PROMPT, 5, 6, 9)
    publish(held(PROMPT + 1, 3))
    # Beside the overlap scheduler the next ones leave while this step runs.
    left(PROMPT + 1, 5, 6, 8, 9, 12)
    publish(held(PROMPT + 2, 5))
    named, counted = read(builder, order(requests, count=3))
    first, again, last = (entry["kv"] for entry in named)
    assert first == {"kept": 20, "freed": 0, "share": 1.0}
    assert again == {"kept": 18, "freed": 3, "share": 0.857143, "left": [[5, 7], [9, 10]]}
    assert (last["freed"], last["left"]) == (5, [[8, 9], [12, 13]])
    # No position leaves in a fingerprint.
    assert [set(entry["kv"]) for entry in counted] == [{"kept", "freed", "share"}] * 3
    late = Builder(Receiver(scheduler.publisher.address))
    left(PROMPT + 2, 5, 6, 8, 9, 12, 13)
    publish(held(PROMPT + 3, 6))
    late.take_in()
    ((entry,), _) = read(late, order(requests, first=3))
    assert entry["kv"]["gone"] == [[5, 7], [8, 10], [12, 14]]


def test_a_reader_that_comes_late_hears_what_has_left(builder: Builder) -> None:
    requests = [options(retention=0.5)] * 2
    announce(*requests)
    left(PROMPT, 5, 6, 9)
    left(PROMPT + 4, 5, 6, 9, 10)
    late = Builder(Receiver(scheduler.publisher.address))
    publish(held(PROMPT + 6, 4))
    scheduler.publisher.forget(2)
    assert list(scheduler.publisher._kept) == [1]
    late.take_in()
    ((entry,), _) = read(late, order(requests, first=6))
    assert entry["kv"]["gone"] == [[5, 7], [9, 11]]


def test_masked_positions_are_not_named(builder: Builder) -> None:
    requests = [options(retention=0.5, mask_prefix=6), options(retention=0.5)]
    announce(*requests)
    publish(held(PROMPT, 0))
    left(PROMPT, 5, 6, 9)
    publish(held(PROMPT + 1, 3))
    masked, open_ = read(builder, order(requests, count=2))
    assert "left" not in masked[1]["kv"]
    assert open_[1]["kv"]["left"] == [[5, 7], [9, 10]]


def test_a_text_that_is_too_long_to_be_named_changes_nothing_else(builder: Builder) -> None:
    announce(options(retention=0.5))
    scheduler.publisher.keep(1, 4_000_000, bytes(500_000))
    publish(held(PROMPT, 3))
    ((entry,),) = read(builder, order([options(retention=0.5)]))
    assert entry["kv"] == {"kept": 17, "freed": 3, "share": 0.85}


def test_a_record_is_sent_once() -> None:
    """What a later step found of it would come with that step's other numbers."""
    buffers = SimpleNamespace(records=records(3), heads=None)
    capture: Any = SimpleNamespace(buffers=buffers, group=None, _derotation=None)
    stamps = []
    for _ in range(2):
        step = DeviceStep()
        DeviceCapture.collect(capture, step, None, 2)
        stamps.append(step.records[..., layout.R_STAMP].tolist())
    assert stamps == [[[1, 2]] * 2, [[0, 0]] * 2]
    assert buffers.records[:, 2, layout.R_STAMP].tolist() == [3, 3]


def test_a_request_that_is_over_leaves_nothing_behind(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    announce(options(), options())
    publish(records(1))
    builder.build(order([options()]))
    assert set(builder._answers) == {"0", "1"}
    # One whose tokens nobody has ordered: its client left before the first one.
    monkeypatch.setattr(worker, "_GRACE_SECONDS", 0.0)
    scheduler.publisher.forget(2)
    publish(records(1))
    builder.take_in()
    builder.build(Order([], ["0"]))
    assert not builder._answers
    assert not builder._by_stamp


@pytest.mark.parametrize("overlapped", [False, True])
def test_before_auxiliary_outputs_a_step_rides_on_its_logits(builder: Builder, overlapped: bool) -> None:
    logits = SimpleNamespace()
    announce(options())
    transport.attach(logits, DeviceStep(windows=(-1, -1), records=records(1)))
    result = SimpleNamespace(logits_output=logits, copy_done=None)
    if overlapped:
        setattr(logits, transport.ATTRIBUTE, getattr(logits, transport.ATTRIBUTE).copy_to_host(lambda tensor: tensor))
    results.before_process(None, None, result)
    assert read(builder, order([options()]))[0][0]["flags"] == []


def scores_of(rows: tuple[int, ...], n: int = 3) -> torch.Tensor:
    """Of row r, layer l: content 10 l + r + .5, position -content, for every link; zero for other rows."""
    made = torch.zeros(len(LAYERS), n, 2, layout.KEEP)
    for layer in range(len(LAYERS)):
        for row in rows:
            made[layer, row, 0] = 10.0 * layer + row + 0.5
            made[layer, row, 1] = -made[layer, row, 0]
    return made


def test_scores_of_links_reach_the_rows_that_asked(builder: Builder) -> None:
    requests = [options(derotate=True), options(), options(derotate=True, layers=(7,), top_k=5)]
    entries = entries_of(builder, requests, records(3), derotated=scores_of((0, 2)))
    assert entries[0]["layers"]["3"]["derotated"] == {"content": [0.5, 0.5], "position": [-0.5, -0.5]}
    assert entries[0]["derotated"] == entries[0]["layers"]["7"]["derotated"]
    assert entries[0]["derotated"]["content"] == [10.5, 10.5]
    assert entries[2]["derotated"] == {"content": [12.5, 12.5], "position": [-12.5, -12.5]}
    assert "layers" not in entries[2]
    assert "derotated" not in str(entries[1])
    assert entries[0]["bytes"] == entries[1]["bytes"] + 2 * 2 * 8
    assert all(entry["flags"] == [] for entry in entries)


@pytest.mark.parametrize("broken", [False, True])
def test_scores_that_are_missing_or_not_finite_are_error_entries(builder: Builder, broken: bool) -> None:
    scores = scores_of((0,), 2).index_fill_(0, torch.tensor(1), float("nan")) if broken else None
    entries = entries_of(builder, [options(derotate=True), options()], records(2), derotated=scores)
    assert [e["flags"] for e in entries] == [["error"], []]


def logits_of(rows: Sequence[int], n: int) -> Logits:
    kept = Logits(rows)
    kept.read(torch.tensor([[2.0, 0.0], [0.0, 0.0], [math.nan, 0.0]])[:n])
    kept.finish(torch.zeros(n, dtype=torch.int64))
    return kept


def test_logit_statistics_reach_those_who_asked(builder: Builder) -> None:
    requests = [options(logit_stats=True), options(), options(logit_stats=True)]
    first, second, third = entries_of(builder, requests, records(3), logits=logits_of((0, 2), 3))
    p = 1 / (1 + math.exp(-2))
    entropy = -(p * math.log2(p) + (1 - p) * math.log2(1 - p))
    assert first["logit_stats"] == pytest.approx(
        {"logprob": math.log(p), "entropy_bits": entropy, "margin": 2}, abs=1e-6
    )
    assert "logit_stats" not in second
    assert third["logit_stats"] is None
    assert first["bytes"] == second["bytes"] + 12


def test_logit_statistics_of_an_earlier_step_are_no_token_s(builder: Builder) -> None:
    requests = [options(logit_stats=True), options(logit_stats=True)]
    announce(*requests)
    publish(records(2), logits=logits_of((0, 1), 2))
    unread = Logits([0, 1])
    unread.finish(torch.tensor([0, 0]))
    publish(records(2, length=PROMPT + 1), logits=unread)
    publish(records(2, length=PROMPT + 2))
    stale = records(2, length=PROMPT + 3)
    stale[:, 1, layout.R_STAMP] = 0
    publish(stale, logits=logits_of((0,), 2))
    found = [[entry.get("logit_stats") for entry in of] for of in read(builder, order(requests, count=4))]
    assert [[one is not None for one in of] for of in found] == [
        [True, False, False, True],
        [True, False, False, False],
    ]


def test_the_first_rank_s_logit_statistics_are_judged_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    shared: list[torch.Tensor] = []

    def share(values: torch.Tensor, *, group: Any) -> None:
        shared.append(values)

    monkeypatch.setattr(ranks, "merge_sums", lambda *_, **__: None)
    monkeypatch.setattr(ranks, "share", share)
    capture: Any = SimpleNamespace(group=AttentionRanks(1, 2, None))
    watching = SimpleNamespace(options=SimpleNamespace(links=False, observed=True, logits=True))
    unread = Logits([0])  # as where this rank's own reading failed
    step = DeviceStep(records=records(2), asking=((0, None, watching),), logits=unread)
    DeviceCapture._merge_ranks(capture, step, None)
    assert shared[0] is step.records
    assert shared[1] is unread.found
    assert (shared[1].shape, shared[1].isnan().all().item()) == ((1, 2, 3), True)
    watching.options.observed = False
    DeviceCapture._merge_ranks(capture, step, None)
    assert len(shared) == 2


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
