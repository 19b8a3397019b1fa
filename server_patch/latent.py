"""Latent attention (MLA): queries of a prompt without a cached prefix, brought into the width of the pool's keys.

Such a prompt goes through an attention module of its own, over keys that were multiplied out of the latent ones. The
same scores come from the latent keys when the query takes that factor instead: q · (W k) = (Wᵀ q) · k, which is what
decode does with its queries.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


class PrefillAttention(NamedTuple):
    """The second attention of a captured layer, and the layer's place among the captured ones."""

    place: int
    parent: Any  # the model's attention layer, which holds the factor

    def latent_queries(self, queries: torch.Tensor) -> torch.Tensor:
        """[n, H, nope + rope] -> [n, H, lora + rope]; TypeError for a factor of eight bits."""
        factor = self.parent.w_kc  # [H, nope, lora]
        if factor.dtype != queries.dtype:
            raise TypeError(f"the factor of latent attention is {factor.dtype}, the queries are {queries.dtype}")
        without, rotated = queries[..., : factor.shape[1]], queries[..., factor.shape[1] :]
        latent = torch.bmm(without.transpose(0, 1), factor).transpose(0, 1)
        return torch.cat([latent, rotated], dim=-1)


def prefill_attentions(model: Any, places: dict[int, int]) -> dict[int, PrefillAttention]:
    """By id of the module that attends in a prefill; `places`: captured layers by id of the module that decodes."""
    found = {}
    for parent in model.modules():
        decoding, prefilling = getattr(parent, "attn_mqa", None), getattr(parent, "attn_mha", None)
        if prefilling is not None and id(decoding) in places:
            found[id(prefilling)] = PrefillAttention(places[id(decoding)], parent)
    return found
