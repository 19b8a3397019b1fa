"""Content and position scores of links against float64, where a rotation is a product of complex numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from geomcli.kernels import derotated_links, layout, probe, row_records
from geomcli.kernels.buffers import Shape
from geomcli.kernels.derotation import Rope, derotated, link_scores
from tests.kernels.scenes import DEVICE, STAMP, Ask, Scene

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")

ASKS = [
    Ask(1, layers=0b11),
    Ask(30, layers=0b11),
    Ask(120, top_k=64),
    Ask(90, mask_prefix=50, window=30),
    Ask(20, mask_prefix=20),  # every key masked
    Ask(40, heads=(1, 2, 7)),
    Ask(30, enabled=False),
]
GQA = Shape(9, 3, 64)


def angles(dim: int, positions: int, kind: str = "default") -> NDArray[np.float64]:
    """Rotation angle [positions, dim / 2] by the formulas of the embeddings' papers."""
    frequency = 10_000.0 ** (-np.arange(0, dim, 2) / dim)
    if kind == "llama3":  # factor 8, low 1, high 4, 32 positions at first
        wavelength = 2 * math.pi / frequency
        smooth = np.clip((32 / wavelength - 1) / (4 - 1), 0, 1)
        frequency = smooth * frequency + (1 - smooth) * frequency / 8
    if kind == "linear":
        frequency = frequency / 4
    return np.outer(np.arange(positions), frequency)


def rope_of(turn: NDArray[np.float64], *, interleaved: bool, factor: float = 1.0, dtype: Any = torch.float32) -> Rope:
    table = factor * np.concatenate([np.cos(turn), np.sin(turn)], axis=1)
    return Rope(torch.from_numpy(table).to(dtype).to(DEVICE), interleaved)


def turned(x: NDArray[np.float64], turn: NDArray[np.float64], *, interleaved: bool) -> NDArray[np.float64]:
    """x [n, heads, D] with its first columns rotated by the angles turn [n, dim / 2]."""
    half = turn.shape[1]
    one, two = (x[..., 0 : 2 * half : 2], x[..., 1 : 2 * half : 2]) if interleaved else (
        x[..., :half], x[..., half : 2 * half])  # fmt: skip
    z = (one + 1j * two) * np.exp(1j * turn)[:, None]
    parts = np.stack([z.real, z.imag], axis=-1) if interleaved else np.stack([z.real, z.imag], axis=-2)
    return np.concatenate([parts.reshape(*x.shape[:-1], 2 * half), x[..., 2 * half :]], axis=-1)


