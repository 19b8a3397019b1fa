"""Scheduler process: which heads this process computes when attention is split over several (tensor parallelism)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class AttentionRanks:
    """This process among those that share the heads: heads rank * n .. rank * n + n - 1 of `size` * n are here."""

    rank: int
    size: int
    group: Any  # torch.distributed process group


def attention_ranks() -> AttentionRanks | None:
    """The group over which attention is split, None when one process has all heads."""
    from sglang.srt.runtime_context import get_parallel

    parallel = get_parallel()
    size = int(parallel.attn_tp_size)
    if size == 1:
        return None
    return AttentionRanks(int(parallel.attn_tp_rank), size, parallel.attn_tp_group.device_group)
