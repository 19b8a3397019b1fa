"""Configurations under which capture could not be exact are refused in one sentence that names the flag."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from geomcli.server_patch import flags, graphs, recording
from geomcli.server_patch.scheduler_state import scheduler
from geomcli.server_patch.server_options import ServerOptions

PREFILL_IN_ONE = SimpleNamespace(prefill=SimpleNamespace(backend="full"))


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"speculative_algorithm": "EAGLE"}, "--speculative-algorithm"),
        ({"pp_size": 2}, "--pp-size"),
        ({"dp_size": 2}, "--dp-size"),
        ({"attn_cp_size": 2}, "--attention-context-parallel-size"),
        ({"dcp_size": 2}, "--dcp-size"),
        ({"tokenizer_worker_num": 2}, "--tokenizer-worker-num"),
        ({"disaggregation_mode": "prefill"}, "--disaggregation-mode"),
        ({"enable_two_batch_overlap": True}, "--enable-two-batch-overlap"),
        ({"enable_pdmux": True}, "--enable-pdmux"),
        ({"enable_hisparse": True}, "--enable-hisparse"),
        ({"dllm_algorithm": "low_confidence"}, "--dllm-algorithm"),
        ({"enable_torch_compile": True}, "--enable-torch-compile"),
        ({"use_ray": True}, "--use-ray"),
        ({"enable_unified_memory": True}, "--enable-unified-memory"),
        ({"enable_nvidia_megakernel": True}, "--enable-nvidia-megakernel"),
        ({"kv_cache_dtype": "fp4_e2m1"}, "--kv-cache-dtype"),
        ({"kv_cache_dtype": "mxfp8"}, "--kv-cache-dtype"),
        ({"cuda_graph_config": PREFILL_IN_ONE}, "--cuda-graph-backend-prefill full"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_what_capture_cannot_be_exact_under(changes: dict[str, Any], flag: str) -> None:
    sentence = flags.refusal(SimpleNamespace(**changes))
    assert sentence is not None
    assert sentence.endswith(f"leave {flag} out.")
    assert ". " not in sentence


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"tp_size": 2}, "--tp-size"),
        ({"page_size": 16}, "--page-size"),
        ({"enable_mixed_chunk": True}, "--enable-mixed-chunk"),
        ({"enable_hierarchical_cache": True}, "--enable-hierarchical-cache"),
        ({"enable_lmcache": True}, "--enable-lmcache"),
        ({"enable_streaming_session": True}, "--enable-streaming-session"),
        ({"kv_canary": "on"}, "--kv-canary"),
        ({"kv_cache_dtype": "fp8_e4m3"}, "--kv-cache-dtype"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_what_keys_cannot_leave_under(changes: dict[str, Any], flag: str) -> None:
    sentence = flags.refusal(SimpleNamespace(**changes), ServerOptions(enabled=True, retention=0.3))
    assert sentence is not None
    assert sentence.startswith("--spectral-evict-decode cannot be under ")
    assert sentence.endswith(f"leave {flag} out.")
    assert ". " not in sentence
    assert flags.refusal(SimpleNamespace(**changes), ServerOptions(enabled=True)) is None
    harmless = SimpleNamespace(page_size=1, kv_canary="none")
    assert flags.refusal(harmless, ServerOptions(enabled=True, retention=0.3)) is None


def test_keys_leave_from_the_default_tree_alone_before_that_was_the_unified_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evicting = ServerOptions(enabled=True, retention=0.3)
    monkeypatch.setenv("SGLANG_ENABLE_UNIFIED_RADIX_TREE", "1")
    for version, refused in (("0.5.16", True), ("0.5.18", True), ("0.5.20", False), ("0.5.23.post1", False)):
        monkeypatch.setattr(flags, "version", lambda _, found=version: found)
        sentence = flags.refusal(SimpleNamespace(), evicting)
        assert (sentence is not None) is refused
        assert not refused or "unset SGLANG_ENABLE_UNIFIED_RADIX_TREE" in str(sentence)
        assert flags.refusal(SimpleNamespace(), ServerOptions(enabled=True)) is None
    monkeypatch.delenv("SGLANG_ENABLE_UNIFIED_RADIX_TREE")
    monkeypatch.setattr(flags, "version", lambda _: "0.5.16")
    assert flags.refusal(SimpleNamespace(), evicting) is None


@pytest.mark.parametrize(
    "allowed",
    [
        {},
        {"disaggregation_mode": "null", "speculative_algorithm": None, "tp_size": 4, "enable_mixed_chunk": True},
        {
            "kv_cache_dtype": "fp8_e4m3",
            "cuda_graph_config": SimpleNamespace(prefill=SimpleNamespace(backend="breakable")),
        },
    ],
)
def test_what_capture_works_under(allowed: dict[str, Any]) -> None:
    assert flags.refusal(SimpleNamespace(**allowed)) is None


def test_the_rust_server_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_RUST_SERVER", "1")
    assert "SGLANG_RUST_SERVER" in str(flags.refusal(SimpleNamespace()))


@pytest.fixture
def a_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "recording", True)


@pytest.mark.usefixtures("a_recording")
def test_a_step_that_asks_is_never_a_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    assert recording.recording()
    monkeypatch.setattr(scheduler, "current", SimpleNamespace(error=None))
    assert not recording.recording()


@pytest.mark.usefixtures("a_recording")
def test_a_fault_between_the_pieces_of_a_graph_marks_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing() -> None:
        raise ValueError("a fault put in by a test")

    monkeypatch.setattr(scheduler, "current", SimpleNamespace(error=None))
    recording.guarded(failing)
    assert scheduler.current.error == "ValueError"
    monkeypatch.setattr(scheduler, "current", None)
    with pytest.raises(SystemExit, match="cannot be recorded"):
        recording.guarded(failing)


@dataclass(frozen=True)
class ShapeKey:
    """As SGLang's: what a decode graph is found by."""

    size: int
    variant_label: str | None = None


