"""The skeleton score of a request's cached tokens from the queries of its last steps, in torch on any device.

Definitions: docs/eviction.md; the twin is reference.py. As few launches as there can be, for on a GPU they are what a
request's score costs: as many key heads at once as fit into tensors of ELEMENTS, at least one; layers alike as further
heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from geomcli.eviction.reference import HORIZON, NEIGHBOURS, POWER, WEIGHTS
from geomcli.kernels.derotation import Rope, derotated

ELEMENTS = 1 << 24  # 64 MiB of float32; several such tensors live at a time


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
    n, n_kv, dim = seen.keys.shape
    window, heads = seen.queries.shape[:2]
    group = heads // n_kv
    visible = seen.positions[None, :] <= seen.query_positions[:, None]
    found = torch.zeros(3, n, dtype=dtype, device=seen.keys.device)
    at_once = max(1, ELEMENTS // (n * (group * (window + 1) + dim)))
    for first in range(0, n_kv, at_once):
        last = min(first + at_once, n_kv)
        queries = seen.queries[:, first * group : last * group].to(dtype)
        keys, norms = seen.keys[:, first:last].to(dtype), seen.values[:, first:last].to(dtype).norm(dim=-1).T
        still = derotated(queries, seen.query_positions, seen.rope)
        mean = still.mean(dim=0, keepdim=True)
        turned = _by_key_head(_turned(torch.cat([mean, still - mean]), seen), group)
        still_keys = derotated(keys, seen.positions, seen.rope).transpose(0, 1)
        keys = keys.transpose(0, 1)
        found[0] += _received(_by_key_head(queries, group), keys, visible, seen).sum(dim=(0, 1))
        found[1] += _expected(turned, keys, norms[:, None], seen).sum(dim=(0, 1))
        found[2] += ranks(_distinct(still_keys)).sum(dim=0) * group
    return found / heads


def skeleton(
    layers: Iterable[Seen], weights: tuple[float, float, float] = WEIGHTS, *, at_once: bool = True
) -> torch.Tensor:
    """Scores [n], float32: higher ones stay.

    at_once: layers are drawn before the first is scored, and those that are turned and scaled alike are taken as
    further heads of one; else each is scored before the next is drawn, so that only one layer's keys are held.
    """
    drawn = _as_one(list(layers)) if at_once else layers
    total, count = torch.zeros(()), 0
    for layer in drawn:
        found = parts(layer)
        total, count = total.to(found) + found, count + 1
    return blend(total / count, weights).float()


def _as_one(layers: list[Seen]) -> list[Seen]:
    """Layers that are turned and scaled alike, as one; else as they are."""
    first = layers[0]
    if any(
        layer.rope.table is not first.rope.table
        or layer.rope.interleaved is not first.rope.interleaved
        or (layer.scale, layer.logit_cap) != (first.scale, first.logit_cap)
        or (layer.queries.shape, layer.keys.shape, layer.values.shape)
        != (first.queries.shape, first.keys.shape, first.values.shape)
        for layer in layers[1:]
    ):
        return layers
    queries, keys, values = (
        torch.cat([getattr(layer, name) for layer in layers], dim=1) for name in ("queries", "keys", "values")
    )
    return [replace(first, queries=queries, keys=keys, values=values)]


def blend(found: torch.Tensor, weights: Sequence[float] = WEIGHTS) -> torch.Tensor:
    """[n] of parts [3, n]: their ranks to the POWER, weighted, and averaged over each token and its NEIGHBOURS."""
    terms = [weight * ranks(part) ** POWER for weight, part in zip(weights, found, strict=True)]
    every = torch.stack(terms).sum(dim=0)[None, None]
    window = 2 * NEIGHBOURS + 1
    near: torch.Tensor = functional.avg_pool1d(every, window, stride=1, padding=NEIGHBOURS, count_include_pad=False)
    return near[0, 0]


def ranks(values: torch.Tensor) -> torch.Tensor:
    """Along the last axis, in [0, 1]; of equal values the later ranks higher, and what is no number lowest."""
    n = values.shape[-1]
    places = torch.arange(n, dtype=values.dtype, device=values.device).expand_as(values)
    order = torch.argsort(values.nan_to_num(nan=-torch.inf), dim=-1, stable=True)
    found = torch.empty_like(values).scatter_(-1, order, places)
    return found / max(n - 1, 1)


def _by_key_head(vectors: torch.Tensor, group: int) -> torch.Tensor:
    """[m, K * group, D] as [K, group * m, D]."""
    m, heads, dim = vectors.shape
    return vectors.view(m, heads // group, group, dim).permute(1, 2, 0, 3).reshape(heads // group, group * m, dim)


def _logits(vectors: torch.Tensor, keys: torch.Tensor, m: int, scale: float) -> torch.Tensor:
    """[K, group, m, n] of vectors [K, group * m, D] and keys [K, n, D]."""
    products = torch.matmul(vectors, keys.mT) * scale
    return products.view(keys.shape[0], -1, m, keys.shape[1])


def _received(queries: torch.Tensor, keys: torch.Tensor, visible: torch.Tensor, seen: Seen) -> torch.Tensor:
    """[K, group, n]"""
    logits = _logits(queries, keys, visible.shape[0], seen.scale)
    if seen.logit_cap > 0:
        logits = seen.logit_cap * torch.tanh(logits / seen.logit_cap)
    p = torch.softmax(logits.masked_fill(~visible, float("-inf")), dim=-1)
    mean = p.sum(dim=-2) / visible.sum(dim=0).clamp(min=1)
    return mean / mean.sum(dim=-1, keepdim=True)


def _expected(turned: torch.Tensor, keys: torch.Tensor, norms: torch.Tensor, seen: Seen) -> torch.Tensor:
    """[K, group, n]; turned [K, group * (1 + W), D]: the mean of the queries, and what each has besides."""
    logits = _logits(turned, keys, 1 + seen.queries.shape[0], seen.scale)
    spread = 0.5 * (logits[..., 1:, :] ** 2).mean(dim=-2)
    weighted = torch.softmax(logits[..., 0, :] + spread, dim=-1) * norms
    return weighted / weighted.sum(dim=-1, keepdim=True)


def _distinct(keys: torch.Tensor) -> torch.Tensor:
    """[K, n] of keys [K, n, D] without rotation."""
    tiny = torch.finfo(keys.dtype).tiny
    units = keys / keys.norm(dim=-1, keepdim=True).clamp(min=tiny)
    mean = units.mean(dim=1)
    cosine: torch.Tensor = (units @ (mean / mean.norm(dim=-1, keepdim=True).clamp(min=tiny))[..., None])[..., 0]
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
