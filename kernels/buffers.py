"""The static memory of capture: allocated once, before any CUDA graph is recorded, and only written into afterwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from geomcli.kernels.layout import (
    ALIGNMENT,
    CONTROL_WORDS,
    HEAD_WORDS,
    KEEP,
    L_CAP,
    L_KEYS,
    L_SCALE,
    L_WINDOW,
    LAYER_WORDS,
    PARTIAL_WORDS,
    RECORD_WORDS,
    TAP_OVERREAD,
)

# Elements: what a key tensor's distance to the first one must be a multiple of for wide loads.
_KEY_ALIGNMENT = 16


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


@dataclass(frozen=True)
class Layer:
    """What the logits of one layer depend on besides query and keys."""

    scale: float
    logit_cap: float = 0.0
    sliding_window: int = -1  # keys before the query's own that count, -1: all
    decode_window: int | None = None  # where the engine's decode has another one than its prefill


class Buffers:
    """Control table, queries, scratch and records of the captured `layers` for at most `rows` rows a step.

    pool_rows: slots of the engine's request pool, the padding slot 0 included. `dtype` is the queries'. `means_length`
    > 0 keeps the head-mean probabilities [layers, rows, means_length] (column sums and several ranks need them).
    `places_length` > 0: keys of a row may have left; [pool_rows, places_length] lists where in the text those stand
    that stayed (layout.C_KEPT).
    `tap_length` > 0 allocates the logits [layers, rows, heads, tap_length] that a tap writes.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        layers: Sequence[Layer],
        rows: int,
        pool_rows: int,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        per_head: bool = True,
        means_length: int = 0,
        tap_length: int = 0,
        places_length: int = 0,
        splits: int = 8,
        mean_splits: int = 8,
    ) -> None:
        def zeros(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        n = len(layers)
        self.shape, self.layers, self.rows = shape, tuple(layers), rows
        self.splits, self.mean_splits = splits, mean_splits
        self.control = zeros(pool_rows, CONTROL_WORDS, dtype=torch.int32)
        self.queries = zeros(n, rows, shape.heads, shape.dim, dtype=dtype)
        self.records = zeros(n, rows, RECORD_WORDS, dtype=torch.int32)
        self.heads = zeros(n, rows, shape.heads, HEAD_WORDS) if per_head else None
        self.partial = zeros(n, rows, shape.heads, splits, PARTIAL_WORDS)
        self.candidates = zeros(n, rows, mean_splits, KEEP, dtype=torch.int64)
        self.means = zeros(n, rows, means_length) if means_length else None
        self.places = zeros(pool_rows, places_length, dtype=torch.int32) if places_length else None
        self.tap = None
        if tap_length:
            # One column more for the flag of each row, see tap.py; rows begin where wide loads may, and the last of
            # them may be read beyond its end.
            width = -(-(tap_length + 1) // ALIGNMENT) * ALIGNMENT
            size = (n, rows, shape.heads, width)
            self.tap = zeros(math.prod(size) + TAP_OVERREAD)[: math.prod(size)].view(size)
        self.learned_sinks = zeros(n, shape.heads).fill_(float("-inf"))
        self.keys: torch.Tensor | None = None
        floats, ints = zeros(n, LAYER_WORDS), zeros(n, LAYER_WORDS, dtype=torch.int64)
        prefill = zeros(n, LAYER_WORDS, dtype=torch.int64)
        floats[:, L_SCALE] = torch.tensor([layer.scale for layer in layers])
        floats[:, L_CAP] = torch.tensor([layer.logit_cap for layer in layers])
        prefill[:, L_WINDOW] = torch.tensor([layer.sliding_window for layer in layers])
        ints[:, L_WINDOW] = torch.tensor(
            [layer.sliding_window if layer.decode_window is None else layer.decode_window for layer in layers]
        )
        self.layer_floats, self.layer_ints, self.prefill_layer_ints = floats, ints, prefill

    @property
    def bytes(self) -> int:
        """Memory taken, in bytes."""
        held = (v for v in vars(self).values() if isinstance(v, torch.Tensor) and v is not self.keys)
        return sum(t.numel() * t.element_size() for t in held)

    def use_keys(self, keys: Sequence[torch.Tensor]) -> None:
        """The key tensor [slots, H_kv, D] of each captured layer; they must stay where they are.

        ValueError when they are not alike, or not in the shape that was announced.
        """
        first = keys[0]
        size = first.element_size()
        for key in keys:
            if key.dim() != 3 or key.shape[-1] != self.shape.dim or key.shape[1] != self.shape.key_heads:
                expected = f"[slots, {self.shape.key_heads}, {self.shape.dim}]"
                raise ValueError(f"the key pool has shape {list(key.shape)} instead of {expected}")
            distance = key.data_ptr() - first.data_ptr()
            if key.dtype != first.dtype or key.stride() != first.stride() or key.stride(-1) != 1:
                raise ValueError("the key pools of the captured layers are laid out differently")
            if distance % (size * _KEY_ALIGNMENT):
                raise ValueError("the key pools of the captured layers are not aligned to each other")
        offsets = [(key.data_ptr() - first.data_ptr()) // size for key in keys]
        self.layer_ints[:, L_KEYS] = self.prefill_layer_ints[:, L_KEYS] = torch.tensor(offsets)
        self.keys = first

    def write_control(self, slots: Sequence[int], rows: Sequence[Sequence[int]]) -> None:
        """Set the control of request slots [n] to rows [n][16]; asynchronous, in order with the current stream."""
        if not slots:
            return
        pinned = self.control.is_cuda
        index = torch.tensor(slots, dtype=torch.int64, pin_memory=pinned)
        values = torch.tensor(rows, dtype=torch.int32, pin_memory=pinned)
        device = self.control.device
        self.control.index_copy_(0, index.to(device, non_blocking=True), values.to(device, non_blocking=True))