def scores(scene: Scene, row: int, layer: int, turn: NDArray[np.float64], *, interleaved: bool) -> NDArray[np.float64]:
    """[2, length]: content and position of every key that counts, from scratch."""
    ask, how = scene.asks[row], scene.layers[layer]
    heads = list(range(scene.shape.heads) if ask.heads is None else ask.heads)
    m, first = ask.length - 1, scene.first(row, layer)
    slots = scene.table[scene.pool_slots[row], first : ask.length].long()
    q = scene.queries[layer][int(scene.token_of[row])][None].double().cpu().numpy()
    k = scene.keys[layer][slots].double().cpu().numpy()
    unturned = (
        turned(q, -turn[m : m + 1], interleaved=interleaved), turned(k, -turn[first : m + 1], interleaved=interleaved)
    )  # fmt: skip

    def logits(q: NDArray[np.float64], k: NDArray[np.float64]) -> NDArray[np.float64]:
        s = np.array([k[:, h // scene.shape.group] @ q[0, h] for h in heads]) * how.scale
        return how.logit_cap * np.tanh(s / how.logit_cap) if how.logit_cap else s

    s, content = logits(q, k), logits(*unturned)
    lse = np.logaddexp.reduce(s, axis=1)
    if scene.learned is not None:
        lse = np.logaddexp(lse, scene.learned[layer, heads].double().cpu().numpy())
    p = np.exp(s - lse[:, None])
    share = p / p.sum(axis=0)
    return np.stack([(share * content).sum(axis=0), (share * (s - content)).sum(axis=0)])


def plant(scene: Scene) -> None:
    """Queries, per-head logsumexp and records as the launches of a step would have left them, by the reference."""
    for layer in range(len(scene.layers)):
        tokens = scene.token_of.to(DEVICE)
        scene.buffers.queries[layer, : len(scene.asks)].copy_(scene.queries[layer][tokens])
        for row, ask in enumerate(scene.asks):
            if not ask.enabled or not ask.layers >> layer & 1:
                continue
            record = row_records.encode(scene.expected(row, layer), stamp=STAMP, length=ask.length)
            scene.buffers.records[layer, row] = torch.from_numpy(record).to(DEVICE)
            s = scene.logits(row, layer)[:, scene.first(row, layer) :]
            if scene.learned is not None:
                s = torch.cat([s, scene.learned[layer][:, None]], dim=1)
            assert scene.buffers.heads is not None
            scene.buffers.heads[layer, row, :, layout.H_LSE] = torch.logsumexp(s, dim=1)
    scene.buffers.use_keys(scene.keys)


def launch(scene: Scene, rope: Rope, rows: list[int]) -> torch.Tensor:
    return derotated_links.launch(
        scene.buffers, scene.buffers.records, ropes=[(rope, torch.arange(len(scene.layers), device=DEVICE))],
        chosen=torch.tensor(rows, device=DEVICE), pool=scene.rows.pool, slots=scene.table,
    )  # fmt: skip


def check(scene: Scene, *, dim: int, interleaved: bool = False, kind: str = "default", tolerance: float = 2e-5,
          **table: Any) -> None:  # fmt: skip
    turn = angles(dim, 400, kind)
    plant(scene)
    rows = [5, 1, 0, 2, 3, 4, 6]  # in an order of their own
    found = launch(scene, rope_of(turn, interleaved=interleaved, **table), rows).double().cpu().numpy()
    assert np.isfinite(found[:, :, :2]).all()
    for at, row in enumerate(rows):
        ask = scene.asks[row]
        for layer in range(2):
            mine = found[layer, at]
            if not ask.enabled or not ask.layers >> layer & 1:
                assert (mine[:2] == 0).all()
                continue
            record = scene.buffers.records[layer, row].cpu()
            links = int(record[layout.R_LINKS])
            positions = record[layout.R_POSITIONS : layout.R_POSITIONS + links].numpy()
            expected = scores(scene, row, layer, turn, interleaved=interleaved)[:, positions - scene.first(row, layer)]
            worst = np.abs(mine[:2, :links] - expected).max(initial=0.0)
            assert worst <= tolerance, (row, layer, worst)
            assert (mine[:2, links:] == 0).all()
            own = positions == ask.length - 1
            assert np.abs(mine[layout.D_POSITION, :links][own]).max(initial=0.0) <= tolerance
    assert np.abs(found[1, :, layout.D_POSITION]).max() > 0.3  # the rotation does something


@pytest.mark.parametrize("interleaved", [False, True], ids=["neox", "interleaved"])
@pytest.mark.parametrize(("dim", "kind"), [(64, "default"), (64, "llama3"), (24, "default"), (48, "linear")])
def test_scores_equal_float64(dim: int, kind: str, interleaved: bool) -> None:
    check(Scene(GQA, ASKS), dim=dim, kind=kind, interleaved=interleaved)


@pytest.mark.parametrize("tapped", [False, True], ids=["probe", "tap"])
def test_behind_the_launches_of_a_step(tapped: bool) -> None:
    scene, turn = Scene(GQA, [Ask(60, mask_prefix=9), Ask(40, top_k=40)], tapped=tapped, sinks=True), angles(64, 60)
    scene.launch()
    if tapped:
        scene.buffers.use_keys(scene.keys)
        for layer, queries in enumerate(scene.queries):
            probe.keep_queries(scene.buffers, layer, queries[:2])
    found = launch(scene, rope_of(turn, interleaved=False), [1, 0])[1].double().cpu().numpy()
    for row in (0, 1):
        positions = scene.found(row).positions.numpy()
        expected = scores(scene, row, 1, turn, interleaved=False)[:, positions - scene.first(row)]
        assert np.abs(found[1 - row, :2, : len(positions)] - expected).max() <= 2e-5


@pytest.mark.parametrize(
    "variant",
    [{"cap": 3.0}, {"sinks": True}, {"tokens": True}, {"sliding_window": 40}],
    ids=["soft-cap", "learned-sinks", "rows-of-a-prefill", "sliding-window"],
)
def test_variants_of_a_layer(variant: dict[str, Any]) -> None:
    check(Scene(GQA, ASKS, **variant), dim=64)


@pytest.mark.parametrize("shape", [Shape(8, 8, 32), Shape(40, 2, 64), Shape(8, 1, 80), Shape(8, 4, 256)], ids=str)
def test_shapes_of_heads(shape: Shape) -> None:
    check(Scene(shape, ASKS), dim=shape.dim // 4)
    check(Scene(shape, ASKS), dim=shape.dim)


def test_the_factor_of_a_table_stays_in_the_scores() -> None:
    check(Scene(GQA, ASKS), dim=64, factor=1.3)


@pytest.mark.parametrize(
    ("dtype", "key_dtype"), [(torch.bfloat16, None), (torch.float16, None), (torch.bfloat16, torch.float8_e4m3fn)]
)
def test_half_precision_and_fp8_keys(dtype: torch.dtype, key_dtype: torch.dtype | None) -> None:
    check(Scene(GQA, ASKS, dtype=dtype, key_dtype=key_dtype), dim=64)


def test_layers_with_embeddings_of_their_own() -> None:
    scene = Scene(GQA, [Ask(80, layers=0b11)])
    plant(scene)
    turns = [angles(64, 100), angles(32, 100, "llama3")]
    ropes = [
        (rope_of(turns[0], interleaved=False), torch.tensor([0], device=DEVICE)),
        (rope_of(turns[1], interleaved=True), torch.tensor([1], device=DEVICE)),
    ]
    found = derotated_links.launch(
        scene.buffers, scene.buffers.records, ropes=ropes, chosen=torch.tensor([0], device=DEVICE),
        pool=scene.rows.pool, slots=scene.table,
    )  # fmt: skip
    for layer, interleaved in ((0, False), (1, True)):
        record = scene.buffers.records[layer, 0].cpu()
        positions = record[layout.R_POSITIONS :][: int(record[layout.R_LINKS])].numpy()
        expected = scores(scene, 0, layer, turns[layer], interleaved=interleaved)[:, positions]
        assert np.abs(found[layer, 0, :2, : len(positions)].double().cpu().numpy() - expected).max() <= 2e-5


def test_a_record_of_another_request_is_not_read() -> None:
    scene = Scene(GQA, [Ask(80), Ask(50)])
    plant(scene)
    scene.buffers.records[1, 0, layout.R_STAMP] += 1
    found = launch_again(scene)
    assert (found[1, 0, :2] == 0).all()
    assert (found[1, 1, 0] != 0).any()


def launch_again(scene: Scene) -> torch.Tensor:
    return derotated_links.launch(
        scene.buffers, scene.buffers.records, ropes=[(rope_of(angles(64, 100), interleaved=False),
        torch.tensor([1], device=DEVICE))], chosen=torch.tensor([0, 1], device=DEVICE), pool=scene.rows.pool,
        slots=scene.table,
    )  # fmt: skip


def test_no_score_depends_on_a_masked_key() -> None:
    scene = Scene(GQA, [Ask(200, prompt_len=150, mask_prefix=64)])
    rope = rope_of(angles(64, 200), interleaved=False)
    plant(scene)
    before = launch(scene, rope, [0])[1]
    scene.keys[1][scene.table[scene.pool_slots[0], :64].long()] = float("nan")
    assert torch.equal(launch(scene, rope, [0])[1], before)


@pytest.mark.parametrize("interleaved", [False, True], ids=["neox", "interleaved"])
def test_the_reference_equals_float64(interleaved: bool) -> None:
    """The torch path of engines without Triton, in float64 and in float32."""
    scene, turn, row = Scene(GQA, ASKS), angles(48, 400), 2
    slots = scene.table[scene.pool_slots[row], : ASKS[row].length].long()
    expected = scores(scene, row, 1, turn, interleaved=interleaved)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        rope = rope_of(turn, interleaved=interleaved, dtype=dtype)
        logits = scene.logits(row, 1)
        found = link_scores(
            scene.queries[1][row].to(dtype), scene.keys[1][slots].to(dtype), query_position=ASKS[row].length - 1,
            positions=torch.arange(ASKS[row].length, device=DEVICE), rope=rope, scale=scene.scale,
            lse=torch.logsumexp(logits, dim=1),
        )  # fmt: skip
        assert np.abs(found.double().cpu().numpy() - expected).max() <= tolerance
    x = np.random.default_rng(0).normal(size=(400, 3, 64))
    there = torch.from_numpy(turned(x, turn, interleaved=interleaved))
    table = rope_of(turn, interleaved=interleaved, dtype=torch.float64).table.cpu()
    back = derotated(there, torch.arange(400), Rope(table, interleaved))
    assert np.abs(back.numpy() - x).max() <= 1e-12


def test_buffers_that_do_not_know_enough_are_refused() -> None:
    scene = Scene(GQA, [Ask(10)])
    scene.buffers.keys = None
    with pytest.raises(ValueError, match="know the keys"):
        launch_again(scene)
