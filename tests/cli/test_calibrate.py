"""`geom calibrate`: from traces and labels to a file that a detector is made of."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geomcli import jsonl
from geomcli.detectors import registry
from geomcli.detectors.calibration import load
from tests.conftest import GEOM
from tests.library.made_traces import entry, records

HEADS = 2


def geom(*arguments: object, env: dict[str, str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [str(GEOM), "calibrate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=env, input=stdin, timeout=120)


def made(count: int, *, first: int = 0, bare: bool = False, model: str = "m", odd: bool = False) -> tuple[str, str]:
    """(traces, labels): every third is wrong, and one of its heads does not look back; odd: of another question."""
    random = np.random.default_rng(first)
    text, labels = "", "trace_id,wrong\n"
    for at in range(first, first + count):
        wrong = at % 3 == 0
        entries: list[dict[str, Any]] = []
        for n in range(1, int(random.integers(8, 14))):
            stats = {name: random.uniform(0.3, 0.7, HEADS).round(6).tolist() for name in ("entropy", "sink", "prev")}
            lookback = random.uniform(0.3, 0.7, HEADS)
            lookback[1] *= 0.6 if wrong else 1.0
            logprob = -random.exponential(1.5 if wrong else 1.0)
            more: dict[str, Any] = {} if bare else {
                "logit_stats": {"logprob": logprob, "entropy_bits": 2.0, "margin": 1.0},
                "head_stats": {"9": {**stats, "lookback": lookback.round(6).tolist()}},
            }  # fmt: skip
            entries.append(entry(n, f"w{n}", random.dirichlet(np.ones(16)), **more))
        question = [{"role": "user", "content": f"{'Odd' if odd else 'Question'} {at // 2}?"}]
        text += jsonl.dump(records(entries, trace_id=f"t{at}", messages=question, model=model))  # type: ignore[arg-type]
        labels += f"t{at},{str(wrong).lower()}\n"
    return text, labels


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    answers, labels = tmp_path / "answers.jsonl", tmp_path / "labels.csv"
    text, said = made(300)
    answers.write_text(text, encoding="utf-8")
    labels.write_text(said, encoding="utf-8")
    return answers, labels


def test_a_detector_with_weights(home: dict[str, str], files: tuple[Path, Path], tmp_path: Path) -> None:
    answers, labels = files
    out = tmp_path / "heads.npz"
    arguments = (answers, "--labels", labels, "--detector", "heads", "--false-alarms", "0.05", "--out", out)
    done = geom(*arguments, env=home)
    assert done.returncode == 0, done.stderr
    for said in (
        "heads of m, on 300 labelled answers of", "100 of them wrong", "Split by group:", "train ", "calibrate ",
        "conformal ", "held_out ", "false alarms in at most 0.05 of answers like the", "Held out: alarms in",
        "AUROC heads", "AUROC length", "AUROC mean -logprob", "AUROC trained on logits alone", "; the detector has +",
    ):  # fmt: skip
        assert said in done.stdout, said
    assert str(out) in done.stderr
    calibration = load(out)
    assert (calibration.about.layers, calibration.about.heads, calibration.about.false_alarms) == ((9,), HEADS, 0.05)
    registry.create("heads", None, calibration)
    document = json.loads(geom(*arguments, "--json", env=home).stdout)
    assert list(document) == ["about", "needs", "parts", "clean", "held_out", "notes", "file"]
    assert document["about"]["threshold"] == pytest.approx(calibration.about.threshold)
    assert document["held_out"]["areas"][0]["auroc"] > 0.85
    groups = [document["parts"][name]["groups"] for name in ("train", "calibrate", "conformal", "held_out")]
    assert sum(groups) == 150


def test_clean_traffic_without_labels(home: dict[str, str], tmp_path: Path) -> None:
    clean = tmp_path / "clean.jsonl"
    clean.write_text(made(240, odd=True)[0], encoding="utf-8")
    done = geom("--clean", clean, env=home)
    assert done.returncode == 0, done.stderr
    assert "No labelled answers: whether it finds wrong ones is not known." in done.stdout
    path = Path(home["XDG_DATA_HOME"]) / "geom" / "detectors" / "m-logprob.npz"
    assert load(path).about.n == 120
    compass = geom("--clean", clean, "--detector", "compass", "--set", "window=5", "--false-alarms-per-1k", 5,
                   "--out", tmp_path / "c.npz", env=home)  # fmt: skip
    assert compass.returncode == 0, compass.stderr
    assert load(tmp_path / "c.npz").about.settings == {"window": 5}
    assert "5 in 1,000 tokens" in compass.stdout


def test_clean_traffic_beside_labelled_answers(home: dict[str, str], files: tuple[Path, Path], tmp_path: Path) -> None:
    answers, labels = files
    clean = made(60, first=1000, odd=True)[0]
    done = geom(answers, "--labels", labels, "--clean", "-", "--detector", "heads", "--false-alarms", 0.05, "--json",
                "--out", tmp_path / "h.npz", env=home, stdin=clean)  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["clean"]["answers"], document["parts"]["conformal"]["answers"]) == (30, 0)


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        ([], "there is nothing to calibrate on", 2),
        (["{answers}"], "none of the 300 answers has a label", 2),
        (["{answers}", "--labels", "{none}"], "No such file", 2),
        (["{answers}", "--labels", "{other}"], "is for one of the 300 answers", 2),
        (["--labels", "{labels}", "--clean", "{answers}"], "--labels says which of ANSWERS are wrong", 2),
        (["{none}", "--labels", "{labels}"], "No such file", 1),
        (["-", "--clean", "-"], "only one of the two can be stdin", 2),
        (["{answers}", "--labels", "{labels}", "--detector", "oracle"], "there is no detector 'oracle'", 2),
        (["{answers}", "--labels", "{labels}", "--detector", "received"], "received needs raw entries", 2),
        (["{answers}", "--labels", "{labels}", "--model", "n"], "there is no answer to calibrate on", 2),
        (["--clean", "{answers}", "--detector", "heads"], "needs labelled answers", 2),
        (["--clean", "{answers}", "--false-alarms", "0"], "--false-alarms must be above 0", 2),
        (["--clean", "{answers}", "--false-alarms-per-1k", "0"], "--false-alarms-per-1k must be above 0", 2),
        (["--clean", "{answers}", "--false-alarms", ".1", "--false-alarms-per-1k", "1"], "contradict each other", 2),
        (["--clean", "{answers}", "--false-alarms", ".001"], "needs 999 clean answers, and there are 150", 1),
        (["--clean", "{answers}", "--set", "window"], "a name and a number are wanted", 2),
        (["--clean", "{answers}", "--set", "depth=2"], "detector logprob has no setting 'depth'", 2),
        (["--clean", "{answers}", "--consecutive", "50"], "too many clean answers have no score", 1),
    ],
)  # fmt: skip
def test_what_does_not_do_is_one_sentence(
    arguments: list[str], said: str, code: int, home: dict[str, str], files: tuple[Path, Path], tmp_path: Path
) -> None:
    other = tmp_path / "other.csv"
    other.write_text("trace_id,wrong\nx,true\n")
    names = {"answers": files[0], "labels": files[1], "other": other, "none": tmp_path / "none"}
    done = geom(*(argument.format(**names) for argument in arguments), env=home)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert not (Path(home["XDG_DATA_HOME"]) / "geom" / "detectors").exists()


def test_traces_of_two_models(home: dict[str, str], tmp_path: Path) -> None:
    both = tmp_path / "both.jsonl"
    both.write_text(made(100)[0] + made(200, first=500, model="n")[0], encoding="utf-8")
    done = geom("--clean", both, env=home)
    assert done.returncode == 2
    assert "of one model, and the answers are of m, n" in done.stderr
    assert "--model" in done.stderr
    assert geom("--clean", both, "--model", "n", env=home).returncode == 0


def test_answers_that_lack_what_is_needed_are_counted(home: dict[str, str], tmp_path: Path) -> None:
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text(made(200)[0] + made(7, first=500, bare=True)[0], encoding="utf-8")
    done = geom("--clean", mixed, env=home)
    assert done.returncode == 0, done.stderr
    assert "7 clean answers are left out: what logprob needs was not captured." in done.stderr


def test_geom_serve_finds_what_is_kept_by_the_detectors_name(home: dict[str, str], tmp_path: Path) -> None:
    serve = [str(GEOM), "serve", "--device", "cuda", "--dry-run", "--attention-calibration", "logprob"]
    refused = subprocess.run(serve, capture_output=True, text=True, env=home)
    assert refused.returncode == 2
    assert "there is no calibration of logprob for smollm2 at" in refused.stderr
    clean = tmp_path / "clean.jsonl"
    clean.write_text(made(240, model="smollm2")[0], encoding="utf-8")
    assert geom("--clean", clean, env=home).returncode == 0
    kept = Path(home["XDG_DATA_HOME"]) / "geom" / "detectors" / "smollm2-logprob.npz"
    shown = subprocess.run(serve, capture_output=True, text=True, env=home)
    assert f"--attention-calibration {kept}" in shown.stdout, shown.stderr
