"""Heads that are spread over ranks (tensor parallelism): local records become those of all heads, exactly.

A record's sums are additive over heads, so they are reduced; per-head scalars are gathered in rank order, which is the
order of the heads. The strongest links of a mean over all heads cannot be told from each rank's strongest, so the
head-mean probabilities of the rows that ask for links are reduced whole and ranked afterwards. Every rank must call
these functions in the same order for the same rows: they are collectives.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from geomcli.kernels.buffers import Buffers
from geomcli.kernels.layout import (
    C_MASK_PREFIX,
    C_WINDOW,
    D_WEIGHT,
    KEEP,
    L_WINDOW,
    R_HEADS,
    R_LENGTH,
    R_LSE,
    R_POSITIONS,
    R_PROBABILITIES,
    R_STAMP,
)

UNHEALTHY_STAMP = -1  # no request has it


def merge_sums(records: torch.Tensor, *, healthy: bool, group: Any) -> None:
    """Head-mean sums of records [layers, n, words] over the ranks of `group`, in place; also which heads were seen.

    A record that any rank could not compute (`healthy` False there) loses its stamp on all of them.
    """
    first, last = R_LSE, R_POSITIONS
    values = records.view(torch.float32)
    count = records[..., R_HEADS].float()
    sums = torch.where(count[..., None] > 0, values[..., first:last] * count[..., None], 0.0)
    packed = torch.cat([sums, count[..., None], torch.full_like(count, float(healthy))[..., None]], dim=-1)
    dist.all_reduce(packed, group=group)
    total, ranks = packed[..., -2], packed[..., -1]
    values[..., first:last] = packed[..., : last - first] / total.clamp(min=1)[..., None]
    records[..., R_HEADS] = total.to(torch.int32)
    records[..., R_STAMP].masked_fill_(ranks < dist.get_world_size(group), UNHEALTHY_STAMP)


def share(values: torch.Tensor, *, group: Any) -> None:
    """The first rank's values, of any shape, on all of `group`, in place: decisions must not differ by a bit."""
    dist.broadcast(values, group=group, group_src=0)


def merge_links(
    buffers: Buffers,
    records: torch.Tensor,
    rows: torch.Tensor,
    pool: torch.Tensor,
    width: int,
    group: Any,
    *,
    prefill: bool = False,
) -> None:
    """Links of all heads into records [layers, n, words], for the rows [m] that ask; before merge_sums.

    pool [m] holds the slots of those rows' requests, `width` is at least the length of each of them; `prefill`
    as in probe.Rows. ValueError for buffers without means.
    """
    if buffers.means is None:
        raise ValueError("links over several ranks need buffers with a means_length")
    found = records[:, rows]
    length = found[..., R_LENGTH].long()
    count = found[..., R_HEADS].float()
    positions = torch.arange(width, device=records.device)
    seen = (positions >= _first_key(buffers, pool, length, prefill)[..., None]) & (positions < length[..., None])
    packed = torch.cat(
        [torch.where(seen, buffers.means[:, rows, :width], 0.0) * count[..., None], count[..., None]], -1
    )
    dist.all_reduce(packed, group=group)
    means = packed[..., :width] / packed[..., width:].clamp(min=1)
    best = means.masked_fill(~seen, -1.0).topk(min(KEEP, width), dim=-1)
    k = best.indices.shape[-1]
    at = R_POSITIONS
    found[..., at : at + k] = best.indices.to(torch.int32)
    at = R_PROBABILITIES
    found[..., at : at + k] = best.values.contiguous().view(torch.int32)
    records[:, rows] = found


def _first_key(buffers: Buffers, pool: torch.Tensor, length: torch.Tensor, prefill: bool) -> torch.Tensor:
    """The twin of rows.first_key: int64 [layers, m] for lengths [layers, m]."""
    control = buffers.control[pool]
    first = control[:, C_MASK_PREFIX].long().expand_as(length)
    window = control[:, C_WINDOW].long()
    first = torch.where(window > 0, torch.maximum(first, length - window), first)
    ints = buffers.prefill_layer_ints if prefill else buffers.layer_ints
    sliding = ints[:, L_WINDOW, None]
    first = torch.where(sliding > -1, torch.maximum(first, length - 1 - sliding), first)
    return torch.minimum(first, length)


def merge_derotated(scores: torch.Tensor, group: Any) -> torch.Tensor:
    """Scores of links [layers, m, 3, KEEP] of every rank's heads as those of all heads; see derotated_links.launch."""
    parts = [torch.empty_like(scores) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, scores.contiguous(), group=group)
    every = torch.stack(parts)
    weights = every[..., D_WEIGHT : D_WEIGHT + 1, :]
    total = torch.logsumexp(weights, dim=0)
    # Where no rank has a link, every weight is exp(-inf).
    share = torch.exp(weights - total.masked_fill(total == float("-inf"), 0.0))
    merged = (share * every).sum(dim=0)
    merged[..., D_WEIGHT, :] = total[..., 0, :]
    return merged


def gather_heads(heads: torch.Tensor, group: Any) -> torch.Tensor:
    """Per-head scalars [layers, n, H, words] of every rank: [layers, n, ranks * H, words], in head order."""
    parts = [torch.empty_like(heads) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, heads.contiguous(), group=group)
    return torch.cat(parts, dim=2)
