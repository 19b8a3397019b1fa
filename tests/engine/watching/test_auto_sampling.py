"""Zone-based sampling in the real engine: chosen as the library chooses, really sampled with, and of nobody else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from geomcli.zone_sampling import ZoneSampler
from geomcli.zones import ZONES_V1
from tests.engine.harness import Server, chat_body

TOKENS = 40
ASK = {"return_attention_tokens": True, "attention_fingerprint_mode": True}
AUTO = {"attention_auto_sampling": True}
HOT = 100.0  # of 49,152 tokens, each is about as likely
PROMPTS = ("Tell a long story of the sea.", "List ten animals.", "What is 12 + 30?")


def answer(server: Server, prompt: str = PROMPTS[0], **fields: Any) -> dict[str, Any]:
    found = server.chat(prompt, max_tokens=TOKENS, ignore_eos=True, logprobs=True, **fields)
    return dict(found["choices"][0], entries=found.get("attention_tokens"))


def check(entries: list[dict[str, Any]], temperature: float, top_p: float) -> int:
    """Each token was sampled as the library says by the zones before it; the first one that a zone chose for."""
    library, first = ZoneSampler(), TOKENS
    for n, entry in enumerate(entries):
        zone, of_zone, p = library.chosen
        own = of_zone is None
        expected = (temperature, top_p) if own else (of_zone, p)
        assert entry["sampling"] == {"zone": zone, "temperature": expected[0], "top_p": expected[1]}
        first = first if own else min(first, n)
        library.update(entry["zone"])
    return first


@pytest.mark.parametrize("prompt", PROMPTS)
def test_values_are_those_of_the_library_and_are_sampled_with(server: Server, prompt: str) -> None:
    found = answer(server, prompt, **ASK, **AUTO, temperature=HOT, top_p=0.99)
    assert len(found["entries"]) == TOKENS
    first = check(found["entries"], HOT, 0.99)
    assert 3 <= first < TOKENS
    logprobs = [token["logprob"] for token in found["logprobs"]["content"]]
    assert max(logprobs[:first]) < -9
    assert sum(logprobs[first:]) / (TOKENS - first) > -4


def test_what_asks_is_sampled_even_where_it_was_greedy(server: Server) -> None:
    first = check(answer(server, **ASK, **AUTO, temperature=0)["entries"], 0.0, 1.0)
    assert 3 <= first < TOKENS


def test_of_many_at_once_each_has_its_own(server: Server) -> None:
    """Greedy, hot, steered and stopped early, side by side: rows come and go."""
    alone = [answer(server, prompt, temperature=0)["message"]["content"] for prompt in PROMPTS]

    def ask(n: int) -> Any:
        prompt = PROMPTS[n % 3]
        if n % 4 == 0:
            return answer(server, prompt, temperature=0)["message"]["content"] == alone[n % 3]
        if n % 4 == 1:
            check(answer(server, prompt, **ASK, **AUTO, temperature=HOT)["entries"], HOT, 1.0)
        elif n % 4 == 2:
            found = answer(server, prompt, **ASK, **AUTO, temperature=0.9, top_p=0.5, top_k=3)
            check(found["entries"], 0.9, 0.5)
        else:
            server.chat(prompt, max_tokens=n, ignore_eos=True, **AUTO, temperature=0.4)
        return True

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(24))) == [True] * 24


def test_the_own_top_k_stays(server: Server) -> None:
    """Before a zone is known and afterwards, one of the two likeliest tokens: of a flat distribution, too."""
    found = answer(server, **ASK, **AUTO, temperature=HOT, top_k=2, top_logprobs=2)
    assert check(found["entries"], HOT, 1.0) < TOKENS
    for token in found["logprobs"]["content"]:
        assert token["logprob"] >= min(other["logprob"] for other in token["top_logprobs"]) - 1e-5


def test_a_limit_of_entries_does_not_end_it(server: Server) -> None:
    found = answer(server, **ASK, **AUTO, attention_tokens_max=6, temperature=HOT)
    assert "capture_stopped" in found["entries"][-1]["flags"]
    logprobs = [token["logprob"] for token in found["logprobs"]["content"]]
    assert sum(logprobs[10:]) / (TOKENS - 10) > -4


def test_without_entries(server: Server) -> None:
    found = answer(server, **AUTO, temperature=HOT)
    assert found["entries"] is None
    logprobs = [token["logprob"] for token in found["logprobs"]["content"]]
    assert sum(logprobs[20:]) / 20 > -4
    assert server.get("/v1/attention/capabilities")["counters"]["errors"] == 0


def test_beside_a_firewall_and_off(server: Server) -> None:
    asked = {"attention_firewall": {"action": "log_only"}}
    found = answer(server, **ASK, **AUTO, **asked, temperature=HOT)
    check(found["entries"], HOT, 1.0)
    assert all(entry["firewall"]["action"] == "log_only" for entry in found["entries"])
    off = server.chat(max_tokens=6, **ASK, attention_auto_sampling=False)
    assert not any("sampling" in entry for entry in off["attention_tokens"])
    refused = server.post("/v1/chat/completions", chat_body("Hi", attention_auto_sampling=1))
    assert refused.status_code == 400
    assert "attention_auto_sampling must be true or false" in refused.text


def test_temperatures_are_those_of_the_rules() -> None:
    library = ZoneSampler()
    for rule in ZONES_V1.rules:
        for _ in range(3):
            chosen = library.update(rule.zone)
        assert chosen == (rule.zone, rule.temperature, rule.top_p)
    assert library.update("diffuse").zone == "diffuse"
    assert [library.update("unknown").zone for _ in range(3)] == ["diffuse", "diffuse", "unknown"]
    assert library.chosen == ("unknown", None, None)
