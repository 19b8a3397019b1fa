"""Entries stay complete and exact however the scheduler cuts and reorders the work."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from geomcli import models
from tests.engine import transformers_oracle as oracle
from tests.engine.harness import TWO_LAYERS, Server, sse, started_directly

ASK = {"return_attention_tokens": True, "top_k_attention": 8, "attention_logit_stats": True}
SHARED = "The harbour log of the northern sea lists ships, their masters and all that they ever carried. " * 8
PROMPTS = [SHARED + f"Entry number {n}:" for n in range(4)] + ["Short", "Two words", SHARED[:300]]
TOKENS = 40

CONFIGURATIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...], dict[str, str]]] = {
    "overlap, chunked prefill, retraction": (
        ("--chunked-prefill-size", "64"),
        ("--disable-overlap-schedule",),
        {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "7"},
    ),
    "mixed chunks, incremental output every third token": (
        ("--enable-mixed-chunk", "--chunked-prefill-size", "64", "--incremental-streaming-output",
         "--stream-interval", "3"),
        (),
        {},
    ),
}  # fmt: skip


def ask(server: Server, prompt: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    sampling = {"max_new_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    body = {"text": prompt, "sampling_params": sampling, "stream": True, **ASK}
    events = sse(server.post("/generate", body))
    return [entry for event in events for entry in event["attention_tokens"]], events[-1]["meta_info"]


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_entries_are_complete_and_exact(tmp_path: Path, name: str) -> None:
    extra, without, environment = CONFIGURATIONS[name]
    folder = str(models.path_of("smollm2"))
    tokenizer, _ = oracle.load(folder, 2)
    with started_directly(
        tmp_path / "e", "--", *TWO_LAYERS, *extra, without=without, environment=environment
    ) as server:
        with ThreadPoolExecutor(len(PROMPTS)) as pool:
            answers = list(pool.map(lambda prompt: ask(server, prompt), PROMPTS))
        document = server.get("/v1/attention/capabilities")
    if "retraction" in name:
        assert sum(meta["num_retractions"] for _, meta in answers) > 0, "nothing was retracted"
    assert document["counters"]["errors"] == 0
    for prompt, (entries, _) in zip(PROMPTS, answers, strict=True):
        ids = tokenizer.encode(prompt)
        assert [e["decode_step"] for e in entries] == list(range(1, TOKENS + 1))
        assert {e["prompt_len"] for e in entries} == {len(ids)}
        output = [e["token_id"] for e in entries]
        found, greedy = oracle.forward(folder, ids + output[:-1], [1], len(ids) - 1, depth=2)
        assert output == greedy
        sure = oracle.logit_statistics(folder, ids + output, len(ids) - 1, depth=2)
        for i, entry in enumerate(entries):
            assert entry["logit_stats"] == pytest.approx(sure[i], abs=1e-4)
            mean = found[1][i][:, : entry["query_position"] + 1].mean(axis=0)
            for n, logit in zip(entry["token_positions"], entry["topk_logits"], strict=True):
                assert abs(math.exp(logit - entry["logsumexp_candidates"]) - mean[n]) <= 1e-5
