"""One query row in plain torch: probabilities per head, then the statistics that leave the engine.

The truth for every faster path, and the path itself on engines without Triton. Definitions: docs/geometry.md section 1.
Softmax per head first, mean over heads after. Keys before `first_key` (masked, or outside a window) are cut off before
anything is computed, so no published number can depend on them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from geomcli.compass import PROFILE_SIZE
from geomcli.fingerprint import N_BINS

_LN2 = math.log(2.0)
_bins_by_distance = torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class HeadStatistics:
    """Per-head scalars, each [H]: entropy (bits), sink mass, previous-token probability, lookback ratio."""

    entropy: torch.Tensor
    sink: torch.Tensor
    prev: torch.Tensor
    lookback: torch.Tensor


@dataclass(frozen=True)
class RowStatistics:
    """What one layer says about one query row; all tensors float32 on the row's device."""

    heads: int  # heads averaged over
    lse: float  # mean over heads of logsumexp, natural log
    entropy_bits: float  # mean over heads of the exact entropy
    sink_mass: float
    histogram: torch.Tensor  # [16], sums to 1, all zero when no non-sink mass is left
    positions: torch.Tensor  # [k] int64, descending probability
    probabilities: torch.Tensor  # [k] true head-mean probabilities
    profile: torch.Tensor  # [<= 256] non-sink mass at linear distance 0, 1, …
    head_statistics: HeadStatistics | None = None
    derotated: torch.Tensor | None = None  # [2, k]: content and position score of each link, see derotation.py


def attention_logits(query: torch.Tensor, keys: torch.Tensor, scale: float, logit_cap: float = 0.0) -> torch.Tensor:
    """Logits [H, S] in float32, as the engine's own softmax sees them; in float64 where the query is.

    query [H, D]; keys [S, H_kv, D] with H a multiple of H_kv (MHA, GQA, MQA); `logit_cap` > 0 soft-caps with tanh.
    """
    n_heads, dim = query.shape
    n_kv = keys.shape[1]
    if n_heads % n_kv:
        raise ValueError(f"{n_heads} query heads cannot share {n_kv} key heads")
    dtype = torch.promote_types(query.dtype, torch.float32)
    grouped = query.to(dtype).view(n_kv, n_heads // n_kv, dim)
    logits = torch.matmul(grouped, keys.to(dtype).permute(1, 2, 0)).reshape(n_heads, -1) * scale
    return logit_cap * torch.tanh(logits / logit_cap) if logit_cap > 0 else logits


def bins_by_distance(count: int, device: torch.device) -> torch.Tensor:
    """Log-distance bin of the distances 0 .. count - 1, int64 [count]; see geomcli.fingerprint.distance_bin."""
    global _bins_by_distance  # noqa: PLW0603  (a table that only grows)
    if _bins_by_distance.shape[0] < count or _bins_by_distance.device != device:
        size = max(4096, 1 << (count - 1).bit_length())
        distances = torch.arange(size, dtype=torch.float64)
        exponents = torch.frexp(distances.clamp(min=1)).exponent.to(torch.int64) - 1
        _bins_by_distance = exponents.clamp(max=N_BINS - 1).to(device)
    return _bins_by_distance[:count]


def row_statistics(
    logits: torch.Tensor,
    *,
    query_position: int,
    first_key: int = 0,
    prompt_len: int = 0,
    sink_tokens: int = 4,
    top_k: int = 0,
    head_statistics: bool = False,
    sink_logits: torch.Tensor | None = None,
    places: torch.Tensor | None = None,
) -> RowStatistics:
    """Statistics of one row.

    logits [H, n] for the keys first_key .. query_position (n = query_position + 1 - first_key); `sink_logits` [H] are
    the learned sinks of models that add one to the normaliser. `prompt_len` separates prompt from generated keys for
    the lookback ratio. `places` [n], ascending: where the keys stand, when some between them have left; then there are
    no head statistics. ValueError when the shapes do not fit.
    """
    n_heads, n = logits.shape
    if places is not None and (head_statistics or places.shape[0] != n):
        raise ValueError(f"{n} keys of {places.shape[0]} places, or head statistics of them")
    if places is None and n != query_position + 1 - first_key:
        raise ValueError(f"{n} keys given for positions {first_key}..{query_position}")
    if n == 0:
        return _empty(n_heads, logits.device, head_statistics)
    normaliser = logits if sink_logits is None else torch.cat([logits, sink_logits.float()[:, None]], dim=1)
    lse = torch.logsumexp(normaliser, dim=1)
    p = torch.exp(logits - lse[:, None])
    mean = p.mean(dim=0)
    # Term by term: the difference of two large sums would lose digits, and 0 times -inf is not a number.
    entropy = torch.where(p > 0, p * (lse[:, None] - logits), 0.0).sum(dim=1).clamp(min=0)

    at = first_key + torch.arange(n, device=logits.device) if places is None else places
    n_sink = max(0, min(sink_tokens - first_key, n)) if places is None else int((at < sink_tokens).sum())
    body, distances = mean[n_sink:], query_position - at[n_sink:]
    bins = bins_by_distance(query_position + 1, logits.device)[distances]
    histogram = torch.zeros(N_BINS, dtype=torch.float64, device=logits.device)
    histogram.scatter_add_(0, bins, body.double())
    mass = histogram.sum()
    if mass > 0:
        histogram /= mass
    top = torch.topk(mean, min(top_k, n)) if top_k else None

    return RowStatistics(
        heads=n_heads,
        lse=float(lse.mean()),
        entropy_bits=float(entropy.mean()) / _LN2,
        sink_mass=float(mean[:n_sink].sum()),
        histogram=histogram.float(),
        positions=at[top.indices] if top else torch.empty(0, dtype=torch.int64),
        probabilities=top.values if top else torch.empty(0),
        profile=_profile(body, distances, query_position + 1 - max(first_key, sink_tokens)),
        head_statistics=_heads(p, entropy, n_sink, first_key, prompt_len) if head_statistics else None,
    )


def _profile(body: torch.Tensor, distances: torch.Tensor, length: int) -> torch.Tensor:
    """Mass at distance 0, 1, …, as far as there are places: none where keys have left."""
    made = body.new_zeros(max(0, min(length, PROFILE_SIZE)))
    near = distances < made.shape[0]
    made[distances[near]] = body[near]
    return made


def _heads(p: torch.Tensor, entropy: torch.Tensor, n_sink: int, first_key: int, prompt_len: int) -> HeadStatistics:
    n = p.shape[1]
    n_prompt = max(0, min(prompt_len - first_key, n))
    zero = torch.zeros_like(entropy)
    prompt = p[:, :n_prompt].mean(dim=1) if n_prompt else zero
    generated = p[:, n_prompt:].mean(dim=1) if n > n_prompt else zero
    return HeadStatistics(
        entropy=entropy / _LN2,
        sink=p[:, :n_sink].sum(dim=1),
        prev=p[:, -2] if n > 1 else zero,
        lookback=prompt / (prompt + generated).clamp(min=torch.finfo(p.dtype).tiny),
    )


def _empty(n_heads: int, device: torch.device, head_statistics: bool) -> RowStatistics:
    zeros = torch.zeros(n_heads, device=device)
    return RowStatistics(
        heads=n_heads,
        lse=0.0,
        entropy_bits=0.0,
        sink_mass=0.0,
        histogram=torch.zeros(N_BINS, device=device),
        positions=torch.empty(0, dtype=torch.int64),
        probabilities=torch.empty(0),
        profile=torch.empty(0),
        head_statistics=HeadStatistics(zeros, zeros, zeros, zeros) if head_statistics else None,
    )
