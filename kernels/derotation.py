"""Undoing a model's rotary position embedding: what the logit of a link would be without it (docs/geometry.md).

Plain torch: the reference of derotated_links.py, and the path itself on engines without Triton. A rotation is an
orthogonal map, so undoing it needs nothing but the angles, which the model's own cosine and sine table holds; where
that table carries a factor too (YaRN), the factor stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from geomcli.kernels.reference import attention_logits


@dataclass(frozen=True)
class Rope:
    """A rotary embedding by its table [positions, dim]: dim/2 cosines, then dim/2 sines (SGLang's cos_sin_cache).

    The first `dim` columns of a head are rotated, the others pass. `interleaved`: column pairs are (2i, 2i + 1), as in
    GPT-J; else (i, i + dim/2), as in GPT-NeoX.
    """

    table: torch.Tensor
    interleaved: bool

    @property
    def dim(self) -> int:
        return int(self.table.shape[-1])


def derotated(vectors: torch.Tensor, positions: torch.Tensor, rope: Rope) -> torch.Tensor:
    """vectors [n, heads, D] that were rotated for positions [n], as they were before."""
    cos, sin = rope.table[positions].to(vectors.dtype)[:, None].chunk(2, dim=-1)
    length = torch.sqrt(cos * cos + sin * sin)
    cos, sin = cos / length, sin / length
    first, second = _columns(rope)
    one, two = vectors[..., first], vectors[..., second]
    found = vectors.clone()
    found[..., first] = one * cos + two * sin
    found[..., second] = two * cos - one * sin
    return found


def _columns(rope: Rope) -> tuple[slice, slice]:
    if rope.interleaved:
        return slice(0, rope.dim, 2), slice(1, rope.dim, 2)
    return slice(0, rope.dim // 2), slice(rope.dim // 2, rope.dim)


def link_scores(
    query: torch.Tensor,
    keys: torch.Tensor,
    *,
    query_position: int,
    positions: torch.Tensor,
    rope: Rope,
    scale: float,
    lse: torch.Tensor,
    logit_cap: float = 0.0,
) -> torch.Tensor:
    """[2, k]: content and position score of the links to keys [k, H_kv, D] at positions [k].

    query [H, D] and keys as the engine rotated them, lse [H] the logsumexp of each head's whole row. Content is the
    logit without rotation, position what the rotation adds; each is the mean over heads weighted by their shares
    p[h, n] / sum_h p[h, n] of the link. Computed in float32, in float64 where the query is.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    query, keys = query.to(dtype), keys.to(dtype)
    at = torch.full((1,), query_position, dtype=torch.int64, device=query.device)
    logits = attention_logits(query, keys, scale, logit_cap)
    content = attention_logits(derotated(query[None], at, rope)[0], derotated(keys, positions, rope), scale, logit_cap)
    share = torch.softmax(logits - lse.to(dtype)[:, None], dim=0)
    return torch.stack([(share * content).sum(dim=0), (share * (logits - content)).sum(dim=0)])
