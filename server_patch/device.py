"""Scheduler process, backends that run kernels: statistics are computed on the device, inside CUDA graphs too.

Every captured layer's attention is followed by launches over static buffers (geomcli.kernels). What a request asked for
lies in a control table on the device, indexed by the request's slot, so that a recorded graph serves requests that ask
and those that do not; slot 0 pads graphs and never asks. Records are stamped with request and length, and believed on
the host only where both fit the token.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from geomcli.kernels import layout, probe, records, tap
from geomcli.kernels.buffers import Buffers, Shape
from geomcli.server_patch import faults
from geomcli.server_patch.options import CaptureOptions
from geomcli.server_patch.plans import RowPlan, checked, first_key
from geomcli.server_patch.request_state import RequestState
from geomcli.server_patch.scheduler_state import scheduler

TAP_BUDGET_BYTES = 1 << 30
_MAX_LAYERS = 31  # bits of a control word
_STAMP_LIMIT = 1 << 31
_stamps = itertools.count(1)


@dataclass
class DeviceStep:
    """The rows of one forward pass that ask, and after sampling the records of the whole batch.

    records: int32 [layers, rows, words]; heads: float32 [layers, rows, H, words] where a row asks for them.
    """

    asking: list[tuple[int, Any, RequestState]]
    capture: DeviceCapture
    records: Any = None
    heads: Any = None
    error: str | None = None

    def copy_to_host(self, copy_tensor: Callable[[Any], Any]) -> DeviceStep:
        records, heads = (None if t is None else copy_tensor(t) for t in (self.records, self.heads))
        return DeviceStep(self.asking, self.capture, records, heads, self.error)

    def consume(self, _batch: Any, _commits: Any) -> None:
        """Entries are built before the tokens are committed (results.py); nothing is left to do afterwards."""

    def row_plans(self) -> list[RowPlan]:
        """Plans of the rows whose records were written for exactly the token that is about to be committed."""
        return [plan for row, req, state in self.asking if (plan := self._row_plan(row, req, state)) is not None]

    def _row_plan(self, row: int, req: Any, state: RequestState) -> RowPlan | None:
        output_index = len(req.output_ids)
        if not state.captures(output_index):
            return None
        prompt_len = len(req.origin_input_ids)
        options = state.options
        plan = RowPlan(row, req, options, output_index, prompt_len + output_index - 1)
        try:
            if self.error is not None:
                raise RuntimeError(self.error)
            for layer in options.layers:
                index = self.capture.layers.index(layer)
                record = self.records[index, row].numpy()
                found, due = records.stamp_of(record), records.Stamp(state.stamp, prompt_len + output_index)
                if found != due:
                    raise RuntimeError(f"the record of layer {layer} is for {found}, not for {due}")
                heads = None if self.heads is None or not options.head_stats else self.heads[index, row].numpy()
                statistics = records.statistics_of(
                    record,
                    first_key=first_key(options, plan.query_position, self.capture.windows[index]),
                    prompt_len=prompt_len,
                    sink_tokens=options.sink_tokens,
                    heads=heads,
                    selected=options.heads,
                )
                plan.statistics[layer] = checked(statistics, layer)
        except Exception as error:
            faults.report("a row's record cannot be used")
            plan.error = type(error).__name__
        return plan


class DeviceCapture:
    """Buffers and launches of one model runner. ValueError with half a sentence when this model cannot be captured."""

    def __init__(self, runner: Any, layers: tuple[int, ...], source: str) -> None:
        self.layers = layers
        if len(layers) > _MAX_LAYERS:
            raise ValueError(f"at most {_MAX_LAYERS} layers can be captured, not {len(layers)}")
        modules = [_attention_of(runner.model, layer, runner.token_to_kv_pool) for layer in layers]
        shapes = {Shape(m.tp_q_head_num, m.tp_k_head_num, m.qk_head_dim) for m in modules}
        if len(shapes) > 1:
            raise ValueError("the captured layers have heads of different shapes; choose layers of one kind")
        shape = shapes.pop()
        layout.head_words(None, shape.heads)
        if any(getattr(m, "xai_temperature_len", -1) > 0 for m in modules):
            raise ValueError("attention whose temperature depends on the position cannot be captured")
        self.windows = [-1 if m.sliding_window_size is None else m.sliding_window_size for m in modules]
        table = runner.req_to_token_pool.req_to_token
        rows = table.shape[0]
        length = runner.model_config.context_len
        fits = tap.fits(shape, rows=rows, max_length=length, budget=TAP_BUDGET_BYTES)
        if source == "tap" and not fits:
            raise ValueError(f"the logits of {rows} rows of {length} keys do not fit into {TAP_BUDGET_BYTES >> 20} MiB")
        self.source = "tap" if fits and source != "probe" else "probe"
        self.buffers = Buffers(
            shape,
            layers=len(layers),
            rows=rows,
            pool_rows=rows,
            device=runner.device,
            tap_length=length if self.source == "tap" else 0,
        )
        self._table = table
        self._pool = runner.token_to_kv_pool
        self._dirty: set[int] = set()

    def attach(self, backend: Any, *, decode: bool = True, extend: bool = True) -> None:
        """Wrap the attention of this backend object."""
        if decode:
            backend.forward_decode = self._wrapped_decode(backend, backend.forward_decode)
        if extend:
            backend.forward_extend = self._wrapped_extend(backend.forward_extend)

    def plan_step(
        self, forward_batch: Any, requests: Iterable[Any], asking: list[tuple[int, Any, RequestState]]
    ) -> DeviceStep | None:
        """Before a forward pass: bring the control table up to date; the step, or None when no row asks."""
        if forward_batch.forward_mode.is_extend():
            self._write_control(requests, {id(req): state for _, req, state in asking})
        return DeviceStep(asking, self) if asking else None

    def _write_control(self, requests: Iterable[Any], asking: dict[int, RequestState]) -> None:
        slots, rows = [], []
        for req in requests:
            slot = slot_of(req)
            if (state := asking.get(id(req))) is not None:
                state.stamp = state.stamp or next(_stamps) % _STAMP_LIMIT
                slots.append(slot)
                rows.append(self.control_row(state, len(req.origin_input_ids)))
                self._dirty.add(slot)
            elif slot in self._dirty:
                # The slot's former request asked, this one does not.
                slots.append(slot)
                rows.append([0] * layout.CONTROL_WORDS.value)
                self._dirty.discard(slot)
        self.buffers.write_control(slots, rows)

    def control_row(self, state: RequestState, prompt_len: int) -> list[int]:
        options: CaptureOptions = state.options
        row = [0] * layout.CONTROL_WORDS.value
        row[layout.C_ENABLED], row[layout.C_STAMP] = 1, state.stamp
        row[layout.C_LAYERS] = sum(1 << self.layers.index(layer) for layer in options.layers)
        row[layout.C_PROMPT_LEN], row[layout.C_MASK_PREFIX] = prompt_len, options.mask_prefix
        row[layout.C_WINDOW], row[layout.C_SINK_TOKENS] = options.window, options.sink_tokens
        row[layout.C_TOP_K], row[layout.C_STRIDE], row[layout.C_LIMIT] = options.top_k, options.stride, options.limit
        row[layout.C_HEADS : layout.C_HEADS + 4] = layout.head_words(options.heads, self.buffers.shape.heads)
        return row

    def collect(self, step: DeviceStep, n: int) -> None:
        """After sampling, on the forward stream: clone the records of n rows, before the next replay writes them."""
        step.records = self.buffers.records[:, :n].clone()
        if self.buffers.heads is not None and any(state.options.head_stats for _, _, state in step.asking):
            step.heads = self.buffers.heads[:, :n].clone()

    def _wrapped_decode(self, backend: Any, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward_decode(q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, *args: Any, **kwargs: Any) -> Any:
            if not self._wanted(layer):
                return original(q, k, v, layer, forward_batch, *args, **kwargs)
            index = self.layers.index(layer.layer_id)
            tapped = self.source == "tap" and kwargs.get("score_mod") is None and self.windows[index] < 0
            if tapped:
                kwargs |= {"score_mod": tap.store_logits, "aux_tensors": [self.buffers.tap]}
            output = original(q, k, v, layer, forward_batch, *args, **kwargs)
            slots, starts = self._key_slots(backend)
            sinks = kwargs.get("sinks")
            self._guarded(
                lambda: self._launch(index, layer, q, forward_batch, slots, starts, tapped=tapped, sinks=sinks)
            )
            return output

        return forward_decode

    def _wrapped_extend(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward_extend(q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, *args: Any, **kwargs: Any) -> Any:
            output = original(q, k, v, layer, forward_batch, *args, **kwargs)
            if scheduler.current is not None and self._wanted(layer) and not _recording():
                index, sinks = self.layers.index(layer.layer_id), kwargs.get("sinks")
                self._guarded(
                    lambda: self._launch(index, layer, q, forward_batch, self._table, None, extend=True, sinks=sinks)
                )
            return output

        return forward_extend

    def _key_slots(self, backend: Any) -> tuple[Any, Any]:
        """Where the keys of each row are: the Triton backend's own list, which a graph keeps, else the pool's table.

        The scheduler may write that table while a graph runs, but only beyond a running row's length or in the row of
        a request that has ended, whose record nobody reads.
        """
        metadata = getattr(backend, "forward_metadata", None)
        indices = getattr(metadata, "kv_indices", None)
        if metadata is None or not isinstance(indices, torch.Tensor) or indices.dim() != 1:
            return self._table, None
        return indices, metadata.kv_indptr

    def _wanted(self, layer: Any) -> bool:
        """In an eager step only when a row asks; while a graph is recorded always, since its replays serve all."""
        return (
            layer.layer_id in self.layers
            and not layer.is_cross_attention
            and (scheduler.current is not None or _recording())
        )

    def _guarded(self, launch: Callable[[], None]) -> None:
        try:
            launch()
        except Exception as error:
            if _recording():
                raise SystemExit(f"geom: the capture kernels cannot be recorded ({error}).") from error
            faults.report("a layer of a step could not be captured")
            if isinstance(scheduler.current, DeviceStep):
                scheduler.current.error = type(error).__name__

    def _launch(
        self,
        index: int,
        layer: Any,
        q: Any,
        forward_batch: Any,
        slots: Any,
        starts: Any,
        *,
        tapped: bool = False,
        extend: bool = False,
        sinks: Any = None,
    ) -> None:
        shape = self.buffers.shape
        query = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        keys = self._pool.get_key_buffer(layer.layer_id)
        tokens = forward_batch.extend_seq_lens.cumsum(0) - 1 if extend else None
        n = forward_batch.seq_lens.shape[0] if extend else query.shape[0]
        if (query.shape[1], query.shape[2]) != (shape.heads, shape.dim) or keys.shape[-1] != shape.dim:
            raise ValueError(f"layer {layer.layer_id} computes with other heads here than in decode")
        scale = layer.scaling
        if layer.k_scale_float is not None and keys.dtype != query.dtype:
            scale *= layer.k_scale_float
        how = probe.Layer(index, scale, layer.logit_cap or 0.0, self.windows[index], sinks)
        pool, lengths = forward_batch.req_pool_indices[:n], forward_batch.seq_lens[:n]
        rows = probe.Rows(n, pool, lengths, slots, starts, tokens)
        if tapped:
            probe.launch(self.buffers, how, rows)
        else:
            probe.launch(self.buffers, how, rows, query, keys)


def slot_of(req: Any) -> int:
    """The request's slot in SGLang's pool; newer releases keep it on the request's KV object."""
    slot = getattr(req, "req_pool_idx", None)
    return int(req.kv.req_pool_idx if slot is None else slot)


def _recording() -> bool:
    """Whether a CUDA graph is being recorded or warmed up."""
    from sglang.srt.model_executor.runner_utils.capture_mode import get_is_capture_mode

    return bool(get_is_capture_mode())


def _attention_of(model: Any, layer: int, pool: Any) -> Any:
    """The attention module that decodes this layer: MLA has a second one for its prefill, of other widths."""
    found = [
        m for m in model.modules() if type(m).__name__ == "RadixAttention" and m.layer_id == layer
        and not m.is_cross_attention
    ]  # fmt: skip
    width = pool.get_key_buffer(layer).shape[-1]
    fitting = [m for m in found if m.qk_head_dim == width]
    if not fitting:
        raise ValueError(f"layer {layer} has no attention over the key pool (its keys are {width} wide)")
    return fitting[0]
