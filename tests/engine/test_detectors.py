"""Detectors in the real engine score as the library does on the entries' own numbers, and end answers there."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geomcli.compass import HALT
from geomcli.detectors import registry
from geomcli.detectors.calibration import About, Calibration, Stack, load, save
from geomcli.detectors.heads import HeadFeatures
from geomcli.detectors.observations import of_entries
from geomcli.detectors.received import ReceivedFeatures
from geomcli.detectors.summary import Summarised
from geomcli.firewall import WARN_SHARE, Firewall
from tests.engine.harness import TWO_LAYERS, Server, served

LAYERS, HEADS, TOKENS = (0, 1), 9, 30
ASK = {
    "return_attention_tokens": True, "attention_fingerprint_mode": True, "attention_logit_stats": True,
    "attention_head_stats": True,
}  # fmt: skip
RAW = {"return_attention_tokens": True, "top_k_attention": 20}
PROMPTS = ("Tell a long story of the sea.", "List ten animals.", "What is 12 + 30?")


def calibrated(folder: Path, name: str) -> Path:
    """A made calibration of a detector for the two-layer model."""
    about = About(
        model="smollm2", detector=name, layers={"logprob": (), "received": LAYERS[-1:]}.get(name, LAYERS),
        heads=0 if name in ("logprob", "received") else HEADS, threshold=0.9, consecutive=2, false_alarms=0.1, n=20,
        trained_on="nothing: a test",
    )  # fmt: skip
    stack = None
    if registry.DETECTORS[name].trained:
        random = np.random.default_rng(1)
        features = ReceivedFeatures() if name == "received" else HeadFeatures(LAYERS, HEADS)
        names = Summarised(features).names
        size = len(names)
        stack = Stack(
            names, random.normal(size=size), random.uniform(0.5, 2, size), random.normal(size=size) / size**0.5, 0.1,
            0.3, -0.2, 0.4, 8,
        )  # fmt: skip
    path = folder / f"{name}.npz"
    save(Calibration(about, stack), path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("calibrations")
    return {name: calibrated(folder, name) for name in ("logprob", "rauq", "heads", "received")}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, files: dict[str, Path]) -> Iterator[Server]:
    flags = [word for path in files.values() for word in ("--attention-calibration", str(path))]
    arguments = ("--attention-capture-layers", "0,1", *flags, "--", *TWO_LAYERS)
    with served(tmp_path_factory.mktemp("engine"), *arguments) as running:
        yield running


def answer(server: Server, prompt: str, **fields: Any) -> dict[str, Any]:
    return server.chat(prompt, max_tokens=TOKENS, ignore_eos=True, **fields)


def library(files: dict[str, Path], name: str, entries: list[dict[str, Any]], threshold: float) -> list[Any]:
    """The decisions of each token, from what entries say."""
    detector = registry.create(name, calibration=load(files[name]))
    firewall = Firewall(detector, WARN_SHARE * threshold, threshold, load(files[name]).about.consecutive)
    watched = firewall.watch()
    return [firewall.check([watched], of_entries([entry]))[0] for entry in entries]


@pytest.mark.parametrize("name", ["logprob", "rauq", "heads", "received"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_scores_and_decisions_are_the_librarys(server: Server, files: dict[str, Path], name: str, prompt: str) -> None:
    asked = {"action": "log_only", "detector": name}
    seen = RAW if name == "received" else ASK
    entries = answer(server, prompt, **seen, attention_firewall=asked, temperature=0.8)["attention_tokens"]
    assert len(entries) == TOKENS
    scored = 0
    for entry, decision in zip(entries, library(files, name, entries, 0.9), strict=True):
        found = entry["firewall"]
        score = None if decision.score is None else float(f"{decision.score:.6g}")
        assert (found["detector"], found["status"], found["score"], found["halted"], found["calibrated"]) == (
            name, decision.status, score, decision.halted, True,
        )  # fmt: skip
        scored += score is not None
    assert scored >= TOKENS - 4


@pytest.mark.parametrize("name", ["logprob", "rauq", "heads"])
def test_an_answer_ends_with_the_token_that_halts(server: Server, files: dict[str, Path], name: str) -> None:
    whole = answer(server, PROMPTS[0], **ASK, attention_firewall={"action": "log_only", "detector": name})
    scores = [entry["firewall"]["score"] for entry in whole["attention_tokens"]]
    level = sorted(score for score in scores if score is not None)[len(scores) // 2]
    decisions = library(files, name, whole["attention_tokens"], level)
    at = next(n for n, one in enumerate(decisions, 1) if one.status == HALT)
    ended = answer(server, PROMPTS[0], attention_firewall={"detector": name, "threshold": level})
    assert ended["choices"][0]["matched_stop"] == "attention_drift"
    assert abs(ended["usage"]["completion_tokens"] - at) <= 1  # the prefix cache computes in another order
    assert "attention_tokens" not in ended


def test_links_are_captured_for_a_detector_whatever_entries_show(server: Server) -> None:
    watch = {"attention_firewall": {"action": "log_only", "detector": "received"}}
    many, few, none = (
        answer(server, PROMPTS[0], **asked, **watch)["attention_tokens"]
        for asked in (RAW, {**RAW, "top_k_attention": 3}, {**RAW, "top_k_attention": None, **ASK})
    )
    assert {len(entry["token_positions"]) for entry in few} == {3}
    assert not any("token_positions" in entry for entry in none)
    for other in (few, none):
        found, expected = ([entry["firewall"]["score"] for entry in entries] for entries in (other, many))
        assert found == pytest.approx(expected, rel=1e-3)  # the prefix cache computes in another order


def test_many_answers_with_other_detectors_side_by_side(server: Server, files: dict[str, Path]) -> None:
    names = ("logprob", "rauq", "heads", "compass", "received")

    def ask(n: int) -> bool:
        name = names[n % 5]
        watch = {"action": "log_only", "detector": name}
        more = ASK if n % 3 else {**ASK, "attention_head_stats": False, "attention_logit_stats": False}
        entries = answer(server, PROMPTS[n % 3], **more, attention_firewall=watch)["attention_tokens"]
        shown = [name in entry for entry in entries for name in ("head_stats", "logit_stats")]
        assert all(shown) if n % 3 else not any(shown)
        if name not in ("compass", "received") and n % 3:
            for entry, decision in zip(entries, library(files, name, entries, 0.9), strict=True):
                score = None if decision.score is None else float(f"{decision.score:.6g}")
                assert entry["firewall"]["score"] == score
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(30)))
    document = server.get("/v1/attention/capabilities")
    assert document["counters"]["errors"] == 0
    calibrated = {"compass": False, "logprob": True, "rauq": True, "heads": True, "received": True}
    assert document["detectors"] == calibrated


@pytest.mark.parametrize(("fields", "said"), [
    ({"attention_firewall": {"detector": "spectrum"}}, "attention_firewall.detector must be one of"),
    ({"attention_firewall": {"detector": "heads"}, "attention_capture_layer_ids": [1]}, "calibrated on all heads"),
    ({"attention_firewall": {"detector": "logprob", "window_size": 5}}, "window_size is of the detector compass"),
    ({"attention_firewall": {"detector": "logprob", "threshold": "high"}}, "threshold must be a number"),
    ({"attention_firewall": {"threshold": 1.5}}, "threshold must be a number above 0 and below 1"),
    ({"attention_firewall": {"threshold": 0.5, "variance_threshold": 0.5}}, "are one value"),
])  # fmt: skip
def test_what_cannot_be_meant_is_named(server: Server, fields: dict[str, Any], said: str) -> None:
    refused = server.post("/generate", {"text": "Hi", **fields})
    assert refused.status_code == 400
    assert said in refused.text
