"""The torch reference against a dense float64 computation in numpy, and the privacy law of masked keys."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from geomcli.fingerprint import distance_histogram
from geomcli.kernels.reference import attention_logits, row_statistics

SHAPES = {"MHA": (8, 8), "GQA": (9, 3), "MQA": (6, 1)}


def dense(
    q: Any, k: Any, scale: float, *, cap: float = 0.0, sinks: Any = None, first: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [H, n] and log normalisers [H] in float64, head by head."""
    q, k = q.double().numpy(), k.double().numpy()[first:]
    group = q.shape[0] // k.shape[1]
    rows, norms = [], []
    for head in range(q.shape[0]):
        s = k[:, head // group] @ q[head] * scale
        s = cap * np.tanh(s / cap) if cap else s
        extra = [] if sinks is None else [float(sinks[head])]
        top = max(s.max(), *extra) if extra else s.max()
        lse = top + math.log(np.exp(s - top).sum() + sum(math.exp(x - top) for x in extra))
        rows.append(np.exp(s - lse))
        norms.append(lse)
    return np.array(rows), np.array(norms)


def random_row(shape: str, length: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Any, Any]:
    heads, kv = SHAPES[shape]
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(heads, 64, generator=generator)
    k = torch.randn(length, kv, 64, generator=generator)
    return q.to(dtype), k.to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("length", [1, 2, 5, 17, 600, 40_000])
@pytest.mark.parametrize("variant", ["plain", "soft_cap", "sink_parameter", "first_key"])
def test_every_statistic_equals_the_dense_computation(shape: str, length: int, variant: str) -> None:
    q, k = random_row(shape, length)
    scale, m = 64**-0.5, length - 1
    cap = 5.0 if variant == "soft_cap" else 0.0
    sinks = torch.linspace(-1, 2, q.shape[0]) if variant == "sink_parameter" else None
    first = min(length // 3, m) if variant == "first_key" else 0
    p, lse = dense(q, k, scale, cap=cap, sinks=sinks, first=first)
    mean = p.mean(axis=0)
    found = row_statistics(
        attention_logits(q, k[first:], scale, cap),
        query_position=m, first_key=first, prompt_len=max(1, length // 2), top_k=16, head_statistics=True,
        sink_logits=sinks,
    )  # fmt: skip

    assert found.heads == q.shape[0]
    assert found.lse == pytest.approx(lse.mean(), abs=1e-5)
    entropy = [-math.fsum(x * math.log2(x) for x in row if x > 0) for row in p]
    weights = p.sum(axis=1)  # below 1 where a sink parameter takes its share
    exact = [
        h
        if sinks is None
        else float(lse[i] * weights[i] / math.log(2) - (p[i] * (np.log(p[i]) + lse[i])).sum() / math.log(2))
        for i, h in enumerate(entropy)
    ]
    assert found.entropy_bits == pytest.approx(np.mean(exact), abs=2e-5)
    n_sink = max(0, min(4 - first, len(mean)))
    assert found.sink_mass == pytest.approx(mean[:n_sink].sum(), abs=1e-5)
    expected = distance_histogram(mean, m, first_key=first)
    assert np.abs(found.histogram.numpy() - expected).max() <= 1e-5
    order = np.argsort(-mean)[:16]
    assert found.probabilities.numpy() == pytest.approx(mean[order], abs=1e-6)
    assert mean[found.positions.numpy() - first] == pytest.approx(found.probabilities.numpy(), abs=1e-6)
    assert found.probabilities.sum() <= 1 + 1e-6
    profile = mean[n_sink:][::-1][:256]
    assert found.profile.numpy() == pytest.approx(profile, abs=1e-6)
    heads = found.head_statistics
    assert heads is not None
    assert heads.prev.numpy() == pytest.approx(p[:, -2] if p.shape[1] > 1 else np.zeros(len(p)), abs=1e-6)
    n_prompt = max(0, min(max(1, length // 2) - first, p.shape[1]))
    prompt = p[:, :n_prompt].mean(axis=1) if n_prompt else np.zeros(len(p))
    generated = p[:, n_prompt:].mean(axis=1) if p.shape[1] > n_prompt else np.zeros(len(p))
    assert heads.lookback.numpy() == pytest.approx(prompt / (prompt + generated), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_keys_are_read_as_what_they_are(dtype: torch.dtype) -> None:
    q, k = random_row("GQA", 300, dtype)
    p, _ = dense(q.float(), k.float(), 0.125)
    found = row_statistics(attention_logits(q, k, 0.125), query_position=299, top_k=300)
    assert found.probabilities.numpy() == pytest.approx(np.sort(p.mean(axis=0))[::-1], abs=1e-6)


def test_softmax_comes_before_the_mean_over_heads() -> None:
    logits = torch.tensor([[10.0, 0.0, 0.0], [0.0, 10.0, 0.0]])
    found = row_statistics(logits, query_position=2, top_k=2)
    assert found.probabilities.tolist() == pytest.approx([0.5, 0.5], abs=1e-4)


def test_masked_keys_have_no_influence_bit_for_bit() -> None:
    q, k = random_row("GQA", 200)
    changed = k.clone()
    changed[:50] = torch.randn(50, 3, 64) * 100
    one, two = (
        row_statistics(
            attention_logits(q, keys[50:], 0.125), query_position=199, first_key=50, prompt_len=120, top_k=64,
            head_statistics=True,
        )
        for keys in (k, changed)
    )  # fmt: skip
    assert (one.lse, one.entropy_bits, one.sink_mass) == (two.lse, two.entropy_bits, two.sink_mass)
    for name in ("histogram", "positions", "probabilities", "profile"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    for name in ("entropy", "sink", "prev", "lookback"):
        assert torch.equal(getattr(one.head_statistics, name), getattr(two.head_statistics, name)), name
    assert one.positions.min() >= 50


def test_nothing_left_and_shapes_that_do_not_fit() -> None:
    empty = row_statistics(torch.empty(4, 0), query_position=9, first_key=10, top_k=8, head_statistics=True)
    assert empty.histogram.sum() == 0
    assert empty.positions.numel() == 0
    with pytest.raises(ValueError, match=r"positions 0\.\.9"):
        row_statistics(torch.zeros(4, 3), query_position=9)
    with pytest.raises(ValueError, match="cannot share"):
        attention_logits(torch.zeros(8, 4), torch.zeros(5, 3, 4), 1.0)
