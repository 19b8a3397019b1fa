"""Logit statistics against a float64 reference: splits, ties, what cannot be chosen, rows that are broken."""

from __future__ import annotations

import math

import pytest
import torch

from geomcli.kernels.logit_statistics import BLOCK, SPLIT, finish, read

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def found(logits: torch.Tensor, rows: list[int], tokens: list[int], kind: torch.dtype = torch.int32) -> torch.Tensor:
    logits = logits.to(DEVICE)
    kept = read(logits, torch.tensor(rows, device=DEVICE))
    logits.div_(3).add_(1)  # as a sampler does
    return finish(kept, torch.tensor(tokens, dtype=kind, device=DEVICE)).cpu()


def reference(row: torch.Tensor, token: int) -> list[float]:
    logprobs = row.double().log_softmax(-1)
    top = row.double().topk(2).values
    shares = (logprobs.exp() * logprobs).nan_to_num(nan=0.0)
    return [logprobs[token].item(), -shares.sum().item() / math.log(2), (top[0] - top[1]).item()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocabulary", [2, 999, BLOCK, SPLIT, SPLIT + 1, 3 * SPLIT + BLOCK + 7])
def test_they_equal_a_float64_reference(dtype: torch.dtype, vocabulary: int) -> None:
    torch.manual_seed(vocabulary)
    logits = (25 + 4 * torch.randn(5, vocabulary)).to(dtype)
    tokens = torch.randint(vocabulary, (5,)).tolist()
    made = found(logits.clone(), [0, 3, 4], tokens)
    assert made.shape == (5, 3)
    assert made[[1, 2]].isnan().all()
    for row in (0, 3, 4):
        torch.testing.assert_close(made[row].tolist(), reference(logits[row], tokens[row]), atol=3e-5, rtol=0)


@pytest.mark.parametrize(("first", "second"), [(3, 8), (3, BLOCK + 3), (SPLIT - 1, 2 * SPLIT)])
def test_the_second_of_two_that_are_alike_is_the_second_largest(first: int, second: int) -> None:
    logits = torch.randn(1, 2 * SPLIT + 5)
    logits[0, [first, second]] = 9.0
    assert found(logits.clone(), [0], [first])[0, 2] == 0
    logits[0, second] = 8.0
    assert found(logits, [0], [first])[0, 2] == 1


def test_tokens_that_cannot_be_chosen() -> None:
    logits = torch.full((2, 2 * SPLIT), -math.inf)
    logits[0, SPLIT + 5] = 2.0
    logits[1, [1, SPLIT + 1]] = 5.0
    made = found(logits, [0, 1], [SPLIT + 5, 1], torch.int64)
    assert made[0].tolist() == [0.0, 0.0, math.inf]
    assert made[1].tolist() == pytest.approx([-math.log(2), 1.0, 0.0], abs=1e-6)


@pytest.mark.parametrize("at", [5, SPLIT + 5])
@pytest.mark.parametrize("logit", [math.nan, math.inf])
def test_of_a_row_that_is_broken_nothing_is_said(logit: float, at: int) -> None:
    logits = torch.randn(2, 2 * SPLIT)
    logits[0, at] = logit
    assert found(logits, [0, 1], [7, 7]).isfinite().all(dim=1).tolist() == [False, True]


def test_a_part_of_a_wider_tensor_and_rows_in_any_order() -> None:
    wide = torch.randn(4, 2 * 3000)[:, ::2]
    made = found(wide.clone(memory_format=torch.preserve_format), [3, 1], [0, 10, 0, 20])
    for row, token in ((1, 10), (3, 20)):
        torch.testing.assert_close(made[row].tolist(), reference(wide[row], token), atol=3e-5, rtol=0)
