"""Answers of files of traces, their labels and their groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geomcli import jsonl
from geomcli.errors import TraceError, UsageError
from geomcli.labelled_answers import Label, read, read_labels
from tests.library.made_traces import LOCAL, entry, records

STATS = {"7": {"entropy": [1.0, 2.0], "sink": [0.1, 0.2], "prev": [0.3, 0.4], "lookback": [0.5, 0.6]}}


def traces(count: int = 3, **header: Any) -> str:
    made = ""
    for at in range(count):
        entries = [
            entry(n, f"w{n}", LOCAL, head_stats=STATS, logit_stats={"logprob": -n, "entropy_bits": 1.0, "margin": 0.5})
            for n in (1, 2, 3)
        ]
        of = records(entries, trace_id=f"t{at}", messages=[{"role": "user", "content": f"Question {at // 2}?"}])
        of[0] |= header
        made += jsonl.dump(of)
    return made


def test_answers_have_what_was_captured(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(traces())
    answers, problems = read(str(path), {"t1": Label(True, None), "t2": Label(False, "own")})
    assert problems == []
    assert [a.wrong for a in answers] == [None, True, False]
    assert [a.group for a in answers] == ["user: Question 0?", "user: Question 0?", "own"]
    assert [(a.model, a.tokens, a.layers, a.heads) for a in answers] == [("m", 3, (7,), 2)] * 3
    seen = answers[0].seen
    assert seen.logprob.tolist() == [-1, -2, -3]
    assert seen.heads is not None
    assert seen.heads.shape == (3, 1, 4, 2)
    np.testing.assert_allclose(seen.histogram[0], LOCAL, atol=1e-5)


def test_a_header_may_have_the_label(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(traces(1, wrong=True, group="g"))
    (answer,) = read(str(path)).answers
    assert (answer.wrong, answer.group) == (True, "g")
    (answer,) = read(str(path), {"t0": Label(False, None)}).answers
    assert (answer.wrong, answer.group) == (False, "g")
    path.write_text(traces(1, wrong=True, group=0))
    (answer,) = read(str(path)).answers
    assert answer.group == "0"


def test_the_layers_and_heads_of_fingerprints_are_known(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(traces(1))
    (answer,) = read(str(path)).answers
    assert answer.fingerprinted == ((29,), 9)


def test_a_position_that_no_text_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    far = entry(1, "a", LOCAL, token_positions=[2**70], topk_logits=[0.0], logsumexp_candidates=1.0, query_position=3)
    path.write_text(jsonl.dump(records([far])))
    with pytest.raises(TraceError, match="cannot be read"):
        read(str(path))


def test_a_field_that_is_too_long_is_named(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(f'trace_id,wrong\nt0,"{"x" * 200_000}"\n')
    with pytest.raises(UsageError, match="line 1: field larger"):
        read_labels(path)


def test_a_token_without_an_entry_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(jsonl.dump(records([entry(1, "a", LOCAL), entry(4, "d", LOCAL)])))
    (answer,) = read(str(path)).answers
    assert (answer.tokens, len(answer.seen)) == (4, 2)


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with pytest.raises(TraceError, match="No such file"):
        read(str(path))
    path.write_text(traces(1) * 2)
    with pytest.raises(TraceError, match="the trace t0 twice"):
        read(str(path))
    path.write_text(traces(1).replace('"prev":[0.3,0.4]', '"prev":[0.3]', 1))
    with pytest.raises(TraceError, match="trace t0: its entries cannot be read"):
        read(str(path))
    path.write_text(traces(2) + "{broken\n" + traces(1).replace("t0", "t9"))
    answers, problems = read(str(path))
    assert [a.trace_id for a in answers] == ["t0", "t1", "t9"]
    assert len(problems) == 1


@pytest.mark.parametrize(
    "text",
    [
        "trace_id,wrong,group\nt0,true,g\nt1,0,\n",
        '\ufefftrace_id, wrong, group\nt0, YES, g\n"t1", no,\n',
        '{"trace_id": "t0", "wrong": true, "group": "g"}\n\n{"trace_id": "t1", "wrong": false}\n',
    ],
)
def test_labels(text: str, tmp_path: Path) -> None:
    path = tmp_path / "labels"
    path.write_text(text, encoding="utf-8")
    assert read_labels(path) == {"t0": Label(True, "g"), "t1": Label(False, None)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no column trace_id and no wrong"),
        ("trace_id,wrong\n", "holds no label"),
        ("id,wrong\nt0,true\n", "names no column trace_id"),
        ("trace_id,wrong\nt0,maybe\n", "line 2: `wrong` must be true or false, got 'maybe'"),
        ("trace_id,wrong\n,true\n", "line 2: `trace_id` is missing"),
        ("trace_id,wrong\nt0,true\nt0,false\n", "line 3: t0 has two labels"),
        ('{"trace_id": "t0", "wrong": 2}\n', "line 1: `wrong` must be true or false, got 2"),
        ('{"trace_id": "t0"\n', "line 1: "),
    ],
)  # fmt: skip
def test_what_is_no_label_is_said(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        read_labels(path)
