"""Nothing that is published of a row depends on a masked key, bit for bit: kernels, stored logits and plain torch."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from geomcli.kernels import layout, row_records
from geomcli.kernels.buffers import Shape
from geomcli.kernels.reference import row_statistics
from geomcli.server_patch.answers import Answer
from geomcli.server_patch.building import build
from geomcli.server_patch.native import logits_of
from geomcli.server_patch.request_options import CaptureOptions
from geomcli.server_patch.server_options import Mode
from geomcli.server_patch.values import CAPTURED, Token
from tests.kernels.scenes import SINK_TOKENS, STAMP, Ask, Scene

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")

SHAPE = Shape(6, 2, 16)
Made = tuple[NDArray[np.int32], NDArray[np.float32]]  # records [2 layers, words], head statistics [1, 4, H]
MODES: tuple[Mode, ...] = ("raw", "sketch", "fingerprint")


def options(ask: Ask, mode: Mode) -> CaptureOptions:
    return CaptureOptions(
        mode=mode, top_k=0 if mode == "fingerprint" else ask.top_k, layers=(1,), heads=ask.heads,
        heads_total=SHAPE.heads, mask_prefix=ask.mask_prefix, stride=1, limit=0, window=ask.window,
        sink_tokens=SINK_TOKENS, head_stats=True, prompt_tokens=False,
    )  # fmt: skip


def computed_again(scene: Scene, chunk: int) -> Made:
    """Records [2 layers] and statistics of heads as the torch_native backend makes them."""
    ask, first = scene.asks[0], scene.first(0)
    slots = scene.table[scene.pool_slots[0], first : ask.length].long()
    query = scene.queries[1][int(scene.token_of[0])]
    statistics = row_statistics(
        logits_of(query, scene.keys[1], slots, scene.scale, heads=ask.heads, chunk=chunk),
        query_position=ask.length - 1, first_key=first, prompt_len=ask.prompt_len, sink_tokens=SINK_TOKENS,
        top_k=ask.top_k, head_statistics=True,
    )  # fmt: skip
    words = np.zeros((2, layout.RECORD_WORDS), dtype=np.int32)
    words[1] = row_records.encode(statistics, stamp=STAMP, length=ask.length)
    assert statistics.head_statistics is not None
    return words, row_records.heads_array(statistics.head_statistics)[None]


def by_kernels(scene: Scene) -> Made:
    scene.buffers.records.zero_()
    scene.launch()
    found = scene.found(0)
    assert found.head_statistics is not None
    return scene.buffers.records[:, 0].cpu().numpy(), row_records.heads_array(found.head_statistics)[None]


def published(scene: Scene, source: str) -> list[dict[str, Any]]:
    """The entries of the scene's row, one for each mode."""
    records, heads = computed_again(scene, chunk=256) if source == "recompute" else by_kernels(scene)
    ask, entries = scene.asks[0], []
    for mode in MODES:
        encoded = msgspec.json.encode(options(ask, mode)).decode()
        step = ask.length - ask.prompt_len + 1
        token = Token(step, 7, CAPTURED, STAMP, ask.prompt_len, (), records, heads)
        ((value,),) = build([(Answer(encoded, ask.prompt_len), [token])], (0, 1))
        entries.append(orjson.loads(b"{" + value.body + b"}"))
        assert not value.failed
    return entries


def positions(entry: dict[str, Any]) -> list[int]:
    hubs = entry.get("layer_sketches", {}).get("1", {}).get("top_hubs", [])
    return [*entry.get("token_positions", []), *(position for position, _ in hubs)]


@pytest.mark.parametrize("source", ["recompute", "probe", "tap"])
@settings(max_examples=8, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(
    length=st.integers(2, 140), masked=st.integers(1, 160), window=st.sampled_from([0, 20]),
    heads=st.sampled_from([None, (0, 4, 5)]), top_k=st.sampled_from([1, 16, 64]), prompt=st.integers(0, 3),
    value=st.sampled_from([0.0, 1e30, -1e30, math.inf, -math.inf, math.nan, None]), seed=st.integers(0, 9999),
)  # fmt: skip
def test_no_bit_that_is_published_depends_on_a_masked_key(
    source: str, length: int, masked: int, window: int, heads: tuple[int, ...] | None, top_k: int, prompt: int,
    value: float | None, seed: int,
) -> None:  # fmt: skip
    ask = Ask(
        length, prompt_len=max(1, length - prompt), mask_prefix=masked, window=window, top_k=top_k, heads=heads
    )  # fmt: skip
    scene = Scene(SHAPE, [ask], tapped=source == "tap", seed=seed)
    before = published(scene, source)
    hidden = scene.table[scene.pool_slots[0], : min(masked, length)].long()
    for keys in scene.keys:
        keys[hidden] = torch.randn_like(keys[hidden]) * 9 if value is None else value
    assert published(scene, source) == before
    for entry in before:
        assert "masked" in entry["flags"]
        assert all(position >= masked for position in positions(entry))
    assert len(positions(before[0])) == max(0, min(top_k, length - scene.first(0)))


def test_a_key_that_is_not_masked_does_matter() -> None:
    scene = Scene(SHAPE, [Ask(50, prompt_len=49, mask_prefix=10)])
    before = [published(scene, source) for source in ("recompute", "probe")]
    scene.keys[1][scene.table[scene.pool_slots[0], 10].long()] += 1
    assert all(published(scene, source) != old for source, old in zip(("recompute", "probe"), before, strict=True))


@pytest.mark.parametrize("chunk", [256, 2048, 16384])
@pytest.mark.parametrize("source", ["recompute", "probe", "tap"])
def test_any_chunk_size_gives_the_same_numbers(source: str, chunk: int) -> None:
    from geomcli.kernels.probe import splits_for

    asks = [Ask(700, prompt_len=690, mask_prefix=3, top_k=16), Ask(5, top_k=3)]
    scene = Scene(SHAPE, asks, tapped=source == "tap", splits=splits_for(chunk), mean_splits=4)
    if source != "recompute":
        scene.check()
        return
    records, _ = computed_again(scene, chunk)
    found = row_records.statistics_of(
        np.frombuffer(records, dtype=np.int32).reshape(2, -1)[1], first_key=3, prompt_len=690, sink_tokens=SINK_TOKENS
    )
    expected = scene.expected(0)
    assert found.positions.tolist() == expected.positions.tolist()
    for name in ("lse", "entropy_bits", "sink_mass", "histogram", "probabilities"):
        a, b = (torch.as_tensor(getattr(one, name)).double().cpu() for one in (found, expected))
        assert torch.allclose(a, b, atol=1e-5), name


def test_parts_are_no_larger_than_asked_for_a_row_of_16384_keys() -> None:
    from geomcli.kernels.probe import splits_for

    assert [splits_for(chunk) for chunk in (256, 300, 512, 2048, 2049, 4096, 16384)] == [64, 64, 32, 8, 8, 4, 1]
