"""Logit statistics are those of the model's own distribution, whatever the sampler does to the logits afterwards."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from geomcli.server_patch.logit_statistics import Logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("vocabulary", "around"), [(1000, 0.0), (152_064, 25.0)])
def test_they_equal_a_float64_reference(dtype: torch.dtype, vocabulary: int, around: float) -> None:
    torch.manual_seed(0)
    logits = (around + 4 * torch.randn(5, vocabulary)).to(dtype)
    tokens = torch.tensor([3, 7, 999, 0, 500], dtype=torch.int32)
    kept, before = Logits([0, 2, 3]), logits.clone().double()
    kept.read(logits)
    logits.div_(3).add_(1)  # as the sampler does
    kept.finish(tokens)
    assert kept.found is not None
    found = kept.found.numpy()
    assert found.shape == (1, 5, 3)
    assert np.isnan(found[0, [1, 4]]).all()
    p = before.softmax(-1)
    for row in (0, 2, 3):
        top = before[row].sort(descending=True).values
        expected = (
            p[row, tokens[row]].log().item(), -(p[row] * p[row].log2()).sum().item(), (top[0] - top[1]).item()
        )  # fmt: skip
        np.testing.assert_allclose(found[0, row], expected, atol=2e-5)


def test_tokens_that_cannot_be_chosen_and_ones_that_must() -> None:
    logits = torch.full((2, 50), -math.inf)
    logits[0, 3] = 0.0
    logits[1, :2] = 5.0
    kept = Logits([0, 1])
    kept.read(logits)
    kept.finish(torch.tensor([3, 1]))
    assert kept.found is not None
    found = kept.found[0].tolist()
    assert found[0][:2] == [0.0, 0.0]
    assert found[1] == pytest.approx([-math.log(2), 1.0, 0.0], abs=1e-6)


@pytest.mark.parametrize("logit", [math.nan, math.inf])
def test_of_a_row_that_is_broken_nothing_is_said(logit: float) -> None:
    logits = torch.randn(2, 50)
    logits[0, 5] = logit
    kept = Logits([0, 1])
    kept.read(logits)
    kept.finish(torch.tensor([5, 5]))
    assert kept.found is not None
    assert kept.found[0].isfinite().all(dim=1).tolist() == [False, True]


def test_a_step_that_was_not_read_has_nothing() -> None:
    kept = Logits([0])
    kept.finish(torch.tensor([1]))
    assert kept.found is None


def test_the_sampler_is_not_held_up() -> None:
    """On the meta device, where a tensor has no value that the host could wait for."""
    kept = Logits([1, 2])
    kept.read(torch.empty(3, 50, device="meta"))
    kept.finish(torch.empty(3, dtype=torch.int64, device="meta"))
    assert kept.found is not None
    assert (kept.found.device.type, kept.found.shape) == ("meta", (1, 3, 3))
