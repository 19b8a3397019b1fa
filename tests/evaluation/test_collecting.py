"""`geom eval detect collect`: what is asked, what is kept, and that an interrupted run goes on where it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from geomcli.errors import ExitCode
from geomcli.evaluation.folder import Folder
from geomcli.evaluation.recording import of_logprobs
from tests.evaluation.served import CAPABILITIES, LAYERS, serving


def geom(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-P", "-m", "geomcli", *arguments], capture_output=True, encoding="utf-8",
                          env=env, timeout=120, stdin=subprocess.DEVNULL)  # fmt: skip


def collect(out: Path, url: str, env: dict[str, str], *more: str) -> subprocess.CompletedProcess[str]:
    return geom("eval", "detect", "collect", "--out", str(out), "--url", url, "--cards", "6", "--closed", "10",
                "--concurrency", "3", *more, env=env)  # fmt: skip


def spoken(_: str) -> list[str]:
    return ["It", " is", " 5"]


def test_every_question_is_asked_at_each_temperature_and_kept_with_its_arrays(
    home: dict[str, str], tmp_path: Path
) -> None:
    with serving(spoken) as served:
        done = collect(tmp_path / "f", served.url, home)
    assert done.returncode == 0, done.stderr
    assert "32 answers" in done.stderr
    body = served.bodies[0]
    assert body["attention_head_stats"] is True
    assert body["logprobs"] is True
    assert "attention_logit_stats" not in body
    assert {b["temperature"] for b in served.bodies} == {0.0, 1.0}
    folder = Folder.open(tmp_path / "f")
    answers = folder.answers()
    assert len({(a.item, a.temperature) for a in answers}) == 32
    assert answers[0].text == "It is 5"
    kept = folder.recording(answers[0])
    assert kept.heads.shape == (3, len(LAYERS), 4, 2)
    np.testing.assert_allclose(kept.heads[2, 1, 0], [0.3, 0.6], rtol=1e-6)
    np.testing.assert_allclose(kept.logits[0], [-0.6931472, 1.5, 0.6931472], rtol=1e-5)
    # Position 0 gets .5 of each of three rows; the rows' own position .1667 once, which the Laplacian takes away again.
    np.testing.assert_allclose(kept.received[2, 0, :2], [0.5, 1 / 6], rtol=1e-4)
    np.testing.assert_allclose(kept.received[2, 0, 5:7], [0.5, 0.0], atol=1e-6)


def test_a_run_that_broke_off_goes_on_and_asks_nothing_twice(home: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "f"
    with serving(spoken) as served:
        served.refuse_after = 9
        broken = collect(out, served.url, home)
    assert broken.returncode == ExitCode.UNREACHABLE
    assert "it goes on where it was" in broken.stderr
    kept = Folder.open(out).answers()
    assert 6 <= len(kept) <= 9
    # As if the machine had stopped in the middle of a line.
    with (out / "answers.jsonl").open("ab") as lines:
        lines.write(b'{"number": 99, "ite')
    with serving(spoken) as served:
        done = collect(out, served.url, home)
    assert done.returncode == 0, done.stderr
    assert len(served.bodies) == 32 - len(kept)
    answers = Folder.open(out).answers()
    assert len(answers) == len({(a.item, a.temperature) for a in answers}) == len({a.number for a in answers}) == 32
    assert answers[: len(kept)] == kept


def test_a_busy_server_is_asked_again(home: dict[str, str], tmp_path: Path) -> None:
    with serving(spoken) as served:
        served.busy = 2
        done = collect(tmp_path / "f", served.url, home, "--temperature", "0")
    assert done.returncode == 0, done.stderr
    assert len(Folder.open(tmp_path / "f").answers()) == 16


def test_another_collection_in_the_same_folder_is_refused_and_the_option_is_named(
    home: dict[str, str], tmp_path: Path
) -> None:
    with serving(spoken) as served:
        assert collect(tmp_path / "f", served.url, home).returncode == 0
        asked = len(served.bodies)
        done = collect(tmp_path / "f", served.url, home, "--max-tokens", "8")
    assert done.returncode == ExitCode.USAGE
    assert "begun with max_tokens 32, and this is 8" in done.stderr
    assert len(served.bodies) == asked


def test_logit_statistics_of_the_server_are_asked_for_where_it_has_them(home: dict[str, str], tmp_path: Path) -> None:
    capabilities = {**CAPABILITIES, "features": {"head_stats": True, "logit_stats": True}}
    with serving(spoken, capabilities) as served:
        done = collect(tmp_path / "f", served.url, home)
    assert done.returncode == 0, done.stderr
    assert served.bodies[0]["attention_logit_stats"] is True
    assert "logprobs" not in served.bodies[0]


def test_a_server_that_lets_only_fingerprints_out(home: dict[str, str], tmp_path: Path) -> None:
    capabilities = {**CAPABILITIES, "modes": ["fingerprint"], "features": {}}
    with serving(spoken, capabilities) as served:
        done = collect(tmp_path / "f", served.url, home)
    assert done.returncode == 0, done.stderr
    assert "head statistics" in done.stderr
    assert "top_k_attention" not in served.bodies[0]
    folder = Folder.open(tmp_path / "f")
    assert len(folder.recording(folder.answers()[0]).received) == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2"),
        ('{"question": "Who?"}', "answer"),
        ('{"question": " ", "answer": "x"}', "empty"),
        ('{"question": "Who?", "answer": [""]}', "empty"),
    ],
)
def test_a_bad_line_of_questions_is_named(home: dict[str, str], tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps({"question": "Who wrote Emma?", "answer": ["Jane Austen"]}) + f"\n{line}\n")
    done = collect(tmp_path / "f", "http://127.0.0.1:9", home, "--questions", str(file))
    assert done.returncode == ExitCode.USAGE, done.stderr
    assert said in done.stderr


def test_an_entropy_of_listed_logprobs_counts_what_is_left_as_one_token() -> None:
    half, quarter = float(np.log(0.5)), float(np.log(0.25))
    token = {"logprob": quarter, "top_logprobs": [{"logprob": quarter}, {"logprob": half}]}
    own, entropy, margin = of_logprobs(token)
    assert own == quarter
    assert entropy == pytest.approx(1.5)
    assert margin == pytest.approx(np.log(2))
    assert np.isnan(of_logprobs({"logprob": -1.0})[1])
