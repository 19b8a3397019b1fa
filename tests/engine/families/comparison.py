"""Every number of a tiny model's entries against transformers' eager attention of the same weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tests.engine import transformers_oracle as oracle
from tests.engine.families.tiny_models import LAYERS
from tests.engine.harness import Server
from tests.engine.test_oracle import SINKS, TOLERANCE, TOP_K, check_distribution, check_links, naive_histogram

TOKENS = 4


def ask(server: Server, prompts: list[list[int]], **fields: Any) -> list[dict[str, Any]]:
    """The answers to prompts of one batch."""
    sampling = {"max_new_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    body = {"input_ids": prompts, "sampling_params": sampling, "return_attention_tokens": True, **fields}
    response = server.post("/generate", body)
    assert response.status_code == 200, response.text
    return list(response.json())


def masks(length: int, prompt_len: int, window: int, decode_window: int) -> dict[str, Any]:
    """Additive masks [1, 1, length, length] by kind of layer: the rows of a prompt see `window` keys, those of
    generated tokens `decode_window`, the query's own among them."""
    import torch

    query, key = torch.arange(length)[:, None], torch.arange(length)
    size = torch.where(query < prompt_len, window, decode_window)
    causal = key <= query
    seen = {"full_attention": causal, "sliding_attention": causal & (key > query - size)}
    return {kind: torch.where(mask, 0.0, float("-inf"))[None, None] for kind, mask in seen.items()}


def largest_difference(
    folder: str, prompt: list[int], answer: dict[str, Any], windows: tuple[int, int] | None = None, **configuration: Any
) -> float:
    """Of any link, histogram, entropy, mass, head statistic or fingerprint of the answer to the oracle's.

    `windows`: of prefill and decode, where the engine's differ; `configuration` replaces values of the model's own.
    AssertionError where one is above the tolerance, or where the model would have written other tokens.
    """
    entries, output = answer["attention_tokens"], answer["output_ids"]
    assert [entry.get("token_id") for entry in entries] == output
    assert [entry["decode_step"] for entry in entries] == list(range(1, TOKENS + 1))
    ids = prompt + output[:-1]
    mask = None if windows is None else masks(len(ids), len(prompt), *windows)
    truth, greedy = oracle.forward(folder, ids, list(range(LAYERS)), len(prompt) - 1, masks=mask, **configuration)
    assert output == greedy
    worst = 0.0
    for i, entry in enumerate(entries):
        assert entry["flags"] == []
        query = len(prompt) - 1 + i
        assert entry["query_position"] == query
        rows = {n: truth[n][i][:, : query + 1] for n in range(LAYERS)}
        worst = max(worst, _fingerprint(entry, rows, query))
        for n in range(LAYERS):
            if entry["mode"] == "raw":
                worst = max(worst, check_links(entry["layers"][str(n)], rows[n]))
                worst = max(worst, check_distribution(entry["layers"][str(n)], rows[n], query))
                worst = max(worst, _head_statistics(entry["head_stats"][str(n)], rows[n], len(prompt)))
            elif entry["mode"] == "sketch":
                worst = max(worst, _sketch(entry["layer_sketches"][str(n)], rows[n], query))
    return worst


def _bounded(*differences: Any) -> float:
    worst = max(float(np.abs(np.asarray(d)).max()) for d in differences)
    assert worst <= TOLERANCE, worst
    return worst


def _fingerprint(entry: dict[str, Any], rows: dict[int, Any], query: int) -> float:
    """The mean over layers, which all have the same number of heads and some mass that is no sink's."""
    histogram = np.mean([naive_histogram(of_layer.mean(axis=0), query) for of_layer in rows.values()], axis=0)
    bands = [histogram[:3].sum(), histogram[3:8].sum(), histogram[8:].sum()]
    entropy = -math.fsum(p * math.log(p) for p in histogram if p > 0) / math.log(16)
    return _bounded(np.array(entry["fingerprint"]) - [*bands, entropy, *histogram])


def _head_statistics(found: dict[str, list[float]], rows: Any, prompt_len: int) -> float:
    seen = (rows > 0).any(axis=0)  # a sliding window hides the others
    prompt, generated = (
        part.sum(axis=1) / max(int(there.sum()), 1)
        for part, there in ((rows[:, :prompt_len], seen[:prompt_len]), (rows[:, prompt_len:], seen[prompt_len:]))
    )
    expected = {
        "entropy": [-math.fsum(p * math.log2(p) for p in row if p > 0) for row in rows],
        "sink": rows[:, :SINKS].sum(axis=1),
        "prev": rows[:, -2],
        "lookback": prompt / (prompt + generated),
    }
    return _bounded(*(np.array(found[name]) - values for name, values in expected.items()))


def _sketch(found: dict[str, Any], rows: Any, query: int) -> float:
    mean = rows.mean(axis=0)
    positions = [position for position, _ in found["top_hubs"]]
    entropy = math.fsum(-p * math.log2(p) for row in rows for p in row if p > 0) / len(rows)
    return _bounded(
        [p - mean[position] for position, p in found["top_hubs"]],
        found["mass_captured"] - mean[positions].sum(),
        np.array(found["dist_hist"]) - naive_histogram(mean, query),
        found["entropy"] - entropy,
        found["sink_mass"] - mean[:SINKS].sum(),
    )


__all__ = ["TOLERANCE", "TOP_K", "ask", "largest_difference"]
