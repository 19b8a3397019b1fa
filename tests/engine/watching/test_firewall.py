"""The firewall in the real engine decides as the library does on the same fingerprints, and ends answers there."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from geomcli.compass import HALT
from geomcli.firewall import ManifoldFirewall
from tests.engine.harness import Server, chat_body, sse

PROMPTS = ("Tell a long story of the sea.", "List ten animals.", "What is 12 + 30?")
TOKENS = 60
ASK = {"return_attention_tokens": True, "attention_fingerprint_mode": True}


def answer(server: Server, prompt: str, **fields: Any) -> dict[str, Any]:
    return server.chat(prompt, max_tokens=TOKENS, ignore_eos=True, **fields)


def texts(server: Server, prompt: str, **fields: Any) -> str:
    return str(answer(server, prompt, **fields)["choices"][0]["message"]["content"])


def fingerprints(found: dict[str, Any]) -> list[list[float]]:
    return [entry["fingerprint"] for entry in found["attention_tokens"]]


def halting(server: Server, prompt: str) -> tuple[float, int, dict[str, Any]]:
    """A threshold that the answer to a prompt halts at, the step at which the library says so, and the answer."""
    whole = answer(server, prompt, **ASK)
    drifts = [entry["drift"] for entry in whole["attention_tokens"] if entry["drift"] is not None]
    threshold = sorted(drifts)[len(drifts) // 2]
    firewall = ManifoldFirewall(variance_threshold=threshold)
    statuses = [firewall.check(one) for one in fingerprints(whole)]
    return threshold, statuses.index(HALT) + 1, whole


@pytest.mark.parametrize("prompt", PROMPTS)
def test_it_stops_where_the_library_halts(server: Server, prompt: str) -> None:
    threshold, at, whole = halting(server, prompt)
    for action, reason in (("early_stop", "attention_drift"), ("re_route", "attention_reroute")):
        found = answer(server, prompt, **ASK, attention_firewall={"action": action, "variance_threshold": threshold})
        choice = found["choices"][0]
        assert (choice["finish_reason"], choice["matched_stop"]) == ("stop", reason)
        assert found["usage"]["completion_tokens"] == at == len(found["attention_tokens"])
        assert whole["choices"][0]["message"]["content"].startswith(choice["message"]["content"])
        last = found["attention_tokens"][-1]["firewall"]
        assert (last["action"], last["status"], last["halted"]) == (action, "HALT", True)
        # A prompt that lies in the prefix cache is computed in another order.
        np.testing.assert_allclose(fingerprints(found), fingerprints(whole)[:at], atol=1e-5)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_log_only_changes_no_token_and_decides_as_the_library(server: Server, prompt: str) -> None:
    threshold, at, whole = halting(server, prompt)
    asked = {"action": "log_only", "variance_threshold": threshold, "window_size": 10}
    found = answer(server, prompt, **ASK, attention_firewall=asked)
    assert found["choices"][0]["message"]["content"] == whole["choices"][0]["message"]["content"]
    assert found["usage"]["completion_tokens"] == TOKENS
    firewall = ManifoldFirewall(10, threshold, "log_only")
    for n, entry in enumerate(found["attention_tokens"], 1):
        status = firewall.check(entry["fingerprint"])
        decided = entry["firewall"]
        assert (decided["status"], decided["halted"]) == (status, n == at)
        assert decided["score"] == (None if firewall.drift is None else float(f"{firewall.drift:.6g}"))


def test_entries_need_not_be_asked_for(server: Server) -> None:
    threshold, at, _ = halting(server, PROMPTS[0])
    guard = {"action": "early_stop", "variance_threshold": threshold}
    found = answer(server, PROMPTS[0], attention_firewall=guard)
    assert "attention_tokens" not in found
    assert found["choices"][0]["matched_stop"] == "attention_drift"
    assert found["usage"]["completion_tokens"] == at


def test_no_limit_of_entries_blinds_it(server: Server) -> None:
    threshold, at, _ = halting(server, PROMPTS[0])
    guard = {"action": "early_stop", "variance_threshold": threshold}
    found = answer(server, PROMPTS[0], **ASK, attention_tokens_max=3, attention_firewall=guard)
    assert found["usage"]["completion_tokens"] == at
    assert [entry["flags"] for entry in found["attention_tokens"]][3:] == [["capture_stopped"]]


def test_many_answers_at_once_are_judged_each_by_itself(server: Server) -> None:
    cases = [(prompt, *halting(server, prompt)) for prompt in PROMPTS]

    def of(case: tuple[str, float, int, Any], guarded: bool) -> int:
        guard = {"attention_firewall": {"variance_threshold": case[1]}} if guarded else {}
        return int(answer(server, case[0], **ASK, **guard)["usage"]["completion_tokens"])

    with ThreadPoolExecutor(6) as pool:
        runs = [(case, guarded, pool.submit(of, case, guarded)) for case in cases for guarded in (True, False)]
        for case, guarded, run in runs:
            # A batch's sums are in another order: a drift near the threshold may fall on its other side.
            assert abs(run.result() - case[2]) <= 2 if guarded else run.result() == TOKENS


def test_streams_and_the_other_endpoints_say_so_too(server: Server) -> None:
    threshold, at, _ = halting(server, PROMPTS[0])
    guard = {"action": "early_stop", "variance_threshold": threshold}
    body = chat_body(PROMPTS[0], max_tokens=TOKENS, ignore_eos=True, stream=True, **ASK, attention_firewall=guard)
    events = sse(server.post("/v1/chat/completions", body))
    ends = [choice for event in events for choice in event["choices"] if choice["finish_reason"]]
    assert [(end["finish_reason"], end["matched_stop"]) for end in ends] == [("stop", "attention_drift")]
    assert sum(len(event.get("attention_tokens", ())) for event in events) == at
    sampling = {"max_new_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    low = {"variance_threshold": 0.001}
    made = server.post("/generate", {"text": "The sea", "sampling_params": sampling, "attention_firewall": low}).json()
    assert made["meta_info"]["finish_reason"] == {"type": "stop", "matched": "attention_drift"}
    assert made["meta_info"]["completion_tokens"] < TOKENS


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("stop", "attention_firewall must be"),
        ({"action": "stop"}, "attention_firewall.action"),
        ({"detector": "crystal"}, "attention_firewall.detector"),
        ({"window_size": 1}, "attention_firewall.window_size"),
        ({"window_size": 10.5}, "attention_firewall.window_size"),
        ({"variance_threshold": 1}, "attention_firewall.variance_threshold"),
        ({"variance_threshold": "low"}, "attention_firewall.variance_threshold"),
        ({"level": 0.5}, "attention_firewall.level"),
    ],
)
@pytest.mark.parametrize("asking", [True, False])
def test_what_cannot_be_is_named(server: Server, value: Any, named: str, asking: bool) -> None:
    body = chat_body("Hi", attention_firewall=value, **(ASK if asking else {}))
    response = server.post("/v1/chat/completions", body)
    assert response.status_code == 400
    assert named in response.text


def test_halts_are_counted_and_logged(server: Server) -> None:
    guard = {"action": "log_only", "variance_threshold": 0.001}
    before = _halts(server, "log_only")
    found = answer(server, PROMPTS[0], attention_firewall=guard)
    assert _halts(server, "log_only") == before + 1
    assert f"halts request {found['id']} at token" in server.log.read_text()


def _halts(server: Server, action: str) -> float:
    text = httpx.get(server.url + "/metrics").text
    lines = [line for line in text.splitlines() if line.startswith("geom_firewall_halts_total") and action in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)
