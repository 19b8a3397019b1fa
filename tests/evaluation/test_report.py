"""The report on planted answers: what was planted is found, what was not is not, and the test part is seen once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from geomcli.detectors.compass import CompassDetector
from geomcli.detectors.heads import HeadFeatures
from geomcli.detectors.logprob import LogprobDetector
from geomcli.detectors.observations import Updated, replay
from geomcli.detectors.rauq import RauqDetector
from geomcli.detectors.summary import Summarised
from geomcli.errors import ExitCode, GeomError, UsageError
from geomcli.evaluation import fitting, locking, markdown, offline, online, reporting
from geomcli.evaluation.dataset import load
from geomcli.evaluation.features import Family, causal_drift, families, logit_numbers, rauq
from geomcli.evaluation.folder import Folder
from geomcli.evaluation.metrics import auroc
from geomcli.evaluation.splits import parts
from tests.evaluation.planted import HEADS, LAYERS, planted, small


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with threadpool_limits(limits=1, user_api="blas"):
        yield


LOGITS, SERIES = "logits + length", "logit series"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return planted(tmp_path_factory.mktemp("planted") / "f", 500)


@pytest.fixture(scope="module")
def document(folder: Folder) -> dict[str, Any]:
    return reporting.report(folder, seed=0, final=False, tick=lambda _: None)


def row(part: dict[str, Any], name: str) -> dict[str, Any]:
    return next(family for family in part["families"] if family["family"] == name)


def test_a_planted_signal_is_found_beyond_both_baselines_with_a_clear_interval(document: dict[str, Any]) -> None:
    found = row(document["development"], "entropy of heads")
    assert found["auroc"] > 0.9
    for base in (LOGITS, SERIES):
        assert found["increments"][base]["interval"][0] > 0.03
    assert all("layer 9" in choice or "all layers" in choice for choice in found["choices"])


@pytest.mark.parametrize("name", ["random", "sink of heads", "received", "compass, max"])
def test_families_of_noise_gain_nothing(document: dict[str, Any], name: str) -> None:
    found = row(document["development"], name)
    low, high = found["auroc_interval"]
    assert low < 0.5 < high or high < 0.55
    for base in (LOGITS, SERIES):
        assert found["increments"][base]["interval"][0] < 0.005


def test_the_planted_log_probability_is_found_by_the_baseline_alone(document: dict[str, Any]) -> None:
    assert row(document["development"], "logprob, mean")["auroc"] > 0.65
    assert row(document["development"], LOGITS)["auroc"] > 0.65
    assert row(document["development"], "length")["auroc"] < 0.6


def test_transfer_and_kinds_hold_where_domains_are_alike(document: dict[str, Any]) -> None:
    part = document["development"]
    assert part["transfer"]["domains"] == ["arithmetic", "context"]
    assert part["transfer"]["auroc"]["entropy of heads"]["arithmetic"]["context"] > 0.85
    assert part["left_out_kinds"]["kinds"] == ["arithmetic 0", "arithmetic 1", "context 0", "context 1"]
    assert min(part["left_out_kinds"]["auroc"]["entropy of heads"].values()) > 0.85


def test_alarms_come_after_the_onset_at_the_rate_that_was_allowed(document: dict[str, Any]) -> None:
    found = document["development"]["online"]
    alarms = {(r["detector"], r["per"], r["rate"]): r for r in found["alarms"]}
    heads = alarms["head statistics, CUSUM", "answer", 0.05]
    assert heads["recall_interval"][0] > alarms["compass", "answer", 0.05]["recall_interval"][1]
    assert 0 <= heads["delay_median"] <= 5
    assert heads["false_alarms_interval"][0] < 0.05 + 0.03
    shipped = alarms["heads", "answer", 0.05]
    assert shipped["recall_interval"][0] > alarms["logprob", "answer", 0.05]["recall"]
    assert shipped["false_alarms_interval"][0] < 0.05 + 0.03
    assert "needs 99 clean answers" in alarms["head statistics, CUSUM", "answer", 0.01]["refused"]
    assert {"received, CUSUM", "received + logits, CUSUM"} <= {r["detector"] for r in found["alarms"]}
    low, high = heads["tokens_saved_interval"]
    assert 0.1 < low < heads["tokens_saved"] < high < 0.6  # the onset is in the middle
    assert [r["wrong"] for r in found["compass_thresholds"]] == [0.0, 0.0, 0.0]


def test_the_tables_hold_every_family_and_population(document: dict[str, Any]) -> None:
    text = markdown.render(document)
    for family in document["development"]["families"]:
        assert text.count(f"| {family['family']} |") >= 2
    assert "committed (" in text
    assert "off-form and refused count as wrong" in text
    assert "The test part was not looked at." in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    widths = {line.count("|") for line in lines}
    assert min(widths) >= 6
    json.loads(json.dumps(document, default=float))


def test_without_final_no_answer_of_the_test_part_is_scored(folder: Folder) -> None:
    data = load(folder)
    split = parts(data.group, data.domain, 0)
    made = [family for family in families(data, 0) if family.name in (LOGITS, SERIES, "heads")]
    scores = offline.cross_validated(data, made, split, 0, lambda _: None)
    for values in scores.by.values():
        assert np.isnan(values[split.test]).all()
        assert np.isfinite(values[split.development]).all()
    # Nor does anything of it matter: other numbers there, the same scores here.
    changed = [Family(f.name, {n: np.where(split.test[:, None], 9.9, x) for n, x in f.variants.items()}) for f in made]
    again = offline.cross_validated(data, changed, split, 0, lambda _: None)
    for key, values in scores.by.items():
        np.testing.assert_array_equal(values, again.by[key])


def test_a_feature_that_names_the_group_is_worth_nothing_unless_groups_are_torn_apart(folder: Folder) -> None:
    data = load(folder)
    group = np.unique(data.group, return_inverse=True)[1]
    label = np.where(np.random.default_rng(0).random(group.max() + 1) < 0.5, "right", "wrong")
    honest = replace(data, outcome=label[group])  # answers of one group are both right or both wrong
    torn = replace(honest, group=np.array([f"{row}" for row in range(len(data))]))
    own = np.random.default_rng(1).normal(size=(group.max() + 1, 150))[group]
    made = [*families(data, 0)[:1], Family("group", {"": own})]
    found = {}
    for name, one in (("honest", honest), ("torn", torn)):
        split = parts(one.group, one.domain, 0)
        scores = offline.cross_validated(one, made, split, 0, lambda _: None).by["group", offline.ALONE]
        rows = np.flatnonzero(split.development)
        found[name] = auroc(scores[rows], one.wrong[rows])
    assert abs(found["honest"] - 0.5) < 0.08
    assert found["torn"] > 0.65


def test_final_writes_a_lock_repeats_itself_and_refuses_another_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = planted(tmp_path / "f", 300, tokens=8)
    first = reporting.report(folder, seed=0, final=True, tick=lambda _: None)
    assert row(first["test"], "entropy of heads")["auroc"] > 0.8
    assert first["lock"]["hash"] == first["hash"]
    again = reporting.report(folder, seed=0, final=True, tick=lambda _: None)
    assert json.dumps(again["test"], default=float) == json.dumps(first["test"], default=float)
    with pytest.raises(UsageError, match="then is: seed"):
        reporting.report(folder, seed=1, final=True, tick=lambda _: None)
    # Code that grades or measures the same answers in another way is another configuration, too.
    data = load(folder)
    with monkeypatch.context() as other:
        flipped = np.where(np.arange(len(data)) == 3, "refused", data.outcome)
        other.setattr(reporting, "load", lambda _: replace(data, outcome=flipped))
        with pytest.raises(UsageError, match="then is: labels"):
            reporting.report(folder, seed=0, final=True, tick=lambda _: None)
    with monkeypatch.context() as other:
        made = [Family(f.name, {n: x + (f.name == "heads") for n, x in f.variants.items()}, f.text)
                for f in families(data, 0)]  # fmt: skip
        other.setattr(reporting, "families", lambda *_: made)
        with pytest.raises(UsageError, match="then is: features"):
            reporting.report(folder, seed=0, final=True, tick=lambda _: None)
    with (folder.path / "answers.jsonl").open("ab") as lines:
        answer = msgspec.structs.replace(folder.answers()[0], number=0, temperature=0.5)
        lines.write(msgspec.json.encode(answer) + b"\n")
    with pytest.raises(UsageError, match=r"then is: answers"):
        reporting.report(folder, seed=0, final=True, tick=lambda _: None)
    lock = json.loads((folder.path / locking.FILE).read_text())
    lock["configuration"]["seed"] = 1
    (folder.path / locking.FILE).write_text(json.dumps(lock))
    with pytest.raises(GeomError, match="was changed"):
        locking.read(folder.path)


def test_tables_go_between_the_marks_of_a_page_and_nothing_else_changes() -> None:
    page = f"# Title\n\n{markdown.BEGIN}\nold\n{markdown.END}\n\nafter\n"
    placed = markdown.placed(page, "new")
    assert placed == f"# Title\n\n{markdown.BEGIN}\nnew\n{markdown.END}\n\nafter\n"
    assert markdown.placed(placed, "new") == placed
    assert markdown.placed("", "new").startswith(markdown.BEGIN)
    with pytest.raises(UsageError, match="one of the two marks"):
        markdown.placed(markdown.BEGIN, "new")


def test_the_command_writes_both_files_and_says_what_is_missing(home: dict[str, str], tmp_path: Path) -> None:
    def geom(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-P", "-m", "geomcli", "eval", "detect", "report", *arguments],
                              capture_output=True, encoding="utf-8", env=home, timeout=300)  # fmt: skip

    assert geom(str(tmp_path / "none")).returncode == ExitCode.USAGE
    few = planted(tmp_path / "few", 60)
    done = geom(str(few.path))
    assert done.returncode == ExitCode.FAILED
    assert "needs 40 of each" in done.stderr
    enough = planted(tmp_path / "enough", 240, tokens=8)
    page = tmp_path / "page.md"
    page.write_text(f"# T\n\n{markdown.BEGIN}\n{markdown.END}\n")
    done = geom(str(enough.path), "--json", str(tmp_path / "r.json"), "--markdown", str(page))
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["test"] is None
    assert page.read_text().startswith("# T\n")
    assert "| entropy of heads |" in page.read_text()


@pytest.mark.parametrize("detector", [RauqDetector(), CompassDetector(), LogprobDetector(),
                                      Summarised(HeadFeatures(LAYERS, HEADS))])  # fmt: skip
def test_answers_side_by_side_score_as_one_by_one(folder: Folder, detector: Updated) -> None:
    data = load(folder)
    found = data.replayed(detector)
    for answer in range(0, len(data), 60):
        alone = replay(detector, data.seen(answer))
        np.testing.assert_allclose(found[data.starts[answer] : data.starts[answer + 1]], alone, rtol=1e-12)


def test_rauq_of_a_case_by_hand() -> None:
    heads = np.zeros((3, 1, 4, 2))
    heads[2, 0, 2] = [0.5, 0.1]
    p = np.array([0.8, 0.6, 0.9])
    found = rauq(small(heads, np.log(p).tolist(), [0, 3]))
    first, second = p[0], 0.2 * p[1] + 0.8 * 0.5 * p[0]
    assert found[0] == pytest.approx(-(np.log(first) + np.log(second)) / 2)


def test_logit_numbers_and_drift_of_cases_by_hand() -> None:
    data = small(np.zeros((5, 1, 4, 2)), [-1.0, -3.0, np.nan, -2.0, -4.0], [0, 3, 5])
    numbers = logit_numbers(data)
    assert numbers.shape == (2, 11)
    np.testing.assert_allclose(numbers[:, 0], [-2.0, -3.0])
    np.testing.assert_allclose(numbers[:, 1], [-3.0, -4.0])
    drift = causal_drift(data)
    np.testing.assert_allclose(drift[[1, 2, 4]], 0.0)
    assert np.isnan(drift[[0, 3]]).all()


def test_token_features_are_causal() -> None:
    generator = np.random.default_rng(0)
    data = small(np.zeros((9, 1, 4, 2)), generator.normal(size=9).tolist(), [0, 4, 9])
    values = generator.normal(size=(9, 2))
    whole = online.causal_features(data, values)
    for last in range(4, 9):
        later = values.copy()
        later[last + 1 :] = 77.0
        np.testing.assert_allclose(online.causal_features(data, later)[: last + 1], whole[: last + 1])
    np.testing.assert_allclose(whole[4, :2], whole[4, 2:4])


def test_tokens_before_an_onset_are_good_and_the_rest_are_bad(folder: Folder) -> None:
    data = load(folder)
    known, bad = online.token_labels(data)
    wrong = np.flatnonzero((data.outcome == "wrong") & (data.onset >= 0))
    assert len(wrong) > 100
    for answer in wrong[:50]:
        a, b = data.starts[answer], data.starts[answer + 1]
        assert known[a:b].all()
        assert bad[a:b].sum() == b - a - data.onset[answer]
    assert data.heads is not None
    assert data.heads.shape[1:] == (len(LAYERS), 4, HEADS)


def test_platt_makes_probabilities_of_log_odds_that_are_too_sure() -> None:
    generator = np.random.default_rng(0)
    odds = generator.normal(size=20_000)
    wrong = generator.random(20_000) < 1 / (1 + np.exp(-odds))
    probabilities = fitting.platt(4 * odds + 1, wrong)(np.array([1.0, 5.0]))
    np.testing.assert_allclose(probabilities, [0.5, 1 / (1 + np.exp(-1))], atol=0.02)
