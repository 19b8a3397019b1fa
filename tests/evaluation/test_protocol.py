"""What the report must not do: choose on what it counts, see the test part early, take the kind for the truth."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from geomcli.evaluation import offline, reporting
from geomcli.evaluation.alarms import PER_ANSWER, Alarms
from geomcli.evaluation.dataset import load
from geomcli.evaluation.features import BASELINES, KIND, KINDS, LOGITS, Family, families
from geomcli.evaluation.folder import Folder
from geomcli.evaluation.metrics import bootstrap_weights
from geomcli.evaluation.splits import parts
from tests.evaluation.planted import planted, small


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with threadpool_limits(limits=1, user_api="blas"):
        yield


def test_noise_with_many_variants_is_worth_nothing_on_a_kind_that_was_left_out() -> None:
    n, kinds = 300, 5
    kind = np.array([f"kind {row % kinds}" for row in range(n)])
    found = []
    for seed in range(16):
        generator = np.random.default_rng(seed)
        data = replace(
            small(np.zeros((n, 1, 4, 1)), [0.0] * n, list(range(n + 1))), kind=kind,
            group=np.arange(n).astype(str), outcome=np.where(generator.random(n) < 0.5, "right", "wrong"),
        )  # fmt: skip
        noise = Family("noise", {f"{at}": generator.normal(size=(n, 1)) for at in range(30)})
        everything = np.ones(n, dtype=bool)
        split = replace(parts(data.group, data.domain, 0), train=everything, test=~everything)
        cells = offline.left_out_kinds(data, [noise], split, seed, lambda _: None)["auroc"]["noise"]
        found += cells.values()
    assert len(found) > 12 * kinds
    assert abs(np.mean(found) - 0.5) < 0.02


def changed_in_the_test_part(folder: Folder) -> int:
    """Other answers, labels and arrays there: how many."""
    data = load(folder)
    split = reporting.split_of(folder, data)
    answers = folder.answers()
    generator = np.random.default_rng(0)
    swapped = {" 10": " 77", " 77": " 10"}
    lines = []
    for answer, hidden in zip(answers, split.test, strict=True):
        if hidden:
            arrays = {name: x + generator.random(x.shape, np.float32)
                      for name, x in folder.recording(answer).arrays().items()}  # fmt: skip
            with (folder.path / "arrays" / f"{answer.number:06d}.npz").open("wb") as stream:
                np.savez(stream, allow_pickle=False, **arrays)
            tokens = tuple(swapped.get(token or "", token) for token in answer.tokens)
            answer = msgspec.structs.replace(answer, tokens=tokens, text="".join(map(str, tokens)))  # noqa: PLW2901
        lines.append(msgspec.json.encode(answer) + b"\n")
    (folder.path / "answers.jsonl").write_bytes(b"".join(lines))
    assert (load(folder).outcome[split.test] != data.outcome[split.test]).mean() > 0.9
    return int(split.test.sum())


def test_a_development_report_says_nothing_of_the_test_part_whatever_its_seed(tmp_path: Path) -> None:
    folder = planted(tmp_path / "f", 220, tokens=8)

    def said() -> str:
        document = reporting.report(folder, seed=1, final=False, tick=lambda _: None)
        assert document["test"] is None
        counted = document["collection"]
        assert counted["answers"] == sum(kind["answers"] for kind in counted["kinds"].values())
        assert counted["answers"] == 220 - counted["parts"]["test"]
        return json.dumps([document["collection"], document["development"]], default=float)

    before = said()
    assert changed_in_the_test_part(folder) > 50
    assert said() == before


def test_the_test_part_is_the_folder_s_and_does_not_move_when_answers_come(tmp_path: Path) -> None:
    folder = planted(tmp_path / "f", 100)
    data = load(folder)
    split = reporting.split_of(folder, data)
    np.testing.assert_array_equal(split.test, parts(data.group, data.domain, folder.header.seed).test)
    file = folder.path / "answers.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:37]))
    np.testing.assert_array_equal(reporting.split_of(folder, load(folder)).test, split.test[:37])


def test_a_family_that_only_knows_the_kind_gains_nothing_over_it(tmp_path: Path) -> None:
    data = load(planted(tmp_path / "f", 1000, head=0, logit=0))
    generator = np.random.default_rng(0)
    kinds, index = np.unique(data.kind, return_inverse=True)
    wrong = generator.random(len(data)) < np.array([0.15, 0.35, 0.65, 0.85])[index]
    data = replace(data, outcome=np.where(wrong, "wrong", "right"))
    spoken = generator.normal(size=(len(kinds), 8))[index] + 0.2 * generator.normal(size=(len(data), 8))
    made = [f for f in families(data, 0) if f.name in (*BASELINES, KIND)] + [Family("recognises", {"": spoken})]
    split = parts(data.group, data.domain, 0)
    scores = offline.cross_validated(data, made, split, 0, lambda _: None)
    rows = {row["family"]: row for row in offline.table(data, scores, 0)}
    found = rows["recognises"]
    assert found["auroc"] > 0.7
    assert found["increments"][LOGITS]["interval"][0] > 0.1
    assert abs(found["increments"][KINDS]["auroc"]) < 0.01
    assert found["increments"][KINDS]["interval"][0] < 0.003
    for name in ("recognises", KIND):
        low, high = rows[name]["within_kind_interval"]
        assert abs(rows[name]["within_kind_auroc"] - 0.5) < 0.06
        assert low <= 0.5 <= high


def test_tokens_saved_are_those_after_an_alarm_that_comes_in_time() -> None:
    clean, length, onset = 30, 10, 4
    starts = [*range(clean), *range(clean, clean + 4 * length + 1, length)]
    data = small(np.zeros((starts[-1], 1, 4, 1)), [0.0] * starts[-1], starts)
    late = np.arange(len(data)) >= clean
    data = replace(data, outcome=np.where(late, "wrong", "right"), onset=np.where(late, onset, -1),
                   group=np.arange(len(data)).astype(str))  # fmt: skip
    scores = np.linspace(0, 1, starts[-1])
    for answer, alarm in enumerate((onset, onset + 1, onset - 1)):  # the fourth has none
        scores[clean + answer * length + alarm] = 5.0
    counted = Alarms()
    scores[clean:] = np.where(scores[clean:] == 5.0, 5.0, 0.0)
    tested = np.flatnonzero(late)
    counted.add(data, scores, np.flatnonzero(~late), tested, PER_ANSWER, 0.05)
    found = counted.summary(data.group[tested], bootstrap_weights(data.group[tested], 0))
    assert found["recall"] == 0.5
    assert found["too_early"] == 0.25
    assert found["delay_median"] == 0.5
    assert found["tokens_saved"] == pytest.approx((0.5 + 0.4) / 4)
    low, high = found["tokens_saved_interval"]
    assert low < found["tokens_saved"] < high
