"""What is said about an engine whose attention is not the model's, and latent queries of a prefill."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from geomcli.server_patch.deviations import deviations
from geomcli.server_patch.latent import prefill_attentions
from tests.library.test_graph_safety import RadixAttention

NATIVE, TRITON, FA3 = ["torch_native"] * 2, ["triton"] * 2, ["fa3"] * 2


def model(window: int | None = -1, cap: float = 0.0) -> Any:
    attention = RadixAttention(0)
    attention.sliding_window_size, attention.logit_cap = window, cap  # type: ignore[assignment]
    return torch.nn.ModuleList([attention])


@pytest.mark.parametrize(
    ("module", "config", "backends", "said"),
    [
        (model(), {}, NATIVE, []),
        (model(), {"sliding_window": 16}, TRITON, ["leaves out this model's sliding window of 16"]),
        (model(None), {"sliding_window": 16}, NATIVE, ["leaves out this model's sliding window of 16"]),
        (model(), {"sliding_window": 4096}, NATIVE, []),  # longer than the context
        (model(), {"sliding_window": 16, "use_sliding_window": False}, NATIVE, []),
        (model(), {"sliding_window": 16, "layer_types": ["full_attention"]}, NATIVE, []),
        (model(15), {"sliding_window": 16}, NATIVE, []),
        (model(15), {"sliding_window": 16}, FA3, []),
        (model(15), {"sliding_window": 16}, TRITON, ["one key less"]),
        (model(cap=50.0), {}, NATIVE, ["soft-cap of attention scores (50)"]),
        (model(cap=50.0), {}, TRITON, []),
    ],
)
def test_deviations(module: Any, config: dict[str, Any], backends: list[str], said: list[str]) -> None:
    found = deviations(module, SimpleNamespace(**config), backends, 1024)
    assert len(found) == len(said)
    assert all(part in sentence for sentence, part in zip(found, said, strict=True))


class Latent(torch.nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.attn_mqa, self.attn_mha = RadixAttention(2), RadixAttention(2)
        self.w_kc = torch.randn(3, 4, 16).to(dtype)  # heads, without rotation, latent


def test_latent_queries_give_the_scores_of_the_keys_that_were_multiplied_out() -> None:
    parent = Latent()
    (attention,) = prefill_attentions(torch.nn.ModuleList([parent]), {id(parent.attn_mqa): 5}).values()
    assert attention.place == 5
    queries, latent, rotated = torch.randn(2, 3, 4 + 6), torch.randn(9, 16), torch.randn(9, 6)
    keys = torch.cat([torch.einsum("hnl,sl->shn", parent.w_kc, latent), rotated[:, None].expand(9, 3, 6)], -1)
    expected = torch.einsum("qhd,shd->qhs", queries, keys)
    found = torch.einsum("qhd,sd->qhs", attention.latent_queries(queries), torch.cat([latent, rotated], -1))
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_factor_of_another_type_and_layers_that_are_not_captured() -> None:
    parent = Latent(torch.float8_e4m3fn)
    (attention,) = prefill_attentions(torch.nn.ModuleList([parent]), {id(parent.attn_mqa): 0}).values()
    with pytest.raises(TypeError, match="float8"):
        attention.latent_queries(torch.randn(1, 3, 10))
    assert prefill_attentions(torch.nn.ModuleList([parent]), {}) == {}
