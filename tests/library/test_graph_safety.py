"""What runs while a CUDA graph is recorded: no allocation, no read by the host, no branch on a tensor's value.

Everything lies on PyTorch's meta device, where a tensor has no values to read, and every operation is seen by a mode
that knows which memory existed before. Only the launches themselves are recorded instead of run.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from geomcli.kernels import derotated_links, probe, tap
from geomcli.server_patch import device, recording
from geomcli.server_patch.attention_ranks import AttentionRanks
from geomcli.server_patch.device import DeviceCapture
from geomcli.server_patch.device_step import DeviceStep

HEADS, KEY_HEADS, DIM, ROWS, LENGTH = 4, 2, 32, 9, 128
LAYERS = (1, 3)


class Allocated(Exception):
    pass


class NoAllocation(TorchDispatchMode):
    """Raises when an operation returns memory that is not one of its arguments'."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for made in tree_leaves(result):
            if isinstance(made, torch.Tensor) and made.untyped_storage()._cdata not in known:
                raise Allocated(str(func))
        return result


class RadixAttention(torch.nn.Module):
    """Found by its class's name, as SGLang's is."""

    def __init__(self, layer_id: int) -> None:
        super().__init__()
        self.layer_id = layer_id
        self.is_cross_attention = False
        self.tp_q_head_num, self.tp_k_head_num, self.qk_head_dim = HEADS, KEY_HEADS, DIM
        self.scaling, self.logit_cap, self.sliding_window_size, self.k_scale_float = 0.1, 0.0, -1, None


