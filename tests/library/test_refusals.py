"""Configurations under which capture could not be exact are refused in one sentence that names the flag."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from geomcli.server_patch import flags, recording
from geomcli.server_patch.scheduler_state import scheduler

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
def replaying(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang while it replays a graph in pieces: it calls that capture mode too."""
    package = ModuleType("sglang.srt.model_executor.runner_utils")
    package.capture_mode = SimpleNamespace(get_is_capture_mode=lambda: True)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, package.__name__, package)


def test_a_step_that_asks_is_never_a_recording(replaying: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert recording.recording()
    monkeypatch.setattr(scheduler, "current", SimpleNamespace(error=None))
    assert not recording.recording()


def test_a_fault_between_the_pieces_of_a_graph_marks_the_step(replaying: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing() -> None:
        raise ValueError("a fault put in by a test")

    monkeypatch.setattr(scheduler, "current", SimpleNamespace(error=None))
    recording.guarded(failing)
    assert scheduler.current.error == "ValueError"
    monkeypatch.setattr(scheduler, "current", None)
    with pytest.raises(SystemExit, match="cannot be recorded"):
        recording.guarded(failing)
