"""Random paged rows, poisoned outputs, and the float64 reference of what a launch must write."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from geomcli.kernels import layout, probe, records, tap
from geomcli.kernels.buffers import Buffers, Shape
from geomcli.kernels.reference import RowStatistics, row_statistics

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STAMP = 4711
SINK_TOKENS = 4


@dataclass
class Ask:
    """One row: its length and what its request asked for."""

    length: int
    enabled: bool = True
    prompt_len: int = 1
    mask_prefix: int = 0
    window: int = 0
    top_k: int = 16
    stride: int = 1
    limit: int = 0
    heads: tuple[int, ...] | None = None
    layers: int = 0b11


@dataclass
class Scene:
    """Rows over one pool of keys. `layer` is the second of two captured layers, so the first must stay untouched."""

    shape: Shape
    asks: list[Ask]
    dtype: torch.dtype = torch.float32
    key_dtype: torch.dtype | None = None
    cap: float = 0.0
    sliding_window: int = -1
    sinks: bool = False
    flat: bool = False
    tapped: bool = False
    means: bool = False
    tokens: bool = False
    seed: int = 0
    splits: int = 4
    block_n: int = 64
    scale: float = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)

        def randn(*size: int) -> torch.Tensor:
            return torch.randn(size, generator=generator)

        n, shape = len(self.asks), self.shape
        self.scale = shape.dim**-0.5
        longest = max(ask.length for ask in self.asks)
        slots = longest + 64
        self.query = randn(n + 3, shape.heads, shape.dim).to(self.dtype).to(DEVICE)
        self.keys = randn(slots, shape.key_heads, shape.dim).to(self.key_dtype or self.dtype).to(DEVICE)
        self.pool_slots = [n - i for i in range(n)]  # descending: a row is not its request's slot; slot 0 pads
        self.table = torch.stack([torch.randperm(slots, generator=generator)[:longest] for _ in range(n + 1)])
        self.table = self.table.to(torch.int32).to(DEVICE)
        self.learned = randn(shape.heads).to(DEVICE) if self.sinks else None
        self.token_of = torch.randperm(n + 3, generator=generator)[:n] if self.tokens else torch.arange(n)
        self.buffers = Buffers(
            shape, layers=2, rows=n + 1, pool_rows=n + 1, device=DEVICE, splits=self.splits, mean_splits=self.splits,
            means_length=longest if self.means else 0, tap_length=longest if self.tapped else 0,
        )  # fmt: skip
        poison(self.buffers)
        self.buffers.write_control(self.pool_slots, [self.control(ask) for ask in self.asks])

    def control(self, ask: Ask) -> list[int]:
        words = [0] * layout.CONTROL_WORDS.value
        words[layout.C_ENABLED], words[layout.C_STAMP], words[layout.C_LAYERS] = int(ask.enabled), STAMP, ask.layers
        words[layout.C_PROMPT_LEN], words[layout.C_MASK_PREFIX] = ask.prompt_len, ask.mask_prefix
        words[layout.C_WINDOW], words[layout.C_SINK_TOKENS] = ask.window, SINK_TOKENS
        words[layout.C_TOP_K], words[layout.C_STRIDE], words[layout.C_LIMIT] = ask.top_k, ask.stride, ask.limit
        words[layout.C_HEADS : layout.C_HEADS + 4] = layout.head_words(ask.heads, self.shape.heads)
        return words

    @property
    def layer(self) -> probe.Layer:
        return probe.Layer(1, self.scale, self.cap, self.sliding_window, self.learned)

    @property
    def rows(self) -> probe.Rows:
        lengths = [ask.length for ask in self.asks]
        pool = torch.tensor(self.pool_slots, device=DEVICE)
        tokens = self.token_of.to(DEVICE) if self.tokens else None
        size = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
        if not self.flat:
            return probe.Rows(len(lengths), pool, size, self.table, None, tokens)
        flat = torch.cat([self.table[s, :n] for s, n in zip(self.pool_slots, lengths, strict=True)]).long()
        starts = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=DEVICE)
        return probe.Rows(len(lengths), pool, size, flat, starts, tokens)

    def logits(self, row: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """[H, length]: every key of the row."""
        keys = self.keys[self.table[self.pool_slots[row], : self.asks[row].length].long()]
        query = self.query[int(self.token_of[row])]
        n_kv = self.shape.key_heads
        grouped = query.to(dtype).view(n_kv, self.shape.group, -1)
        s = torch.matmul(grouped, keys.to(dtype).permute(1, 2, 0)).reshape(self.shape.heads, -1) * self.scale
        return self.cap * torch.tanh(s / self.cap) if self.cap else s

    def launch(self) -> None:
        if not self.tapped:
            probe.launch(self.buffers, self.layer, self.rows, self.query, self.keys, block_n=self.block_n)
            return
        assert self.buffers.tap is not None
        for row, ask in enumerate(self.asks):
            lengths = torch.tensor([ask.length])
            logits = self.logits(row, torch.float32)[None]
            tap.store_logits_torch(logits, lengths, self.buffers.tap[row : row + 1])
        probe.launch(self.buffers, self.layer, self.rows)

    def first(self, row: int) -> int:
        ask = self.asks[row]
        first = max(ask.mask_prefix, ask.length - ask.window if ask.window else 0)
        if self.sliding_window > -1:
            first = max(first, ask.length - 1 - self.sliding_window)
        return min(first, ask.length)

    def expected(self, row: int) -> RowStatistics:
        ask, first = self.asks[row], self.first(row)
        heads = list(range(self.shape.heads) if ask.heads is None else ask.heads)
        return row_statistics(
            self.logits(row)[heads, first:], query_position=ask.length - 1, first_key=first, prompt_len=ask.prompt_len,
            sink_tokens=SINK_TOKENS, top_k=ask.top_k, head_statistics=True,
            sink_logits=None if self.learned is None else self.learned[heads].double(),
        )  # fmt: skip

    def found(self, row: int) -> RowStatistics:
        ask = self.asks[row]
        assert self.buffers.heads is not None
        return records.statistics_of(
            self.buffers.records[1, row].cpu().numpy(), first_key=self.first(row), prompt_len=ask.prompt_len,
            sink_tokens=SINK_TOKENS, heads=self.buffers.heads[1, row].cpu().numpy(), selected=ask.heads,
        )  # fmt: skip

    def untouched(self, row: int, layer: int = 1) -> bool:
        return bool((self.buffers.records[layer, row] == POISON).all())

    def check(self, tolerance: float = 1e-5) -> None:
        """Launch, then hold every row against its reference; AssertionError names the row and the statistic."""
        self.launch()
        assert self.untouched(len(self.asks))  # the row behind the last one
        for row, ask in enumerate(self.asks):
            assert self.untouched(row, layer=0)
            if not ask.enabled:
                assert self.untouched(row)
                continue
            assert records.stamp_of(self.buffers.records[1, row].cpu().numpy()) == (STAMP, ask.length), row
            compare(self.found(row), self.expected(row), self.logits(row), self.first(row), tolerance, row)


def compare(
    found: RowStatistics, expected: RowStatistics, logits: torch.Tensor, first: int, tolerance: float, row: int
) -> None:
    def close(name: str, a: Any, b: Any) -> None:
        a, b = torch.as_tensor(a).double().cpu(), torch.as_tensor(b).double().cpu()
        assert a.shape == b.shape, (row, name, a.shape, b.shape)
        # Relative above one: a logsumexp or an entropy in bits grows with the context.
        worst = ((a - b).abs() / b.abs().clamp(min=1)).max().item() if a.numel() else 0.0
        assert math.isfinite(worst), (row, name)
        assert worst <= tolerance, (row, name, worst)

    assert found.heads == expected.heads, row
    for name in ("lse", "entropy_bits", "sink_mass", "histogram", "profile", "probabilities"):
        close(name, getattr(found, name), getattr(expected, name))
    assert found.head_statistics is not None
    assert expected.head_statistics is not None
    for name in ("entropy", "sink", "prev", "lookback"):
        close(name, getattr(found.head_statistics, name), getattr(expected.head_statistics, name))
    assert len(set(found.positions.tolist())) == len(found.positions), row
    assert all(first <= n < logits.shape[1] for n in found.positions.tolist()), row


POISON = 0x7FC00000  # a quiet nan as a float


def poison(buffers: Buffers) -> None:
    """Fill everything that a launch writes, so that what it does not write cannot pass for a result."""
    buffers.records.fill_(POISON)
    buffers.candidates.fill_(2**62)
    for tensor in (buffers.partial, buffers.heads, buffers.means, buffers.tap):
        if tensor is not None:
            tensor.fill_(float("nan"))
