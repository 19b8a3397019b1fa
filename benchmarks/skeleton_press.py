"""The skeleton score as presses of kvpress (https://github.com/NVIDIA/kvpress), to be measured beside its own.

`SkeletonPress` chooses for each head of each layer, as kvpress' presses do; `UnionPress` has any scorer of kvpress, or
the skeleton of some layers, choose the same tokens for all heads and layers, as a server with one table of tokens a
request has to. Needs `pip install kvpress` in an environment of its own (it asks for transformers < 5.3) and this
package beside it (`pip install --no-deps .`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from kvpress import ScorerPress
from kvpress.presses.base_press import BasePress
from kvpress.utils import compute_n_kept, get_prerope_query_states
from transformers.models.llama.modeling_llama import rotate_half

from geomcli.eviction import scores
from geomcli.eviction.reference import WEIGHTS
from geomcli.eviction.retention import RECENT, SINKS, WINDOW
from geomcli.kernels.derotation import Rope

AHEAD = 1024  # positions behind the context of which the rotary table knows


def seen(module: Any, hidden: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, kwargs: Any) -> scores.Seen:
    """One layer of a context that has been read: hidden [1, S, hidden], keys and values [1, K, S, D]."""
    n = keys.shape[2]
    queries = get_prerope_query_states(module, hidden[:, -WINDOW:])
    cos, sin = (part[:, -WINDOW:].unsqueeze(1) for part in kwargs["position_embeddings"])
    queries = queries * cos + rotate_half(queries) * sin
    table = torch.cat([part[0, :, : part.shape[-1] // 2] for part in module.rotary_emb(hidden, _ahead(n))], dim=-1)
    at = torch.arange(n)
    return scores.Seen(
        queries[0].transpose(0, 1), at[-WINDOW:], keys[0].transpose(0, 1), values[0].transpose(0, 1), at,
        Rope(table, False), module.scaling,
    )  # fmt: skip


def _ahead(n: int) -> torch.Tensor:
    return torch.arange(n + AHEAD)[None]


def parts_of_heads(layer: scores.Seen) -> torch.Tensor:
    """[K, 3, n]: the parts of each key head with its queries."""
    n_kv = layer.keys.shape[1]
    group = layer.queries.shape[1] // n_kv
    made = []
    for head in range(n_kv):
        queries = layer.queries[:, head * group : (head + 1) * group]
        one = slice(head, head + 1)
        made.append(
            scores.parts(
                scores.Seen(
                    queries, layer.query_positions, layer.keys[:, one], layer.values[:, one], layer.positions,
                    layer.rope, layer.scale,
                )
            )
        )  # fmt: skip
    return torch.stack(made)


@dataclass
class SkeletonPress(ScorerPress):  # type: ignore[misc]
    """The skeleton score of each key head of each layer, from its own queries and keys alone."""

    weights: tuple[float, float, float] = WEIGHTS

    def score(self, module: Any, hidden_states: Any, keys: Any, values: Any, *more: Any, **named: Any) -> torch.Tensor:
        kwargs = named.get("kwargs", more[-1] if more else {})
        found = parts_of_heads(seen(module, hidden_states, keys, values, kwargs))
        return torch.stack([scores.blend(parts, self.weights) for parts in found])[None]


def by_share(found: torch.Tensor) -> torch.Tensor:
    """Scores [layers, K, n], none below 0, of all heads as one [n]: the mean of each head's shares."""
    return (found / found.sum(dim=-1, keepdim=True).clamp(min=1e-30)).mean(dim=(0, 1))


def by_rank(found: torch.Tensor) -> torch.Tensor:
    """Scores [layers, K, n] of all heads as one [n]: the mean of each head's ranks."""
    return torch.stack([scores.ranks(head) for head in found.flatten(0, 1)]).mean(dim=0)


def chosen(candidates: torch.Tensor, budget: int, n: int) -> torch.Tensor:
    """Indices [budget] of the n tokens that stay, by the scores of those that are neither sinks nor recent."""
    best = candidates.topk(budget - SINKS - RECENT).indices + SINKS
    return torch.cat([torch.arange(SINKS), best.sort().values, torch.arange(n - RECENT, n)])


@dataclass
class UnionPress(BasePress):  # type: ignore[misc]
    """Any scorer of kvpress, choosing the same tokens for all layers and heads; sinks and recent tokens always stay."""

    press: ScorerPress
    merge: Callable[[torch.Tensor], torch.Tensor] = by_share
    found: list[torch.Tensor] = field(default_factory=list)

    def post_init_from_model(self, model: Any) -> None:
        self.press.post_init_from_model(model)
        self.found, self.layers = [], model.config.num_hidden_layers

    def forward_hook(self, module: Any, _inputs: Any, kwargs: Any, output: Any) -> Any:
        cache, hidden = kwargs["past_key_values"], kwargs["hidden_states"]
        layer = cache.layers[module.layer_idx]
        n = layer.keys.shape[2]
        if n != hidden.shape[1]:
            return output  # not the context
        self.found.append(self.press.score(module, hidden, layer.keys, layer.values, output[1], kwargs)[0])
        if len(self.found) == self.layers:
            merged = self.merge(torch.stack(self.found)[..., SINKS : n - RECENT].float())
            stay = chosen(merged, compute_n_kept(n, self.press.compression_ratio), n)
            for one in cache.layers:
                one.keys, one.values = one.keys[:, :, stay], one.values[:, :, stay]
        return output
