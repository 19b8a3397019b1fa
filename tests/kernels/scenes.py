"""Random paged rows, poisoned outputs, and the float64 reference of what a launch must write."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from geomcli.kernels import layout, probe, row_records, tap
from geomcli.kernels.buffers import Buffers, Layer, Shape
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
    layers: int = 0b10
    gone: int = 0  # keys that have left
    listed: int = 0  # keys that stayed when they left

    @property
    def text(self) -> int:
        return self.length + self.gone


@dataclass
class Scene:
    """Rows over two captured layers, each with keys, queries and parameters of its own.

    Rows ask for the second layer unless they say otherwise, so the first one's records must stay untouched.
    """

    shape: Shape
    asks: list[Ask]
    dtype: torch.dtype = torch.float32
    key_dtype: torch.dtype | None = None
    cap: float = 0.0
    sliding_window: int = -1
    narrow: bool = False  # decode sees one key less of it
    prefill: bool = False
    sinks: bool = False
    flat: bool = False
    tapped: bool = False
    means: bool = False
    tokens: bool = False
    seed: int = 0
    splits: int = 4
    mean_splits: int = 0  # 0: as many
    block_n: int = 64
    scale: float = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)

        def randn(*size: int) -> torch.Tensor:
            return torch.randn(size, generator=generator)

        n, shape = len(self.asks), self.shape
        self.scale = shape.dim**-0.5
        windows = (-1 if self.sliding_window < 0 else self.sliding_window + 5, self.sliding_window)
        decode = [window - 1 if self.narrow else None for window in windows]
        self.layers = (
            Layer(0.7 * self.scale, 0.5 * self.cap, windows[0], decode[0]),
            Layer(self.scale, self.cap, windows[1], decode[1]),
        )
        longest = max(ask.length for ask in self.asks)
        slots = longest + 64
        self.queries = [randn(n + 3, shape.heads, shape.dim).to(self.dtype).to(DEVICE) for _ in self.layers]
        self.keys = [
            randn(slots, shape.key_heads, shape.dim).to(self.key_dtype or self.dtype).to(DEVICE) for _ in self.layers
        ]
        self.pool_slots = [n - i for i in range(n)]  # descending: a row is not its request's slot; slot 0 pads
        self.table = torch.stack([torch.randperm(slots, generator=generator)[:longest] for _ in range(n + 1)])
        self.table = self.table.to(torch.int32).to(DEVICE)
        self.places = [self._places(ask) for ask in self.asks]
        self.learned = randn(len(self.layers), shape.heads).to(DEVICE) if self.sinks else None
        self.token_of = torch.randperm(n + 3, generator=generator)[:n] if self.tokens else torch.arange(n)
        self.buffers = Buffers(
            shape, layers=self.layers, rows=n + 1, pool_rows=n + 1, device=DEVICE, dtype=self.dtype,
            splits=self.splits, mean_splits=self.mean_splits or self.splits, means_length=longest if self.means else 0,
            tap_length=longest if self.tapped else 0,
            places_length=longest if any(ask.gone for ask in self.asks) else 0,
        )  # fmt: skip
        poison(self.buffers)
        if not self.tapped:
            self.buffers.use_keys(self.keys)
        if self.learned is not None:
            self.buffers.learned_sinks.copy_(self.learned)
        if self.buffers.places is not None:
            self.buffers.places.fill_(-1)
            for slot, ask, places in zip(self.pool_slots, self.asks, self.places, strict=True):
                self.buffers.places[slot, : ask.listed] = places[: ask.listed].int().to(DEVICE)
        self.buffers.write_control(self.pool_slots, [self.control(ask) for ask in self.asks])

    def _places(self, ask: Ask) -> torch.Tensor:
        """Where the keys stand: of the oldest some have left, first and last stayed."""
        found = torch.arange(ask.length) + ask.gone
        if ask.gone:
            generator = torch.Generator().manual_seed(self.seed + ask.length)
            order = torch.randperm(ask.listed + ask.gone - 2, generator=generator)[: ask.listed - 1] + 1
            found[: ask.listed] = torch.cat([torch.zeros(1, dtype=torch.int64), order.sort().values])
        return found

    def control(self, ask: Ask) -> list[int]:
        words = [0] * layout.CONTROL_WORDS
        words[layout.C_ENABLED], words[layout.C_STAMP], words[layout.C_LAYERS] = int(ask.enabled), STAMP, ask.layers
        words[layout.C_PROMPT_LEN], words[layout.C_MASK_PREFIX] = ask.prompt_len, ask.mask_prefix
        words[layout.C_WINDOW], words[layout.C_SINK_TOKENS] = ask.window, SINK_TOKENS
        words[layout.C_TOP_K], words[layout.C_STRIDE], words[layout.C_LIMIT] = ask.top_k, ask.stride, ask.limit
        words[layout.C_GONE], words[layout.C_KEPT] = ask.gone, ask.listed
        words[layout.C_HEADS : layout.C_HEADS + 4] = layout.head_words(ask.heads, self.shape.heads)
        return words

    @property
    def rows(self) -> probe.Rows:
        lengths = [ask.length for ask in self.asks]
        pool = torch.tensor(self.pool_slots, device=DEVICE)
        size = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
        if not self.flat:
            return probe.Rows(len(lengths), pool, size, self.table, prefill=self.prefill)
        flat = torch.cat([self.table[s, :n] for s, n in zip(self.pool_slots, lengths, strict=True)]).long()
        starts = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=DEVICE)
        return probe.Rows(len(lengths), pool, size, flat, starts, self.prefill)

    def logits(self, row: int, layer: int = 1, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """[H, length]: every key of the row."""
        keys = self.keys[layer][self.table[self.pool_slots[row], : self.asks[row].length].long()]
        query = self.queries[layer][int(self.token_of[row])]
        n_kv, how = self.shape.key_heads, self.layers[layer]
        grouped = query.to(dtype).view(n_kv, self.shape.group, -1)
        s = torch.matmul(grouped, keys.to(dtype).permute(1, 2, 0)).reshape(self.shape.heads, -1) * how.scale
        return how.logit_cap * torch.tanh(s / how.logit_cap) if how.logit_cap else s

    def launch(self, *, every_key: bool = False) -> None:
        for layer in range(len(self.layers)):
            if self.tapped:
                self._store_logits(layer)
            else:
                query = self.queries[layer]
                tokens = self.token_of.to(DEVICE) if self.tokens else None
                probe.keep_queries(self.buffers, layer, query if self.tokens else query[: len(self.asks)], tokens)
        probe.launch(
            self.buffers, self.rows, tapped=self.tapped, learned_sinks=self.sinks, every_key=every_key,
            block_n=self.block_n, splits=self.splits,
        )  # fmt: skip

    def _store_logits(self, layer: int) -> None:
        assert self.buffers.tap is not None
        for row, ask in enumerate(self.asks):
            logits = self.logits(row, layer, torch.float32)[None]
            tap.store_logits_torch(logits, torch.tensor([ask.length]), self.buffers.tap[layer, row : row + 1])

    def first(self, row: int, layer: int = 1) -> int:
        ask, sliding = self.asks[row], self.layers[layer].sliding_window
        first = max(ask.mask_prefix, ask.text - ask.window if ask.window else 0)
        if sliding > -1:
            first = max(first, ask.text - 1 - sliding + (self.narrow and not self.prefill))
        return min(first, ask.text)

    def expected(self, row: int, layer: int = 1) -> RowStatistics:
        ask, first = self.asks[row], self.first(row, layer)
        heads = list(range(self.shape.heads) if ask.heads is None else ask.heads)
        places = self.places[row]
        return row_statistics(
            self.logits(row, layer)[heads][:, places >= first], query_position=ask.text - 1, first_key=first,
            prompt_len=ask.prompt_len, sink_tokens=SINK_TOKENS, top_k=ask.top_k, head_statistics=not ask.gone,
            places=places[places >= first].to(DEVICE) if ask.gone else None,
            sink_logits=None if self.learned is None else self.learned[layer, heads].double(),
        )  # fmt: skip

    def found(self, row: int, layer: int = 1) -> RowStatistics:
        ask = self.asks[row]
        assert self.buffers.heads is not None
        return row_records.statistics_of(
            self.buffers.records[layer, row].cpu().numpy(), first_key=self.first(row, layer),
            prompt_len=ask.prompt_len, sink_tokens=SINK_TOKENS,
            heads=self.buffers.heads[layer, row].cpu().numpy(), selected=ask.heads,
        )  # fmt: skip

    def untouched(self, row: int, layer: int = 1) -> bool:
        return bool((self.buffers.records[layer, row] == POISON).all())

    def check(self, tolerance: float = 1e-5) -> None:
        """Launch, then hold every row against its reference; AssertionError names the row and the statistic."""
        self.launch()
        assert self.untouched(len(self.asks))  # the row behind the last one
        for row, ask in enumerate(self.asks):
            for layer in range(len(self.layers)):
                if not ask.enabled or not ask.layers >> layer & 1:
                    assert self.untouched(row, layer)
                    continue
                where = (row, layer)
                found, expected = self.found(row, layer), self.expected(row, layer)
                stamp = row_records.stamp_of(self.buffers.records[layer, row].cpu().numpy())
                assert stamp == (STAMP, ask.text), where
                assert self.buffers.records[layer, row, layout.R_KEPT] == ask.length
                seen = set(self.places[row][self.places[row] >= self.first(row, layer)].tolist())
                compare(found, expected, seen, tolerance, where)


def compare(found: RowStatistics, expected: RowStatistics, seen: set[int], tolerance: float, row: Any) -> None:
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
    for name in ("entropy", "sink", "prev", "lookback") if expected.head_statistics is not None else ():
        close(name, getattr(found.head_statistics, name), getattr(expected.head_statistics, name))
    assert len(set(found.positions.tolist())) == len(found.positions), row
    assert seen.issuperset(found.positions.tolist()), row


POISON = 0x7FC00000  # a quiet nan as a float


def poison(buffers: Buffers) -> None:
    """Fill everything that a launch writes, so that what it does not write cannot pass for a result."""
    buffers.records.fill_(POISON)
    buffers.candidates.fill_(2**62)
    for tensor in (buffers.queries, buffers.partial, buffers.heads, buffers.means, buffers.tap):
        if tensor is not None:
            tensor.fill_(float("nan"))
