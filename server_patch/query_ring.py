"""Scheduler process: the last queries of every request in the captured layers, by which its keys are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from geomcli.eviction.retention import WINDOW


@dataclass(frozen=True)
class Writes:
    """Where the queries of a step go: of which token [n] (None: row i is token i), to which slot and place [n]."""

    tokens: torch.Tensor | None
    slots: torch.Tensor
    places: torch.Tensor


class QueryRing:
    """Queries [layers, slots, WINDOW, H, D]; that of the text's position p lies at p % WINDOW."""

    def __init__(self, *, layers: int, slots: int, heads: int, dim: int, device: Any, dtype: torch.dtype) -> None:
        self.queries = torch.zeros(layers, slots, WINDOW, heads, dim, device=device, dtype=dtype)

    def of_decode(self, slots: torch.Tensor, positions: torch.Tensor) -> Writes:
        return Writes(None, slots, positions % WINDOW)

    def of_prompts(self, rows: Sequence[tuple[int, int, int, int]]) -> Writes:
        """rows: slot, first token in the step, first position and number of tokens of each prompt's part."""
        tokens: list[int] = []
        slots: list[int] = []
        places: list[int] = []
        for slot, token, start, count in rows:
            last = min(count, WINDOW)
            tokens += range(token + count - last, token + count)
            slots += [slot] * last
            places += [position % WINDOW for position in range(start + count - last, start + count)]
        return Writes(*(to_device(values, self.queries.device) for values in (tokens, slots, places)))

    def write(self, layer: int, queries: torch.Tensor, writes: Writes) -> None:
        """queries [tokens, H, D] of the layer-th captured layer."""
        chosen = queries[: writes.slots.shape[0]] if writes.tokens is None else queries[writes.tokens]
        self.queries[layer, writes.slots, writes.places] = chosen.to(self.queries.dtype)

    def write_all(self, queries: torch.Tensor, writes: Writes) -> None:
        """queries [layers, rows, H, D]: of a decode step, a row each."""
        self.queries[:, writes.slots, writes.places] = queries[:, : writes.slots.shape[0]]

    def read(self, slot: int, positions: Sequence[int]) -> torch.Tensor:
        """[layers, W, H, D]"""
        at = to_device([position % WINDOW for position in positions], self.queries.device)
        return self.queries[:, slot].index_select(1, at)


def to_device(values: Any, device: Any, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """Integers [n] on the device, without waiting for it."""
    pinned = torch.device(device).type == "cuda"
    made = torch.as_tensor(values, dtype=dtype)
    return (made.pin_memory() if pinned else made).to(device, non_blocking=True)
