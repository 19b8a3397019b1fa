"""The kernels against the float64 reference, for every shape, source and control that the plugin uses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from geomcli.kernels import columns, layout, probe, tap
from geomcli.kernels.buffers import Buffers, Layer, Shape
from tests.kernels.scenes import DEVICE, Ask, Scene

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")

SHAPES = {"MHA": Shape(4, 4, 64), "GQA": Shape(9, 3, 64), "MQA": Shape(6, 1, 32), "wide group": Shape(40, 2, 64)}
LENGTHS = [Ask(1), Ask(2), Ask(5, prompt_len=3), Ask(64), Ask(65, prompt_len=60), Ask(333, prompt_len=300)]


@pytest.mark.parametrize("source", ["table", "flat", "tap"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_statistic_equals_the_float64_reference(shape: str, source: str) -> None:
    Scene(SHAPES[shape], LENGTHS, flat=source == "flat", tapped=source == "tap").check()


@pytest.mark.parametrize("tapped", [False, True], ids=["probe", "tap"])
@pytest.mark.parametrize(
    "variant",
    [{"cap": 5.0}, {"sinks": True}, {"cap": 3.0, "sinks": True}, {"tokens": True}, {"means": True}],
    ids=["soft-cap", "learned-sinks", "both", "rows-of-a-prefill", "means"],
)
def test_variants_of_a_layer(variant: dict[str, Any], tapped: bool) -> None:
    Scene(SHAPES["GQA"], LENGTHS, tapped=tapped, **variant).check()


def test_sliding_window_of_a_layer() -> None:
    Scene(SHAPES["GQA"], LENGTHS, sliding_window=40).check()


@pytest.mark.parametrize("prefill", [False, True])
def test_a_window_that_is_narrower_in_decode_than_in_prefill(prefill: bool) -> None:
    Scene(SHAPES["GQA"], LENGTHS, sliding_window=40, narrow=True, prefill=prefill).check()


@pytest.mark.parametrize("variant", [{}, {"cap": 4.0, "sinks": True}, {"sliding_window": 9}, {"tapped": True}])
def test_layers_have_keys_and_parameters_of_their_own(variant: dict[str, Any]) -> None:
    asks = [Ask(80, layers=0b11), Ask(50, layers=0b01), Ask(60, layers=0b10)]
    Scene(SHAPES["GQA"], asks, **variant).check()


@pytest.mark.parametrize("tapped", [False, True], ids=["probe", "tap"])
def test_what_a_request_can_ask_for(tapped: bool) -> None:
    asks = [
        Ask(200, mask_prefix=50),
        Ask(200, window=30),
        Ask(200, mask_prefix=190, window=30),
        Ask(20, mask_prefix=20),  # every key masked
        Ask(20, mask_prefix=500),
        Ask(300, heads=(0,)),
        Ask(300, heads=(2, 3, 8)),
        Ask(300, top_k=0),
        Ask(30, top_k=64),
        Ask(500, top_k=64),
        Ask(100, enabled=False),
    ]
    Scene(SHAPES["GQA"], asks, tapped=tapped).check()


@pytest.mark.parametrize(
    ("ask", "due"),
    [
        (Ask(100, prompt_len=100, stride=3), True),  # the first token is captured whatever the stride
        (Ask(101, prompt_len=100, stride=3), False),
        (Ask(103, prompt_len=100, stride=3), True),
        (Ask(103, prompt_len=100, stride=3, limit=2), True),
        (Ask(106, prompt_len=100, stride=3, limit=2), False),
        (Ask(99, prompt_len=100), False),  # a chunk in the middle of a prompt
        (Ask(100, prompt_len=100, layers=0b01), False),  # the other layer only
    ],
)
def test_steps_and_layers_that_were_not_asked_for_are_not_written(ask: Ask, due: bool) -> None:
    scene = Scene(SHAPES["MQA"], [ask, Ask(10)])
    scene.launch()
    assert scene.untouched(0) is not due
    assert not scene.untouched(1)


@pytest.mark.parametrize("source", ["table", "flat", "tap"])
@pytest.mark.parametrize("block_n", [16, 64])
def test_keys_that_have_left_leave_the_others_where_they_stand(source: str, block_n: int) -> None:
    asks = [
        Ask(120, gone=300, listed=80, prompt_len=200),
        Ask(90, gone=40, listed=60, prompt_len=20, top_k=64),
        Ask(70, gone=1, listed=64, prompt_len=71),
        Ask(333, gone=900, listed=300, prompt_len=1000, top_k=0),
        Ask(120, gone=300, listed=80, mask_prefix=150, prompt_len=200),
        Ask(120, gone=300, listed=80, window=60, prompt_len=200),
        Ask(120, gone=300, listed=80, window=330, mask_prefix=100, prompt_len=200),
        Ask(60, prompt_len=20),
    ]
    Scene(SHAPES["GQA"], asks, flat=source == "flat", tapped=source == "tap", block_n=block_n).check()


@pytest.mark.parametrize(("stride", "limit", "due"), [(1, 0, True), (3, 0, True), (4, 0, False), (3, 9, False)])
def test_a_row_is_due_by_the_length_of_its_text(stride: int, limit: int, due: bool) -> None:
    scene = Scene(SHAPES["MQA"], [Ask(80, gone=50, listed=40, prompt_len=100, stride=stride, limit=limit), Ask(10)])
    scene.launch()
    assert scene.untouched(0) is not due


def test_latent_keys_of_mla() -> None:
    Scene(Shape(16, 1, 576), [Ask(40), Ask(150, prompt_len=100, mask_prefix=7)], flat=True).check()


@pytest.mark.parametrize("dim", [16, 80, 96, 128, 192, 256])
def test_widths_of_a_head(dim: int) -> None:
    Scene(Shape(4, 2, dim), [Ask(70)]).check()


@pytest.mark.parametrize(
    ("dtype", "key_dtype"),
    [
        (torch.bfloat16, None),
        (torch.float16, None),
        (torch.bfloat16, torch.float8_e4m3fn),
        (torch.float16, torch.float8_e5m2),
    ],
)
def test_half_precision_and_fp8_keys(dtype: torch.dtype, key_dtype: torch.dtype | None) -> None:
    # Products of 16-bit numbers are exact in float32, so the sums are as good as those of float32 inputs.
    Scene(SHAPES["GQA"], LENGTHS, dtype=dtype, key_dtype=key_dtype).check(tolerance=2e-5)


def test_beyond_131072_keys() -> None:
    # No links here: in the interpreter their search over every key takes minutes.
    wide = 4096 if DEVICE == "cpu" else 64  # more keys than a multiprocessor's memory holds at a time
    scene = Scene(Shape(1, 1, 16), [Ask(131_200, prompt_len=131_000, top_k=0)], splits=8, block_n=wide)
    scene.check()
    assert scene.expected(0).histogram[15] > 0


@settings(max_examples=10, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(
    group=st.integers(1, 20),
    key_heads=st.integers(1, 3),
    dim=st.sampled_from([16, 32, 48, 64]),
    asks=st.lists(
        st.builds(
            Ask,
            length=st.integers(1, 300),
            enabled=st.booleans(),
            prompt_len=st.just(1),
            mask_prefix=st.integers(0, 80),
            window=st.sampled_from([0, 1, 7, 64]),
            top_k=st.sampled_from([0, 1, 16, 64]),
        ),
        min_size=1,
        max_size=4,
    ),
    cap=st.sampled_from([0.0, 2.0]),
    sliding_window=st.sampled_from([-1, 0, 63]),
    sinks=st.booleans(),
    flat=st.booleans(),
    splits=st.sampled_from([2, 4, 8]),
    seed=st.integers(0, 99),
)
def test_drawn_shapes(group: int, key_heads: int, dim: int, **scene: Any) -> None:
    Scene(Shape(group * key_heads, key_heads, dim), **scene).check()


def test_no_number_depends_on_a_masked_key() -> None:
    scene = Scene(SHAPES["GQA"], [Ask(200, prompt_len=150, mask_prefix=64)])
    scene.launch()
    assert scene.buffers.heads is not None
    published = [scene.buffers.records[1, 0], scene.buffers.heads[1, 0].view(torch.int32)]
    before = [words.clone() for words in published]
    scene.keys[1][scene.table[scene.pool_slots[0], :64].long()] = float("nan")
    scene.launch()
    assert all(torch.equal(words, old) for words, old in zip(published, before, strict=True))


def test_links_among_thousands_of_keys() -> None:
    Scene(Shape(1, 1, 16), [Ask(5000, prompt_len=10, top_k=64)]).check()


def test_ties_go_to_the_earlier_position() -> None:
    scene = Scene(SHAPES["MQA"], [Ask(200, top_k=8)])
    scene.keys[1].zero_()
    scene.launch()
    assert scene.found(0).positions.tolist() == list(range(8))


@pytest.mark.parametrize("tapped", [False, True], ids=["probe", "tap"])
def test_column_sums_add_up_over_steps(tapped: bool) -> None:
    asks = [Ask(90, mask_prefix=3, layers=0b11), Ask(300, top_k=0), Ask(50, enabled=False)]
    scene = Scene(SHAPES["GQA"], asks, tapped=tapped, means=True)
    sums = torch.zeros(2, len(asks) + 1, 300, device=DEVICE)
    expected = torch.zeros_like(sums, dtype=torch.float64, device="cpu")
    for _ in range(2):
        scene.launch(every_key=True)
        columns.accumulate(scene.buffers, scene.rows, sums)
        for layer, row in ((0, 0), (1, 0), (1, 1)):
            first = scene.first(row, layer)
            p = torch.softmax(scene.logits(row, layer)[:, first:], dim=1).mean(dim=0).cpu()
            columns.accumulate_torch(p, scene.pool_slots[row], first, expected[layer])
    assert (sums.double().cpu() - expected).abs().max() <= 1e-5
    assert sums[:, scene.pool_slots[2]].abs().max() == 0
    assert abs(float(sums.sum()) - 6) < 1e-4  # three rows of layers, two steps, mass one each


@triton.jit
def calling_kernel(aux, stride_t, stride_h, length, SCORE_MOD: tl.constexpr):
    """Calls a score_mod as SGLang's grouped decode kernel does."""
    row = tl.program_id(0)
    heads, keys = tl.arange(0, 4)[:, None], tl.arange(0, 8)[None, :]
    qk = heads * 10.0 + keys
    qk = SCORE_MOD(qk, 5, keys, row, heads, (heads < 3) & (keys < 6), aux, stride_t, stride_h, length)
    tl.store(aux + row * stride_t + 3 * stride_h + heads * 0 + keys, qk, mask=(heads == 1) & (keys < 8))


