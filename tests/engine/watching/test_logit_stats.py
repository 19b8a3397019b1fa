"""Logit statistics of the real engine: SGLang's own logprobs where those are of the same distribution."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from tests.engine.harness import Server, chat_body, sse

TOKENS, VOCABULARY = 12, 49_152
ASK = {"return_attention_tokens": True, "attention_fingerprint_mode": True, "attention_logit_stats": True}
PROMPTS = ("Tell a long story of the sea.", "List ten animals.", "What is 12 + 30?", "Hi")


def answer(server: Server, prompt: str = PROMPTS[0], **fields: Any) -> tuple[list[dict[str, float]], list[Any], str]:
    """Statistics, SGLang's logprobs, text."""
    asked = {**ASK, "max_tokens": TOKENS, "ignore_eos": True, "logprobs": True, "top_logprobs": 20, **fields}
    found = server.chat(prompt, **asked)
    choice = found["choices"][0]
    statistics = [entry["logit_stats"] for entry in found["attention_tokens"]]
    return statistics, choice["logprobs"]["content"], choice["message"]["content"]


def generate(server: Server, **body: Any) -> dict[str, Any]:
    response = server.post("/generate", body)
    assert response.status_code == 200, response.text[:1000]
    return dict(response.json())


def check(statistics: list[dict[str, float]], logprobs: list[Any]) -> None:
    assert len(statistics) == len(logprobs) == TOKENS
    for mine, theirs in zip(statistics, logprobs, strict=True):
        assert mine["logprob"] == pytest.approx(theirs["logprob"], abs=1e-4)
        top = sorted((one["logprob"] for one in theirs["top_logprobs"]), reverse=True)
        assert mine["margin"] == pytest.approx(top[0] - top[1], abs=1e-4)
        # What 20 of the tokens have of the entropy, and what the others have at most.
        rest = max(0.0, 1 - sum(map(math.exp, top)))
        least = -sum(math.exp(p) * p for p in top) / math.log(2)
        most = least - (rest * math.log2(rest / (VOCABULARY - 20)) if rest > 0 else 0)
        assert least - 1e-3 <= mine["entropy_bits"] <= most + 1e-3


@pytest.mark.parametrize("temperature", [0, 1])
def test_they_are_sglangs_own_logprobs(server: Server, temperature: float) -> None:
    for prompt in PROMPTS:
        check(*answer(server, prompt, temperature=temperature)[:2])


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1.0},
        {"temperature": 0.3, "top_p": 0.4},
        {"temperature": 1.5, "top_k": 20, "min_p": 0.01},
        {"temperature": 0, "frequency_penalty": 1.5, "presence_penalty": 1.0},
        {"temperature": 1.0, "repetition_penalty": 1.5, "min_new_tokens": 4},
        {"temperature": 0, "logit_bias": {"6": 100}},
        {"temperature": 0, "regex": "[0-9]+"},
    ],
    ids=" ".join,
)
def test_whatever_sampling_does_they_are_of_the_models_own_distribution(
    server: Server, sampling: dict[str, Any]
) -> None:
    """Which is what SGLang says of the same tokens as a prompt: all of it, summed up here in float64."""
    prompt, n = list(range(400, 420)), 4
    asked = {"max_new_tokens": n, "ignore_eos": True, **sampling}
    entries = generate(server, input_ids=prompt, sampling_params=asked, **ASK)["attention_tokens"]
    tokens = [entry["token_id"] for entry in entries]
    whole = generate(
        server, input_ids=[*prompt, *tokens], sampling_params={"max_new_tokens": 1, "temperature": 0},
        return_logprob=True, logprob_start_len=len(prompt) - 1, top_logprobs_num=VOCABULARY,
    )["meta_info"]  # fmt: skip
    of_tokens = whole["input_token_logprobs"][-n:]
    assert [one[1] for one in of_tokens] == tokens
    for entry, of_token, every in zip(entries, of_tokens, whole["input_top_logprobs"][-n:], strict=True):
        logprobs = np.array([one[0] for one in every], dtype=np.float64)
        assert len(logprobs) == VOCABULARY
        top = np.sort(logprobs)[-2:]
        expected = {
            "logprob": of_token[0],
            "entropy_bits": -(np.exp(logprobs) * logprobs).sum() / math.log(2),
            "margin": top[1] - top[0],
        }
        assert entry["logit_stats"] == pytest.approx(expected, abs=1e-4)
    if "logit_bias" in sampling:
        assert tokens == [6] * n
        assert entries[0]["logit_stats"]["logprob"] < -5  # what it would not have written


def test_answers_that_are_given_up_leave_nothing_behind(server: Server) -> None:
    alone = [answer(server, prompt, temperature=0)[0] for prompt in PROMPTS]

    def give_up(n: int) -> None:
        body = chat_body(PROMPTS[n % 4], max_tokens=400, ignore_eos=True, stream=True, **ASK)
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as response:
            for _ in zip(range(n), response.iter_lines(), strict=False):
                pass

    with ThreadPoolExecutor(8) as pool:
        given_up = [pool.submit(give_up, n) for n in range(4, 12)]
        for prompt, expected in zip(PROMPTS, alone, strict=True):
            statistics, logprobs, _ = answer(server, prompt, temperature=0)
            check(statistics, logprobs)
            for found, before in zip(statistics, expected, strict=True):
                assert found == pytest.approx(before, abs=1e-3)
        for one in given_up:
            one.result()
    check(*answer(server, temperature=0)[:2])
    assert server.get("/v1/attention/capabilities")["counters"]["errors"] == 0


def test_many_at_once_with_and_without(server: Server) -> None:
    alone = [answer(server, prompt, temperature=0)[0] for prompt in PROMPTS]

    def ask(n: int) -> bool:
        prompt = PROMPTS[n % 4]
        if n % 3 == 0:
            found = server.chat(prompt, max_tokens=n, **{**ASK, "attention_logit_stats": False})
            return not any("logit_stats" in entry for entry in found["attention_tokens"])
        statistics, logprobs, _ = answer(server, prompt, temperature=0)
        check(statistics, logprobs)
        return all(
            a[name] == pytest.approx(b[name], abs=1e-3)
            for a, b in zip(statistics, alone[n % 4], strict=True)
            for name in a
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(1, 25)))
    assert server.get("/v1/attention/capabilities")["counters"]["errors"] == 0


def test_streams_choices_and_strides(server: Server) -> None:
    body = {
        "model": "smollm2", "prompt": "The sea is", "max_tokens": 8, "n": 2, "temperature": 1, "stream": True, **ASK,
        "attention_tokens_stride": 2,
    }  # fmt: skip
    events = sse(server.post("/v1/completions", body))
    entries = [entry for event in events for entry in event.get("attention_tokens", ())]
    assert {(entry["index"], entry["decode_step"]) for entry in entries} == {
        (i, n) for i in (0, 1) for n in (1, 3, 5, 7)
    }
    assert all(entry["logit_stats"]["logprob"] <= 0 for entry in entries)
    assert all(entry["bytes"] == 92 for entry in entries)


def test_what_cannot_be_asked_for_is_named(server: Server) -> None:
    fields = {"attention_fingerprint_only": True, "return_attention_tokens": True, "attention_logit_stats": True}
    refused = server.post("/generate", {"text": "Hi", **fields})
    assert refused.status_code == 400
    assert "attention_logit_stats asks for more than fingerprints" in json.dumps(refused.json())
    assert server.get("/v1/attention/capabilities")["features"]["logit_stats"] is True
