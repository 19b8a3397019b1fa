"""Published attention against transformers' eager `output_attentions` of the same weights in float32.

The comparison numbers are computed here from scratch (loops over positions, no code of the product).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from geomcli import models
from tests.engine import transformers_oracle as oracle
from tests.engine.harness import Server, served

TOKENS = 34
TOP_K = 16
SINKS = 4
TOLERANCE = 1e-5
LAYERS = [7, 15, 22, 29]

_LONG = " ".join(
    f"Line {i}: the {colour} boat number {i * 7 % 31} left at {i % 12 + 1} o'clock with {i % 5 + 2} sailors on board."
    for i, colour in enumerate(["red", "green", "blue", "white", "black", "yellow"] * 5)
)
CONVERSATIONS: dict[str, Any] = {
    "short": [{"role": "user", "content": "What is the capital of France?"}],
    "multi_turn": [
        {"role": "system", "content": "You answer in one sentence."},
        {"role": "user", "content": "Name a fruit."},
        {"role": "assistant", "content": "An apple is a fruit."},
        {"role": "user", "content": "And which colour does it have?"},
    ],
    "long": [{"role": "user", "content": _LONG + "\nWhich boats left at noon?"}],
    "single_word": "Hello",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("oracle"), "--attention-capture-layers", "auto") as running:
        yield running


@pytest.fixture(scope="module")
def folder() -> str:
    return str(models.path_of("smollm2"))


def prompt_ids(folder: str, conversation: Any) -> list[int]:
    tokenizer, _ = oracle.load(folder)
    if isinstance(conversation, str):
        return list(tokenizer.encode(conversation))
    text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    return list(tokenizer.encode(text, add_special_tokens=False))


def ask(server: Server, conversation: Any, **fields: Any) -> list[dict[str, Any]]:
    body = {"model": "smollm2", "temperature": 0, "max_tokens": TOKENS, "ignore_eos": True, **fields}
    body |= {"return_attention_tokens": True, "top_k_attention": TOP_K}
    if isinstance(conversation, str):
        response = server.post("/v1/completions", {**body, "prompt": conversation})
    else:
        response = server.post("/v1/chat/completions", {**body, "messages": conversation})
    assert response.status_code == 200, response.text
    return list(response.json()["attention_tokens"])


def naive_histogram(row: Any, query_position: int) -> list[float]:
    histogram = [0.0] * 16
    for position, probability in enumerate(row):
        distance = query_position - position
        bin_ = 0 if distance < 2 else min(15, distance.bit_length() - 1)
        if position >= SINKS:
            histogram[bin_] += probability
    total = math.fsum(histogram)
    return [value / total for value in histogram] if total > 0 else histogram


def naive_entropy_bits(rows: Any) -> float:
    heads = [-math.fsum(p * math.log2(p) for p in row if p > 0) for row in rows]
    return math.fsum(heads) / len(heads)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_every_published_number_equals_the_oracle(server: Server, folder: str, name: str) -> None:
    ids = prompt_ids(folder, CONVERSATIONS[name])
    entries = ask(server, CONVERSATIONS[name])
    output = [entry["token_id"] for entry in entries]

    assert len(entries) == TOKENS
    if name == "long":
        assert len(ids) > 600
    truth, greedy = oracle.forward(folder, ids + output[:-1], LAYERS, len(ids) - 1)
    assert output == greedy

    worst = 0.0
    for i, entry in enumerate(entries):
        assert entry["decode_step"] == entry["step"] == i + 1
        assert entry["prompt_len"] == len(ids)
        assert entry["query_position"] == len(ids) + i - 1
        assert entry["layer_id"] == LAYERS[-1]
        assert entry["heads"] == {"seen": 9, "total": 9}
        assert list(entry["layers"]) == [str(layer) for layer in LAYERS]
        for layer in LAYERS:
            published = entry["layers"][str(layer)]
            rows = truth[layer][i][:, : entry["query_position"] + 1]
            worst = max(worst, check_links(published, rows))
            worst = max(worst, check_distribution(published, rows, entry["query_position"]))
        assert entry["token_positions"] == entry["layers"]["29"]["token_positions"]
        assert entry["topk_logits"] == entry["layers"]["29"]["topk_logits"]
    print(f"{name}: {len(ids)} prompt tokens, largest deviation {worst:.2e}")


def check_links(published: dict[str, Any], rows: Any) -> float:
    mean = rows.mean(axis=0)
    positions = published["token_positions"]
    true = [math.exp(logit - published["logsumexp_candidates"]) for logit in published["topk_logits"]]
    assert len(positions) == min(TOP_K, len(mean)) == len(set(positions))
    deviation = max(abs(p - mean[n]) for n, p in zip(positions, true, strict=True))
    assert deviation <= TOLERANCE
    left_out = np.delete(mean, positions)
    # Equal up to ties: nothing that was left out is larger than what was published.
    assert not left_out.size or left_out.max() <= mean[positions].min() + TOLERANCE
    assert true == sorted(true, reverse=True)
    assert abs(published["topk_mass"] - mean[positions].sum()) <= TOLERANCE
    scores = np.array(published["attention_scores"])
    assert abs(scores.sum() - 1) <= TOLERANCE
    assert np.abs(scores - mean[positions] / mean[positions].sum()).max() <= TOLERANCE
    return float(deviation)


def check_distribution(published: dict[str, Any], rows: Any, query_position: int) -> float:
    mean = rows.mean(axis=0)
    histogram = np.abs(np.array(published["fingerprint"][4:]) - naive_histogram(mean, query_position)).max()
    entropy = abs(published["entropy_bits"] - naive_entropy_bits(rows))
    sink = abs(published["sink_mass"] - mean[:SINKS].sum())
    assert histogram <= TOLERANCE
    assert entropy <= TOLERANCE
    assert sink <= TOLERANCE
    local, mid, long = published["fingerprint"][:3]
    assert abs(local + mid + long - sum(published["fingerprint"][4:])) <= TOLERANCE
    return float(max(histogram, entropy, sink))


def test_head_filter_window_and_mask_equal_the_oracle(server: Server, folder: str) -> None:
    conversation = CONVERSATIONS["multi_turn"]
    ids = prompt_ids(folder, conversation)
    heads, prefix, window = [1, 4, 8], 11, 20
    for fields, first, flag in (
        ({"attention_mask_prefix": prefix}, lambda _: prefix, "masked"),
        ({"attention_tokens_window": window}, lambda m: max(0, m + 1 - window), "window"),
    ):
        entries = ask(server, conversation, attention_capture_head_ids=heads, **fields)
        output = [entry["token_id"] for entry in entries]
        truth = oracle.forward(folder, ids + output[:-1], [29], len(ids) - 1)[0][29]
        for i, entry in enumerate(entries):
            m = entry["query_position"]
            rows = truth[i][heads, first(m) : m + 1]
            mean = (rows / rows.sum(axis=1, keepdims=True)).mean(axis=0)
            assert flag in entry["flags"]
            assert entry["heads"] == {"seen": 3, "total": 9}
            assert min(entry["token_positions"]) >= first(m)
            for n, logit in zip(entry["token_positions"], entry["topk_logits"], strict=True):
                assert abs(math.exp(logit - entry["logsumexp_candidates"]) - mean[n - first(m)]) <= TOLERANCE


def test_head_statistics_equal_the_oracle(server: Server, folder: str) -> None:
    conversation = CONVERSATIONS["short"]
    ids = prompt_ids(folder, conversation)
    entries = ask(server, conversation, attention_head_stats=True, attention_capture_layer_ids=[15])
    output = [entry["token_id"] for entry in entries]
    truth = oracle.forward(folder, ids + output[:-1], [15], len(ids) - 1)[0][15]
    for i, entry in enumerate(entries):
        rows = truth[i][:, : entry["query_position"] + 1]
        found = entry["head_stats"]["15"]
        generated = rows[:, len(ids) :].mean(axis=1) if i else np.zeros(9)
        prompt = rows[:, : len(ids)].mean(axis=1)
        expected = {
            "entropy": [-math.fsum(p * math.log2(p) for p in row if p > 0) for row in rows],
            "sink": rows[:, :SINKS].sum(axis=1),
            "prev": rows[:, -2],
            "lookback": prompt / (prompt + generated),
        }
        for statistic, values in expected.items():
            assert np.abs(np.array(found[statistic]) - values).max() <= 2e-5, statistic
