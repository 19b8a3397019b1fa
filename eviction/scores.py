"""The skeleton score of a request's cached tokens from the queries of its last steps, in torch on any device.

Definitions: docs/eviction.md; the twin is reference.py. Works key head by key head, so that the largest tensor is
[queries, group, n].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from geomcli.eviction.reference import HORIZON, NEIGHBOURS, POWER, WEIGHTS
from geomcli.kernels.derotation import Rope, derotated


@dataclass(frozen=True)
class Seen:
    """One layer of a request: its last queries [W, H, D] at positions [W], and the n tokens that it holds.

    keys [n, K, D], values [n, K, Dv] at positions [n], which ascend; queries and keys as the engine rotated them.
    """

    queries: torch.Tensor
    query_positions: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor
    rope: Rope
    scale: float
    logit_cap: float = 0.0


def parts(seen: Seen) -> torch.Tensor:
    """[3, n]: received, expected and distinctness (as ranks) of each key, mean over heads; float64 where keys are."""
    dtype = torch.promote_types(seen.keys.dtype, torch.float32)
    queries, keys, values = (x.to(dtype) for x in (seen.queries, seen.keys, seen.values))
    n_kv, group = keys.shape[1], queries.shape[1] // keys.shape[1]
    visible = seen.positions[None, :] <= seen.query_positions[:, None]
    still = derotated(queries, seen.query_positions, seen.rope)
    still_keys = derotated(keys, seen.positions, seen.rope)
    mean = still.mean(dim=0, keepdim=True)
    turned = _turned(torch.cat([mean, still - mean]), seen)
    norms = values.norm(dim=-1)
    found = keys.new_zeros(3, keys.shape[0])
    for head in range(n_kv):
        of_group = slice(head * group, (head + 1) * group)
        found[0] += _received(queries[:, of_group], keys[:, head], visible, seen).sum(dim=0)
        found[1] += _expected(turned[:, of_group], keys[:, head], norms[:, head], seen.scale).sum(dim=0)
        found[2] += ranks(_distinct(still_keys[:, head])) * group
    return found / queries.shape[1]


def skeleton(layers: Sequence[Seen], weights: tuple[float, float, float] = WEIGHTS) -> torch.Tensor:
    """Scores [n], float32: higher ones stay."""
    return blend(torch.stack([parts(layer) for layer in layers]).mean(dim=0), weights).float()


def blend(found: torch.Tensor, weights: Sequence[float] = WEIGHTS) -> torch.Tensor:
    """[n] of parts [3, n]: their ranks to the POWER, weighted, and averaged over each token and its NEIGHBOURS."""
    terms = [weight * ranks(part) ** POWER for weight, part in zip(weights, found, strict=True)]
    every = torch.stack(terms).sum(dim=0)[None, None]
    window = 2 * NEIGHBOURS + 1
    near: torch.Tensor = functional.avg_pool1d(every, window, stride=1, padding=NEIGHBOURS, count_include_pad=False)
    return near[0, 0]


def ranks(values: torch.Tensor) -> torch.Tensor:
    """[n] in [0, 1]; of equal values the later ranks higher."""
    order = torch.argsort(values, stable=True)
    found = torch.empty_like(values)
    found[order] = torch.arange(values.shape[0], dtype=values.dtype, device=values.device)
    return found / max(values.shape[0] - 1, 1)


def _received(queries: torch.Tensor, keys: torch.Tensor, visible: torch.Tensor, seen: Seen) -> torch.Tensor:
    """[group, n]"""
    logits = torch.matmul(queries.transpose(0, 1), keys.T) * seen.scale
    if seen.logit_cap > 0:
        logits = seen.logit_cap * torch.tanh(logits / seen.logit_cap)
    p = torch.softmax(logits.masked_fill(~visible, float("-inf")), dim=-1)
    mean = p.sum(dim=1) / visible.sum(dim=0).clamp(min=1)
    return mean / mean.sum(dim=-1, keepdim=True)


def _expected(turned: torch.Tensor, keys: torch.Tensor, norms: torch.Tensor, scale: float) -> torch.Tensor:
    """[group, n]; turned [1 + W, group, D]: the mean of the queries, and what each has besides."""
    logits = torch.matmul(turned.transpose(0, 1), keys.T) * scale
    weighted = torch.softmax(logits[:, 0] + 0.5 * (logits[:, 1:] ** 2).mean(dim=1), dim=-1) * norms
    return weighted / weighted.sum(dim=-1, keepdim=True)


def _distinct(keys: torch.Tensor) -> torch.Tensor:
    tiny = torch.finfo(keys.dtype).tiny
    units = keys / keys.norm(dim=-1, keepdim=True).clamp(min=tiny)
    mean = units.mean(dim=0)
    cosine: torch.Tensor = units @ (mean / mean.norm().clamp(min=tiny))
    return 1 - cosine


def _turned(vectors: torch.Tensor, seen: Seen) -> torch.Tensor:
    """Vectors [n, heads, D] without rotation, turned by the mean rotation of the next HORIZON positions."""
    rope = seen.rope
    last = seen.query_positions[-1] + 1
    ahead = (last + torch.arange(HORIZON, device=vectors.device)).clamp(max=rope.table.shape[0] - 1)
    cos, sin = rope.table[ahead].to(vectors.dtype).mean(dim=0).chunk(2)
    half = rope.dim // 2
    first, second = (
        (slice(0, rope.dim, 2), slice(1, rope.dim, 2)) if rope.interleaved else (slice(0, half), slice(half, rope.dim))
    )
    found = vectors.clone()
    one, two = vectors[..., first], vectors[..., second]
    found[..., first], found[..., second] = one * cos - two * sin, two * cos + one * sin
    return found