def test_each_decode_graph_is_recorded_without_capture_and_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "backend", "triton")
    joined: list[bool] = []
    monkeypatch.setattr(scheduler, "device", SimpleNamespace(join=lambda: joined.append(recording.recording())))
    recorded: dict[Any, bool] = {}

    def key(size: int, label: str | None = None) -> ShapeKey:
        made = ShapeKey(size, label)
        return graphs.after_make_graph_key(made, None, size, variant_label=label) or made

    def capture_one_shape(_runner: Any, size: int, forward: Any, label: str | None) -> None:
        assert list(inspect.signature(forward).parameters) == ["batch"]
        recorded[key(size, label)] = forward("a batch") == "a batch" and recording.recording()

    for label in (None, "lora"):
        graphs.around_capture_one_shape(capture_one_shape, None, 8, lambda batch: batch, label)
        assert joined == [True]
        joined.clear()
        assert recorded == {key(8, label): False, ShapeKey(8, f"{label}+geom" if label else "geom"): True}
        monkeypatch.setattr(scheduler, "current", SimpleNamespace(error=None))
        assert recorded[key(8, label)]  # the step that is captured replays the second one
        monkeypatch.setattr(scheduler, "current", None)
        recorded.clear()


def test_a_server_that_does_not_capture_records_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "device", None)
    calls: list[Any] = []
    graphs.around_capture_one_shape(lambda *args: calls.append(args), None, 8, len)
    assert len(calls) == 1
    assert graphs.after_make_graph_key(ShapeKey(8), None, 8) is None


def test_flashinfer_records_one_graph_for_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its plan is for the wrapper of the graph that was recorded last."""
    monkeypatch.setattr(scheduler, "device", SimpleNamespace(join=lambda: None))
    monkeypatch.setattr(scheduler, "backend", "flashinfer")
    recorded: list[bool] = []
    graphs.around_capture_one_shape(lambda _r, _n, _f: recorded.append(recording.recording()), None, 8, len)
    assert recorded == [True]
    monkeypatch.setattr(scheduler, "current", SimpleNamespace(error=None))
    assert graphs.after_make_graph_key(ShapeKey(8), None, 8) is None
