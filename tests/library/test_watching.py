"""What the scheduler's firewall judges of a step: the library's decisions, each answer once, only of its own tokens."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from geomcli.firewall import ManifoldFirewall
from geomcli.kernels import layout, row_records
from geomcli.kernels.reference import row_statistics
from geomcli.server_patch import endings, watching
from geomcli.server_patch.device_step import HostStep
from geomcli.server_patch.firewall_options import Guard
from geomcli.server_patch.observed import Observed, Row
from geomcli.server_patch.request_options import CaptureOptions
from geomcli.server_patch.scheduler_state import scheduler

LAYERS, HEADS, PROMPT = (2, 5), 4, 30


@pytest.fixture(autouse=True)
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "layers", LAYERS)
    # SGLang's own takes seconds to import; tests/engine has it.
    monkeypatch.setattr(endings, "reason_of", lambda matched: matched)


def row(at: int, guard: Guard, *, written: int = 0) -> Row:
    """An answer of which `written` tokens are there."""
    options = CaptureOptions(
        mode="fingerprint", top_k=0, layers=LAYERS, heads=None, heads_total=HEADS, mask_prefix=0, stride=1, limit=0,
        window=0, sink_tokens=4, head_stats=False, prompt_tokens=False, guard=guard, entries=False,
    )  # fmt: skip
    firewall = watching.firewall_of(guard)
    state = SimpleNamespace(options=options, stamp=at + 1, firewall=firewall, watched=firewall.watch())
    return Row(at, Request(at, written), state)


def records_of(rows: list[Row], seed: int) -> NDArray[np.int32]:
    made = np.zeros((len(LAYERS), len(rows), layout.RECORD_WORDS), dtype=np.int32)
    for one in rows:
        length = PROMPT + len(one.request.output_ids)
        for place in range(len(LAYERS)):
            torch.manual_seed(1000 * seed + 10 * one.at + place)
            statistics = row_statistics(
                3 * torch.randn(HEADS, length), query_position=length - 1, first_key=0, prompt_len=PROMPT,
                sink_tokens=4, top_k=0,
            )  # fmt: skip
            made[place, one.at] = row_records.encode(statistics, stamp=one.state.stamp, length=length)
    return made[..., : layout.R_POSITIONS].copy()


class Request:
    """What of SGLang's is used; `natural`: a token that ends it by itself."""

    def __init__(self, at: int, written: int) -> None:
        self.rid, self.origin_input_ids, self.output_ids = f"r{at}", [0] * PROMPT, [0] * written
        self.is_retracted, self.to_finish, self.finished_reason = False, None, None
        self.natural = False

    def finished(self) -> bool:
        return self.finished_reason is not None

    def update_finish_state(self, new_accepted_len: int = 1) -> None:
        assert new_accepted_len == 1
        if not self.finished() and (self.to_finish or self.natural):
            self.finished_reason = self.to_finish or "eos"


def judge(rows: list[Row], records: NDArray[np.int32]) -> tuple[watching.Judged, ...]:
    return watching.judge(Observed(rows, records))


def published(one: Row, records: NDArray[np.int32]) -> list[float]:
    found: list[float] = Observed([one], records).published[0].tolist()
    return found


def test_decisions_are_the_librarys_and_come_once() -> None:
    guards = [
        Guard("early_stop", 4, 0.02),
        Guard("log_only", 4, 0.02),
        Guard("re_route", 6, 0.03),
        Guard("early_stop", 4, 0.7),
    ]
    rows = [row(at, guard) for at, guard in enumerate(guards)]
    library = [ManifoldFirewall(g.window_size, g.variance_threshold, g.action) for g in guards]
    halts, ends = dict.fromkeys(range(len(rows)), 0), {}
    for step in range(30):
        records = records_of(rows, step)
        said = {one.at: one for one in judge(rows, records)}
        for one, alone in zip(rows, library, strict=True):
            status = alone.check(published(one, records))
            assert (said[one.at].status, said[one.at].score) == (status, alone.drift)
            halts[one.at] += said[one.at].halted
            one.request.output_ids.append(0)
            if said[one.at].halted:
                one.request.update_finish_state()
                ends[one.at] = one.request.finished_reason
                one.request.finished_reason = None  # it goes on all the same
    assert halts == {0: 1, 1: 1, 2: 1, 3: 0}
    assert ends == {0: "attention_drift", 1: None, 2: "attention_reroute"}


def test_what_is_no_record_of_the_token_is_not_judged() -> None:
    guard = Guard("early_stop", 2, 0.5)
    rows = [row(at, guard, written=5) for at in range(4)]
    records = records_of(rows, 1)
    records[:, 0, layout.R_STAMP] = 99
    records[1, 1, layout.R_LENGTH] += 1
    rows[2].request.finished_reason = "length"
    assert [one.at for one in judge(rows, records)] == [3]
    assert judge(rows, records[:, :2]) == ()


def test_a_step_of_others_is_no_fault() -> None:
    step: Any = HostStep()
    assert judge(step.watched_rows(), step.watched_records()) == ()


@pytest.mark.parametrize(("to_finish", "natural", "reason"), [
    (None, False, "attention_drift"), (None, True, "eos"), ("abort", False, "abort"), ("abort", True, "abort"),
])  # fmt: skip
def test_what_ends_by_itself_keeps_its_own_reason(to_finish: str | None, natural: bool, reason: str) -> None:
    request = Request(0, 3)
    endings.end(request, "attention_drift")
    request.to_finish, request.natural = to_finish, natural
    request.update_finish_state(1)
    assert request.finished_reason == reason
    assert "update_finish_state" not in vars(request)


def test_names_are_texts_again_and_nothing_else_is_changed() -> None:
    reasons = [
        None, {"type": "stop", "matched": [-1, *b"attention_drift"]}, {"type": "length", "length": 3},
        {"type": "stop", "matched": [7, 8]}, {"type": "stop", "matched": "\n"}, {"type": "stop", "matched": []},
    ]  # fmt: skip
    endings.named(reasons)
    assert reasons[1] == {"type": "stop", "matched": "attention_drift"}
    assert reasons[2:] == [{"type": "length", "length": 3}, {"type": "stop", "matched": [7, 8]},
                           {"type": "stop", "matched": "\n"}, {"type": "stop", "matched": []}]  # fmt: skip


def test_a_detector_that_fails_leaves_the_others_to_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    broken, sound = (row(at, Guard("early_stop", variance_threshold=level)) for at, level in enumerate((0.4, 0.5)))

    def fails(*_: object) -> None:
        raise ValueError("of another shape")

    monkeypatch.setattr(broken.state.firewall, "check", fails)
    assert [one.at for one in judge([broken, sound], records_of([broken, sound], 0))] == [1]


def test_firewalls_are_kept_while_answers_are_watched() -> None:
    gc.collect()
    before = len(watching._firewalls)
    kept = [watching.firewall_of(Guard("log_only", variance_threshold=0.1 + n / 1000)) for n in range(50)]
    assert watching.firewall_of(Guard("log_only", variance_threshold=0.1)) is kept[0]
    assert len({id(one.detector) for one in kept}) == 1
    kept.clear()
    gc.collect()
    assert len(watching._firewalls) <= before
