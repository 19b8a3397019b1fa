"""A server's own firewall watches every answer, asked for or not, and no request can make it less strict."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import GEOM
from tests.engine.harness import TWO_LAYERS, Server, chat_body, served
from tests.engine.watching.test_firewall import ASK, PROMPTS, TOKENS, answer

SERVER_THRESHOLD = 0.02


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    threshold = ("--attention-firewall-threshold", str(SERVER_THRESHOLD), "--attention-mask-system-prompt")
    with served(
        tmp_path_factory.mktemp("strict"), "--attention-firewall", "early_stop", *threshold, "--", *TWO_LAYERS
    ) as running:
        yield running


def test_a_server_watches_who_did_not_ask(strict: Server) -> None:
    """As it watches who did, system prompts masked."""
    document = strict.get("/v1/attention/capabilities")
    assert document["firewall"] == {
        "action": "early_stop", "window_size": 10, "variance_threshold": SERVER_THRESHOLD, "detector": "compass",
        "consecutive": 2, "calibrated": False,
    }  # fmt: skip
    assert document["features"]["firewall"] is True
    asked = answer(strict, PROMPTS[0], **ASK)
    silent = answer(strict, PROMPTS[0])
    for found in (asked, silent):
        assert found["choices"][0]["matched_stop"] == "attention_drift"
    assert asked["usage"]["completion_tokens"] == silent["usage"]["completion_tokens"] < TOKENS
    assert "attention_tokens" not in silent
    assert asked["attention_tokens"][-1]["firewall"]["halted"] is True
    counted = strict.get("/v1/attention/capabilities")["counters"]
    assert (counted["requests"], counted["active_captures"]) == (1, 0)
    plain = strict.post("/generate", {"text": ["The sea", "A cat"], "sampling_params": {"max_new_tokens": 4}})
    assert [len(one["output_ids"]) for one in plain.json()] == [4, 4]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"attention_firewall": False}, "attention_firewall: this server watches every answer"),
        ({"attention_firewall": {"action": "log_only"}}, "attention_firewall.action"),
        ({"attention_firewall": {"variance_threshold": 0.5}}, "attention_firewall.variance_threshold"),
        ({"attention_firewall": {"window_size": 100}}, "attention_firewall.window_size"),
        ({"attention_tokens_stride": 50}, "attention_tokens_stride"),
        ({"attention_mask_prefix": 100}, "attention_mask_prefix"),
        ({"attention_capture_head_ids": [0]}, "attention_capture_head_ids"),
        ({"attention_tokens_window": 8}, "attention_tokens_window"),
    ],
)
def test_a_request_cannot_be_less_strict(strict: Server, fields: dict[str, Any], named: str) -> None:
    response = strict.post("/v1/chat/completions", chat_body("Hi", **ASK, **fields))
    assert response.status_code == 400
    assert named in response.text
    tightened = {"action": "re_route", "variance_threshold": SERVER_THRESHOLD / 2}
    found = answer(strict, PROMPTS[0], attention_firewall=tightened)
    assert found["choices"][0]["matched_stop"] == "attention_reroute"


def run(server: Server, db: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [GEOM, "run", PROMPTS[0], "--max-tokens", str(TOKENS), "--base-url", server.url, "--db", db, *arguments]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_geom_run_asks_for_it_says_what_came_of_it_and_keeps_it(strict: Server, tmp_path: Path) -> None:
    db = tmp_path / "traces.db"
    done = run(strict, db, "--firewall", "reroute")
    assert done.returncode == 0, done.stderr
    exported = subprocess.run(
        [GEOM, "traces", "export", "last", "--db", db], capture_output=True, text=True, check=True
    )
    kept = [json.loads(line) for line in exported.stdout.splitlines()]
    steps = [record for record in kept if record["record_type"] == "step"]
    halted = [step["firewall"]["halted"] for step in steps]
    assert halted == [False] * (len(steps) - 1) + [True]
    assert f"HALT at token {len(steps)} " in done.stderr
    assert kept[-1]["matchedStop"] == "attention_reroute"
    refused = run(strict, db, "--firewall", "log")
    assert refused.returncode == 2
    assert "--attention-firewall early_stop" in refused.stderr
    wrong = run(strict, db, "--firewall", "pause")
    assert wrong.returncode == 2
    assert "--firewall must be stop, log, reroute" in wrong.stderr