def test_the_tap_stores_what_it_is_given_for_flagged_rows_only() -> None:
    aux = torch.full((3, 4, 9), -1.0, device=DEVICE)
    aux[:, 0, -1] = torch.tensor([1.0, 0.0, 1.0])
    calling_kernel[(3,)](aux, aux.stride(0), aux.stride(1), aux.shape[-1], SCORE_MOD=tap.store_logits)
    stored = torch.tensor([[10.0 * h + n for n in range(6)] for h in range(3)], device=DEVICE)
    for row in (0, 2):
        assert (aux[row, :3, :6] == stored).all()
        assert (aux[row, :3, 6:8] == -1).all()
    assert (aux[1, :3, :8] == -1).all()
    assert (aux[:, 3, :8] == 10.0 + torch.arange(8, device=DEVICE)).all()  # and hands every logit back unchanged


def test_only_rows_that_are_due_are_stored_by_the_tap() -> None:
    asks = [Ask(9, layers=0b11), Ask(9), Ask(9, enabled=False), Ask(12, prompt_len=10, stride=3)]
    scene = Scene(SHAPES["MQA"], asks, tapped=True)
    rows, tapped = scene.rows, scene.buffers.tap
    assert tapped is not None
    tap.open_rows(scene.buffers, rows.n, rows.pool, rows.lengths)
    assert tapped[:, : rows.n, 0, -1].tolist() == [[1, 0, 0, 0], [1, 1, 0, 0]]
    assert tapped[:, rows.n :].isnan().all()
    with pytest.raises(ValueError, match="tap_length"):
        tap.open_rows(Scene(SHAPES["MQA"], asks).buffers, rows.n, rows.pool, rows.lengths)


