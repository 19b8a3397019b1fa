"""One rank of tests/kernels/test_ranks.py: computes its own heads, merges with the others, checks what it then has."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from geomcli.kernels import derotated_links, layout, probe, ranks, row_records
from geomcli.kernels.buffers import Buffers, Shape
from geomcli.kernels.derotation import Rope, link_scores
from tests.kernels.scenes import DEVICE, STAMP, Ask, Scene, compare, poison

ASKS = [
    Ask(90, prompt_len=60, layers=0b11),
    Ask(70, heads=(0,)),  # no head of it on the last rank
    Ask(200, mask_prefix=20, window=100, top_k=64),
    Ask(50, top_k=0),
    Ask(3, top_k=16),
    Ask(40, enabled=False),
]


def local_launch(scene: Scene, rank: int, size: int) -> tuple[Buffers, list[torch.Tensor]]:
    """What this rank's server would have computed: the statistics of its own heads only; and its keys."""
    whole = scene.shape
    heads, key_heads = whole.heads // size, max(1, whole.key_heads // size)
    mine = slice(rank * heads, (rank + 1) * heads)
    keys = slice(rank * key_heads, (rank + 1) * key_heads) if whole.key_heads >= size else slice(0, 1)
    longest = max(ask.length for ask in scene.asks)
    n = len(scene.asks)
    buffers = Buffers(
        Shape(heads, key_heads, whole.dim), layers=scene.layers, rows=n + 1, pool_rows=n + 1, device=DEVICE,
        means_length=longest, splits=2, mean_splits=2,
    )  # fmt: skip
    poison(buffers)
    local_keys = [k[:, keys].contiguous() for k in scene.keys]
    buffers.use_keys(local_keys)
    if scene.learned is not None:
        buffers.learned_sinks.copy_(scene.learned[:, mine])
    control = []
    for ask in scene.asks:
        words = scene.control(ask)
        local = None if ask.heads is None else tuple(h - mine.start for h in ask.heads if mine.start <= h < mine.stop)
        words[layout.C_HEADS : layout.C_HEADS + 4] = layout.head_words(local, heads)
        control.append(words)
    buffers.write_control(scene.pool_slots, control)
    for layer, query in enumerate(scene.queries):
        probe.keep_queries(buffers, layer, query[:n, mine])
    probe.launch(buffers, scene.rows, learned_sinks=scene.sinks)
    return buffers, local_keys  # the buffers hold only the first one


def run(rank: int, size: int, store: str, shape: list[int], variant: dict[str, Any], sick: int) -> None:
    """AssertionError where the merged statistics are not those of all heads; `sick`: the rank that failed, -1 none."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    scene = Scene(Shape(*shape), ASKS, **variant)
    buffers, keys = local_launch(scene, rank, size)
    n = len(scene.asks)
    found = buffers.records[:, :n].clone()
    linked = [row for row, ask in enumerate(scene.asks) if ask.top_k and ask.enabled]
    pool = torch.tensor(scene.pool_slots)[linked]
    longest = max(ask.length for ask in scene.asks)
    ranks.merge_links(buffers, found, torch.tensor(linked), pool, longest, dist.group.WORLD, prefill=scene.prefill)
    ranks.merge_sums(found, healthy=rank != sick, group=dist.group.WORLD)
    assert buffers.heads is not None
    heads = ranks.gather_heads(buffers.heads[:, :n].clone(), dist.group.WORLD)
    assert heads.shape[2] == scene.shape.heads
    for row, ask in enumerate(scene.asks):
        for layer in (0, 1):
            if not ask.enabled or not ask.layers >> layer & 1:
                continue
            stamp = row_records.stamp_of(found[layer, row].numpy())
            if sick >= 0:
                assert stamp.request == ranks.UNHEALTHY_STAMP
                continue
            assert stamp == (STAMP, ask.length)
            first = scene.first(row, layer)
            statistics = row_records.statistics_of(
                found[layer, row].numpy(), first_key=first, prompt_len=ask.prompt_len, sink_tokens=4,
                heads=heads[layer, row].numpy(), selected=ask.heads,
            )  # fmt: skip
            where = (rank, row, layer)
            compare(statistics, scene.expected(row, layer), set(range(first, ask.length)), 1e-5, where)
    check_derotated(scene, buffers, found, linked, sick=sick >= 0)
    mine = torch.full((1, n, 3), float(rank))
    ranks.share(mine, group=dist.group.WORLD)
    assert (mine == 0).all()
    del keys
    dist.destroy_process_group()


def check_derotated(scene: Scene, buffers: Buffers, found: torch.Tensor, rows: list[int], *, sick: bool) -> None:
    """Scores of the merged links by this rank's heads, merged in turn, against all heads in float64."""
    angles = torch.outer(torch.arange(200.0), 100.0 ** -(torch.arange(0, 16, 2) / 16))
    rope = Rope(torch.cat([angles.cos(), angles.sin()], dim=1), False)
    local = derotated_links.launch(
        buffers, found, ropes=[(rope, torch.arange(2))], chosen=torch.tensor(rows), pool=scene.rows.pool,
        slots=scene.table,
    )  # fmt: skip
    merged = ranks.merge_derotated(local, dist.group.WORLD)
    assert merged[:, :, :2].isfinite().all()
    for at, row in enumerate(rows):
        ask, first = scene.asks[row], scene.first(row, 1)
        positions = found[1, row, layout.R_POSITIONS :][: int(found[1, row, layout.R_LINKS])].long()
        if sick:
            assert (merged[1, at, :2] == 0).all()
            continue
        heads = list(range(scene.shape.heads) if ask.heads is None else ask.heads)
        keys = scene.keys[1][scene.table[scene.pool_slots[row], positions].long()]
        logits = scene.logits(row, 1)[heads, first:]
        if scene.learned is not None:
            logits = torch.cat([logits, scene.learned[1, heads, None]], dim=1)
        expected = link_scores(
            scene.queries[1][row, heads].double(),
            keys[:, [head // scene.shape.group for head in heads]].double(),
            query_position=ask.length - 1, positions=positions, rope=Rope(rope.table.double(), False),
            scale=scene.scale, lse=torch.logsumexp(logits, dim=1),
        )  # fmt: skip
        assert (merged[1, at, :2, : len(positions)] - expected).abs().max() <= 2e-5, row
