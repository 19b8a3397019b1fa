"""The static memory of capture: allocated once, before any CUDA graph is recorded, and only written into afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from geomcli.kernels.layout import (
    CONTROL_WORDS,
    HEAD_WORDS,
    KEEP,
    PARTIAL_WORDS,
    RECORD_WORDS,
)


@dataclass(frozen=True)
class Shape:
    """One attention layer as a rank sees it: query heads, key heads, width of a key."""

    heads: int
    key_heads: int
    dim: int

    def __post_init__(self) -> None:
        if self.heads % self.key_heads:
            raise ValueError(f"{self.heads} query heads cannot share {self.key_heads} key heads")

    @property
    def group(self) -> int:
        return self.heads // self.key_heads


class Buffers:
    """Control table, scratch and records for `layers` captured layers of `shape` and at most `rows` rows a step.

    pool_rows: slots of the engine's request pool, the padding slot 0 included. `means_length` > 0 keeps the head-mean
    probabilities [rows, means_length] of the layer that ran last (column sums need them). `tap_length` > 0 allocates
    the logits [rows, heads, tap_length] that a tap writes.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        layers: int,
        rows: int,
        pool_rows: int,
        device: torch.device | str,
        per_head: bool = True,
        means_length: int = 0,
        tap_length: int = 0,
        splits: int = 8,
        mean_splits: int = 8,
    ) -> None:
        def zeros(*size: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros([int(getattr(n, "value", n)) for n in size], dtype=dtype, device=device)

        self.shape, self.layers, self.rows = shape, layers, rows
        self.splits, self.mean_splits = splits, mean_splits
        self.control = zeros(pool_rows, CONTROL_WORDS, dtype=torch.int32)
        self.records = zeros(layers, rows, RECORD_WORDS, dtype=torch.int32)
        self.heads = zeros(layers, rows, shape.heads, HEAD_WORDS, dtype=torch.float32) if per_head else None
        self.partial = zeros(rows, shape.heads, splits, PARTIAL_WORDS, dtype=torch.float32)
        self.candidates = zeros(rows, mean_splits, KEEP, dtype=torch.int64)
        self.means = zeros(rows, means_length, dtype=torch.float32) if means_length else None
        self.tap = zeros(rows, shape.heads, tap_length, dtype=torch.float32) if tap_length else None

    @property
    def bytes(self) -> int:
        """Memory taken, in bytes."""
        held = (self.control, self.records, self.heads, self.partial, self.candidates, self.means, self.tap)
        return sum(t.numel() * t.element_size() for t in held if t is not None)

    def write_control(self, slots: Sequence[int], rows: Sequence[Sequence[int]]) -> None:
        """Set the control of request slots [n] to rows [n][16]; asynchronous, in order with the current stream."""
        if not slots:
            return
        pinned = self.control.is_cuda
        index = torch.tensor(slots, dtype=torch.int64, pin_memory=pinned)
        values = torch.tensor(rows, dtype=torch.int32, pin_memory=pinned)
        device = self.control.device
        self.control.index_copy_(0, index.to(device, non_blocking=True), values.to(device, non_blocking=True))