def test_what_does_not_fit_is_refused() -> None:
    scene = Scene(SHAPES["MQA"], [Ask(10)])
    buffers = scene.buffers
    with pytest.raises(ValueError, match="do not fit"):
        probe.launch(buffers, replace(scene.rows, n=9))
    with pytest.raises(ValueError, match="do not fit"):
        probe.keep_queries(buffers, 0, scene.queries[0].repeat(9, 1, 1))
    with pytest.raises(ValueError, match="not that of the captured layers"):
        probe.keep_queries(buffers, 0, scene.queries[0][:1, :, :8])
    with pytest.raises(ValueError, match="tap_length"):
        probe.launch(buffers, scene.rows, tapped=True)
    with pytest.raises(ValueError, match="means_length"):
        columns.accumulate(buffers, scene.rows, torch.zeros(2, 3, 3))
    keys = scene.keys[0]
    for wrong, sentence in (
        (keys[:, :, :16], r"instead of \[slots, 1, 32\]"),
        (keys.half(), "differently"),
        (torch.zeros(keys.numel() + 1, device=DEVICE)[1:].view_as(keys), "aligned"),
    ):
        with pytest.raises(ValueError, match=sentence):
            buffers.use_keys([keys, wrong])
    buffers.keys = None
    with pytest.raises(ValueError, match="know the keys"):
        probe.launch(buffers, scene.rows)
    with pytest.raises(ValueError, match="cannot share"):
        Shape(5, 2, 64)
    with pytest.raises(ValueError, match="128"):
        layout.head_words(None, 129)
    assert layout.head_words((31, 32, 127), 128) == [-(2**31), 1, 0, -(2**31)]
    assert tap.bytes_of(Shape(32, 8, 128), layers=2, rows=8, max_length=4096) == 2**23


def test_control_rows_are_written_where_they_belong() -> None:
    buffers = Buffers(SHAPES["MQA"], layers=[Layer(1.0)], rows=1, pool_rows=4, device=DEVICE)
    buffers.write_control([3, 1], [[7] * 16, [8] * 16])
    buffers.write_control([], [])
    assert buffers.control[:, 0].tolist() == [0, 8, 0, 7]
    assert buffers.bytes > 0
