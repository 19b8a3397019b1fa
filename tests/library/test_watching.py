"""What the scheduler's firewall judges of a step: the library's decisions, each answer once, only of its own tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from geomcli.firewall import ManifoldFirewall
from geomcli.kernels import layout, row_records
from geomcli.kernels.reference import row_statistics
from geomcli.server_patch import watching
from geomcli.server_patch.device_step import HostStep
from geomcli.server_patch.entries import published_fingerprints
from geomcli.server_patch.firewall_options import Guard
from geomcli.server_patch.options import CaptureOptions
from geomcli.server_patch.scheduler_state import scheduler
from geomcli.server_patch.step_numbers import numbers_of

LAYERS, HEADS, PROMPT = (2, 5), 4, 30


@pytest.fixture(autouse=True)
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "layers", LAYERS)
    # SGLang's own takes seconds to import; tests/engine has it.
    monkeypatch.setattr(watching, "_reason", lambda matched: matched)


def row(at: int, guard: Guard, *, written: int = 0) -> watching.Row:
    """An answer of which `written` tokens are there."""
    options = CaptureOptions(
        mode="fingerprint", top_k=0, layers=LAYERS, heads=None, heads_total=HEADS, mask_prefix=0, stride=1, limit=0,
        window=0, sink_tokens=4, head_stats=False, prompt_tokens=False, guard=guard, entries=False,
    )  # fmt: skip
    request = SimpleNamespace(
        rid=f"r{at}", origin_input_ids=[0] * PROMPT, output_ids=[0] * written, finished=lambda: False,
        is_retracted=False, to_finish=None,
    )  # fmt: skip
    return watching.Row(at, request, SimpleNamespace(options=options, stamp=at + 1, watched=watching.watch(guard)))


def records_of(rows: list[watching.Row], seed: int) -> NDArray[np.int32]:
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


def published(one: watching.Row, records: NDArray[np.int32]) -> list[float]:
    due = [watching._Due(one.state.options, token) for _, token in watching._tokens([one], records)]
    return published_fingerprints(numbers_of(due, LAYERS))[2][0]


def test_decisions_are_the_librarys_and_come_once() -> None:
    guards = [
        Guard("early_stop", 4, 0.02),
        Guard("log_only", 4, 0.02),
        Guard("re_route", 6, 0.03),
        Guard("early_stop", 4, 0.9),
    ]
    rows = [row(at, guard) for at, guard in enumerate(guards)]
    library = [ManifoldFirewall(g.window_size, g.variance_threshold, g.action) for g in guards]
    halts = dict.fromkeys(range(len(rows)), 0)
    for step in range(30):
        records = records_of(rows, step)
        said = {one.at: one for one in watching.judge(rows, records)}
        for one, alone in zip(rows, library, strict=True):
            status = alone.check(published(one, records))
            assert (said[one.at].status, said[one.at].score) == (status, alone.drift)
            halts[one.at] += said[one.at].halted
            one.request.output_ids.append(0)
    assert halts == {0: 1, 1: 1, 2: 1, 3: 0}
    ends = [one.request.to_finish for one in rows]
    assert ends == ["attention_drift", None, "attention_reroute", None]


def test_what_is_no_record_of_the_token_is_not_judged() -> None:
    guard = Guard("early_stop", 2, 0.5)
    rows = [row(at, guard, written=5) for at in range(4)]
    records = records_of(rows, 1)
    records[:, 0, layout.R_STAMP] = 99
    records[1, 1, layout.R_LENGTH] += 1
    rows[2].request.finished = lambda: True
    assert [one.at for one in watching.judge(rows, records)] == [3]
    assert watching.judge(rows, records[:, :2]) == ()


def test_a_step_of_others_is_no_fault() -> None:
    step: Any = HostStep()
    assert watching.judge(step.watched_rows(), step.watched_records()) == ()