def zeros(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(size, dtype=dtype, device="meta")


class Pool:
    size = LENGTH

    def __init__(self) -> None:
        self.keys = {layer: zeros(LENGTH, KEY_HEADS, DIM) for layer in LAYERS}

    def get_key_buffer(self, layer: int) -> torch.Tensor:
        return self.keys[layer]


class Backend:
    """An attention backend whose decode writes into memory that it has."""

    def __init__(self, extra: Callable[[Any], Any] | None) -> None:
        self.output = zeros(8, HEADS * DIM)
        self.forward_metadata = SimpleNamespace(
            kv_indices=zeros(LENGTH, dtype=torch.int64), kv_indptr=zeros(9, dtype=torch.int32)
        )
        self.extra = extra

    def forward_decode(
        self, q: Any, k: Any, v: Any, layer: Any, batch: Any, sinks: Any = None, score_mod: Any = None,
        aux_tensors: Any = None,
    ) -> Any:  # fmt: skip
        if self.extra is not None:
            self.extra(batch)
        return self.output[: q.shape[0]]

    def forward_extend(self, *_: Any, **__: Any) -> None:
        raise AssertionError("no prefill is recorded")


class Launches:
    """Stands in for a kernel: keeps grid, compile-time arguments and the memory that it was given."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **constants: Any) -> None:
            memory = tuple(a.untyped_storage()._cdata if isinstance(a, torch.Tensor) else a for a in args)
            self.seen.append((grid, memory, tuple(sorted(constants.items()))))

        return launch


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    recorder = Launches()
    for kernel in ("partial_kernel", "mean_kernel", "finish_kernel"):
        monkeypatch.setattr(probe, kernel, recorder)
    monkeypatch.setattr(tap, "open_kernel", recorder)
    for module in (device, recording):
        monkeypatch.setattr(module, "recording", lambda: True)
    return recorder


def runner_of(modules: list[RadixAttention]) -> Any:
    return SimpleNamespace(
        model=torch.nn.ModuleList(modules), token_to_kv_pool=Pool(), device="meta", dtype=torch.float32,
        req_to_token_pool=SimpleNamespace(req_to_token=zeros(ROWS, LENGTH, dtype=torch.int32)),
    )  # fmt: skip


def decode(
    source: str, *, sinks: bool = False, extra: Callable[[Any], Any] | None = None, derotated: bool = False
) -> DeviceCapture:
    """One recorded decode step over all captured layers, as SGLang runs it between capture begin and end."""
    modules = [RadixAttention(layer) for layer in LAYERS]
    capture = DeviceCapture(runner_of(modules), LAYERS, source)
    assert capture.source == source
    if derotated:
        capture.derotate([SimpleNamespace(cos_sin_cache=zeros(LENGTH, DIM), is_neox_style=True)] * len(LAYERS))
    backend = Backend(extra)
    capture.attach(backend)
    batch = SimpleNamespace(
        req_pool_indices=zeros(8, dtype=torch.int64), seq_lens=zeros(8, dtype=torch.int64), scratch=zeros(4)
    )
    q, learned = zeros(8, HEADS * DIM), zeros(HEADS) if sinks else None
    with NoAllocation():
        for module in modules:
            backend.forward_decode(q, None, None, module, batch, sinks=learned)
    return capture


@pytest.mark.parametrize("source", ["tap", "probe"])
@pytest.mark.parametrize("sinks", [False, True])
def test_a_recorded_step_only_launches(launches: Launches, source: str, sinks: bool) -> None:
    decode(source, sinks=sinks)
    assert len(launches.seen) == 3 + (source == "tap")  # for all layers together
    grids = [grid for grid, _, _ in launches.seen]
    assert all(isinstance(n, int) for grid in grids for n in grid)
    assert {grid[0] for grid in grids} == {8}


@pytest.mark.parametrize(
    ("source", "derotated", "kept"), [("probe", False, 2), ("probe", True, 2), ("tap", False, 0), ("tap", True, 2)]
)
def test_the_derotated_view_costs_a_step_nothing_but_the_queries_of_a_tap(
    launches: Launches, monkeypatch: pytest.MonkeyPatch, source: str, derotated: bool, kept: int
) -> None:
    original, calls = probe.keep_queries, []
    monkeypatch.setattr(probe, "keep_queries", lambda *args: calls.append(args[1]) or original(*args))
    monkeypatch.setattr(derotated_links, "derotation_kernel", launches)
    decode(source, derotated=derotated)
    assert len(launches.seen) == 3 + (source == "tap")
    assert calls == list(range(kept))


def test_only_the_rows_that_ask_are_derotated_behind_a_step(
    launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture = decode("tap", derotated=True)
    launched: list[Any] = []
    monkeypatch.setattr(
        derotated_links, "launch", lambda *_, chosen, **__: launched.append(chosen) or zeros(2, 1, 3, 64)
    )
    batch = SimpleNamespace(req_pool_indices=zeros(8, dtype=torch.int64))
    for asks in ((False, False), (False, True)):
        options = [SimpleNamespace(top_k=4, head_stats=False, derotate=derotate) for derotate in asks]
        asking = [(row, None, SimpleNamespace(options=one)) for row, one in enumerate(options)]
        step = DeviceStep(asking=tuple(asking))
        capture.collect(step, batch, 8)
        assert (step.derotated is not None) is any(asks)
    assert len(launched) == 1
    assert launched[0].shape == (1,)


def _branch(batch: Any) -> None:
    if batch.seq_lens[0] > 3:
        raise AssertionError


@pytest.mark.parametrize(
    "planted",
    [
        lambda batch: batch.seq_lens.max().item(),
        lambda batch: batch.seq_lens.tolist(),
        lambda batch: batch.seq_lens.cpu().numpy(),
        _branch,
        lambda batch: torch.empty(3, device="meta"),
        lambda batch: batch.scratch + 1,
        lambda batch: batch.scratch.clone(),
        lambda batch: batch.scratch[batch.seq_lens],
    ],
    ids=["item", "tolist", "numpy", "branch", "empty", "sum", "clone", "gather"],
)
def test_what_a_graph_cannot_hold_is_noticed(launches: Launches, planted: Callable[[Any], Any]) -> None:
    with pytest.raises((Allocated, RuntimeError, NotImplementedError)):
        decode("probe", extra=planted)


@pytest.mark.parametrize("planted", ["keep_queries", "launch"])
def test_a_host_read_in_the_capture_path_stops_the_server(
    launches: Launches, monkeypatch: pytest.MonkeyPatch, planted: str
) -> None:
    original = getattr(probe, planted)

    def reading(buffers: Any, *args: Any, **kwargs: Any) -> None:
        original(buffers, *args, **kwargs)
        int(buffers.control.sum())

    monkeypatch.setattr(probe, planted, reading)
    with pytest.raises(SystemExit, match="cannot be recorded"):
        decode("probe")


def test_a_tap_that_does_not_fit_becomes_a_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = [RadixAttention(layer) for layer in LAYERS]
    assert DeviceCapture(runner_of(modules), LAYERS, "auto").source == "tap"
    monkeypatch.setattr(device, "BUDGET_BYTES", 2 * ROWS * HEADS * LENGTH * 4 - 1)
    assert DeviceCapture(runner_of(modules), LAYERS, "auto").source == "probe"
    with pytest.raises(ValueError, match=r"MiB; start with --attention-capture-source probe"):
        DeviceCapture(runner_of(modules), LAYERS, "tap")


def test_layers_with_a_sliding_window_are_probed() -> None:
    modules = [RadixAttention(layer) for layer in LAYERS]
    modules[0].sliding_window_size = 16
    capture = DeviceCapture(runner_of(modules), LAYERS, "auto")
    assert (capture.source, capture.windows) == ("probe", (16, -1))
    with pytest.raises(ValueError, match="sliding window"):
        DeviceCapture(runner_of(modules), LAYERS, "tap")


def test_several_ranks_need_memory_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    modules, ranks = [RadixAttention(layer) for layer in LAYERS], AttentionRanks(1, 2, None)
    capture = DeviceCapture(runner_of(modules), LAYERS, "probe", ranks)
    assert capture.buffers.means is not None
    assert capture.buffers.means.shape == (2, ROWS, LENGTH)
    monkeypatch.setattr(device, "BUDGET_BYTES", 100)
    with pytest.raises(ValueError, match="lower --max-running-requests"):
        DeviceCapture(runner_of(modules), LAYERS, "probe", ranks)


def test_the_chunk_size_sets_how_many_parts_a_row_has() -> None:
    modules = [RadixAttention(layer) for layer in LAYERS]
    parts = [DeviceCapture(runner_of(modules), LAYERS, "probe", chunk=chunk).buffers.splits for chunk in (512, 2048)]
    assert parts == [32, 8]
    assert DeviceCapture(runner_of(modules), LAYERS, "probe").buffers.splits == 8


def test_models_that_cannot_be_captured_are_refused() -> None:
    modules = [RadixAttention(layer) for layer in LAYERS]
    modules[1].tp_q_head_num = 8
    with pytest.raises(ValueError, match="heads of different shapes"):
        DeviceCapture(runner_of(modules), LAYERS, "auto")
    with pytest.raises(ValueError, match="layer 1 has no attention"):
        DeviceCapture(runner_of(modules[1:]), LAYERS, "auto")
