"""Logit statistics are those of the model's own distribution, whatever the sampler does to the logits afterwards."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from geomcli.server_patch.logit_statistics import Logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_equal_a_float64_reference(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = (4 * torch.randn(5, 1000)).to(dtype)
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


def test_a_step_that_was_not_read_has_nothing() -> None:
    kept = Logits([0])
    kept.finish(torch.tensor([1]))
    assert kept.found is None
