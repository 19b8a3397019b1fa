"""Scheduler process, backends that run kernels: statistics are computed on the device, inside CUDA graphs too.

Every captured layer's attention leaves its queries or its logits behind, and after the last of them one set of launches
over static buffers (geomcli.kernels) writes the step's records. What a request asked for lies in a control table on the
device, indexed by the request's slot, so that a recorded graph serves requests that ask and those that do not; slot 0
pads graphs and never asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import triton

from geomcli.kernels import layout, probe, ranks, tap
from geomcli.kernels.buffers import Buffers, Layer, Shape
from geomcli.server_patch import faults
from geomcli.server_patch.accounts import slot_of
from geomcli.server_patch.attention_modules import attention_of
from geomcli.server_patch.attention_ranks import AttentionRanks
from geomcli.server_patch.device_derotation import Derotation
from geomcli.server_patch.device_step import DeviceStep
from geomcli.server_patch.latent import prefill_attentions
from geomcli.server_patch.recording import guarded, recording
from geomcli.server_patch.request_options import CaptureOptions
from geomcli.server_patch.request_state import RequestState, population
from geomcli.server_patch.ring import Ring, address_of
from geomcli.server_patch.scheduler_state import scheduler

BUDGET_BYTES = 1 << 30
SHARE_OF_DEVICE = 0.02
SHARE_OF_FREE = 0.25
EIGHT_BIT_KEYS = "eight_bit_keys"
_MAX_LAYERS = 31  # bits of a control word


class DeviceCapture:
    """Buffers and launches of one model runner. ValueError with half a sentence when this model cannot be captured."""

    def __init__(
        self,
        runner: Any,
        layers: tuple[int, ...],
        source: str,
        group: AttentionRanks | None = None,
        chunk: int = 2048,
        *,
        evicts: bool = False,
    ) -> None:
        self.layers = layers
        self.group = group
        if len(layers) > _MAX_LAYERS:
            raise ValueError(f"at most {_MAX_LAYERS} layers can be captured, not {len(layers)}")
        pool = runner.token_to_kv_pool
        modules = [attention_of(runner.model, layer, pool) for layer in layers]
        self._places = {id(module): place for place, module in enumerate(modules)}
        self._prefills = prefill_attentions(runner.model, self._places)
        keys = [pool.get_key_buffer(layer) for layer in layers]
        shapes = {Shape(m.tp_q_head_num, m.tp_k_head_num, m.qk_head_dim) for m in modules}
        if len(shapes) > 1:
            raise ValueError("the captured layers have heads of different shapes; choose layers of one kind")
        shape = shapes.pop()
        layout.head_words(None, shape.heads)
        if any(getattr(m, "xai_temperature_len", -1) > 0 for m in modules):
            raise ValueError("attention whose temperature depends on the position cannot be captured")
        self._eight_bit = keys[0].element_size() == 1
        decode_window = triton_decode_window(runner) if scheduler.backend == "triton" else None
        of_layers = [_layer_of(module, self._eight_bit, decode_window) for module in modules]
        self.windows = tuple(layer.sliding_window for layer in of_layers)
        self._decode_windows = tuple(
            layer.sliding_window if layer.decode_window is None else layer.decode_window for layer in of_layers
        )
        self._table = runner.req_to_token_pool.req_to_token
        rows, length = self._table.shape[0], min(self._table.shape[1], pool.size + 1)
        if group is not None and (needed := 4 * len(layers) * rows * length) > _budget(runner.device):
            raise ValueError(
                f"capture over several ranks needs {needed >> 20} MiB on each for {rows} requests of {length} keys; "
                "start with a lower --max-running-requests, --context-length, or fewer --attention-capture-layers"
            )
        self.source = _source(source, shape, rows=rows, length=length, windows=self.windows, device=runner.device)
        self.buffers = Buffers(
            shape,
            layers=of_layers,
            rows=rows,
            pool_rows=rows,
            device=runner.device,
            dtype=runner.dtype,
            tap_length=length if self.source == "tap" else 0,
            means_length=0 if group is None else length,
            places_length=length if evicts else 0,
            splits=probe.splits_for(chunk),
        )
        self.buffers.use_keys(keys)
        self._length = length
        self._beside = torch.cuda.Stream() if torch.device(runner.device).type == "cuda" else None  # type: ignore[no-untyped-call]
        self._forked = False
        self._learned_sinks = False
        self._keeps_queries = self.source != "tap" or evicts
        self._dirty: set[int] = set()
        self._derotation: Derotation | None = None

    def derotate(self, embeddings: Sequence[Any]) -> None:
        """Offer the de-rotated view: keep queries also where logits are tapped. `embeddings`: one for each layer."""
        group = None if self.group is None else self.group.group
        self._derotation = Derotation(self.buffers, self._table, embeddings, group)
        self._keeps_queries = True

    def attach(self, backend: Any, *, decode: bool = True, extend: bool = True) -> None:
        """Wrap the attention of this backend object."""
        if decode:
            backend.forward_decode = self._wrapped_decode(backend, backend.forward_decode)
        if extend:
            backend.forward_extend = self._wrapped_extend(backend.forward_extend)

    def compile_kernels(self) -> None:
        """Compile what the first prompt that asks would wait for; slot 0 never asks, so nothing is written."""
        zeros = torch.zeros(1, dtype=torch.int64, device=self._table.device)
        splits = self.buffers.splits
        while splits:
            probe.launch(self.buffers, probe.Rows(1, zeros, zeros, self._table), splits=splits)
            splits //= 2
        if self._derotation is not None:
            self._derotation.compile(zeros)

    def pin(self, ring: Ring) -> None:
        """Let the device copy into this memory by itself. Where it cannot, copies wait; nothing else changes."""
        if self._beside is None:
            return
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        code = runtime.cudaHostRegister(address_of(ring.data), ring.data.nbytes, 0)
        if int(code) != 0:
            faults.note(f"the memory of records could not be pinned ({code}); capture will cost more")

    def plan_decode(self, asking: tuple[tuple[int, Any, RequestState], ...] = ()) -> DeviceStep:
        """Before a decode step of which a row is due."""
        rounded = self._eight_bit and self.source == "probe"
        return DeviceStep((EIGHT_BIT_KEYS,) if rounded else (), self._decode_windows, asking)

    def plan_extend(
        self, requests: Iterable[Any], asking: tuple[tuple[int, Any, RequestState], ...]
    ) -> DeviceStep | None:
        """Before a prefill: bring the control table up to date; the step, or None when no row asks."""
        # The engine's own prefill attends to keys that were not rounded yet.
        step = DeviceStep((EIGHT_BIT_KEYS,) if self._eight_bit else (), self.windows, asking, prefill=True)
        try:
            self._write_control(requests, {id(req): state for _, req, state in asking})
        except Exception as error:
            # The step goes on, marked: other ranks will wait for this one's part of it.
            faults.report("the control table could not be written")
            step.error = type(error).__name__
        return step if asking else None

    def _write_control(self, requests: Iterable[Any], asking: dict[int, RequestState]) -> None:
        slots, rows = [], []
        for req in requests:
            slot = slot_of(req)
            if (state := asking.get(id(req))) is not None:
                slots.append(slot)
                rows.append(self.control_row(state, len(req.origin_input_ids)))
                self._dirty.add(slot)
            elif slot in self._dirty:
                # The slot's former request asked, this one does not.
                slots.append(slot)
                rows.append([0] * layout.CONTROL_WORDS)
                self._dirty.discard(slot)
        self.buffers.write_control(slots, rows)

    def control_row(self, state: RequestState, prompt_len: int) -> list[int]:
        options: CaptureOptions = state.options
        heads, n = options.heads, self.buffers.shape.heads
        if heads is not None and self.group is not None:
            first = self.group.rank * n
            heads = tuple(head - first for head in heads if first <= head < first + n)
        row = [0] * layout.CONTROL_WORDS
        row[layout.C_ENABLED], row[layout.C_STAMP] = 1, state.stamp
        row[layout.C_LAYERS] = sum(1 << self.layers.index(layer) for layer in options.layers)
        row[layout.C_PROMPT_LEN], row[layout.C_MASK_PREFIX] = prompt_len, options.mask_prefix
        row[layout.C_WINDOW], row[layout.C_SINK_TOKENS] = options.window, options.sink_tokens
        row[layout.C_TOP_K], row[layout.C_STRIDE] = options.links, options.stride
        row[layout.C_LIMIT] = 0 if options.observed else options.limit
        row[layout.C_HEADS : layout.C_HEADS + 4] = layout.head_words(heads, n)
        return row

    def collect(self, step: DeviceStep, forward_batch: Any, n: int) -> None:
        """After sampling, on the forward stream: clone the records of n rows, before the next replay writes them."""
        # What decides about the collectives is known alike on every rank: who asks in this step, and for what.
        asking = [state.options for _, _, state in step.asking] if self.group is not None else None
        linked = population.linked > 0 if asking is None else any(options.links for options in asking)
        headed = population.headed > 0 if asking is None else any(options.headed for options in asking)
        width = layout.RECORD_WORDS if linked else layout.R_POSITIONS
        step.records = self.buffers.records[:, :n, :width].clone()
        # Each record is sent once: what a later step finds of it belongs to none of that step's numbers.
        self.buffers.records[:, :n, layout.R_STAMP].zero_()
        if self.buffers.heads is not None and headed:
            step.heads = self.buffers.heads[:, :n].clone()
        if self.group is not None:
            self._merge_ranks(step, forward_batch)
        derotated = [row for row, _, state in step.asking if state.options.derotate]
        if derotated and self._derotation is not None:
            step.derotated = self._derotation.scores(step.records, derotated, forward_batch.req_pool_indices)

    def _merge_ranks(self, step: DeviceStep, forward_batch: Any) -> None:
        assert self.group is not None
        group = self.group.group
        linked = [(row, req) for row, req, state in step.asking if state.options.links]
        if linked:
            device = step.records.device
            rows = torch.tensor([row for row, _ in linked], pin_memory=device.type == "cuda")
            rows = rows.to(device, non_blocking=True)
            width = min(self._length, max(_longest(req) for _, req in linked))
            pool = forward_batch.req_pool_indices[rows]
            ranks.merge_links(self.buffers, step.records, rows, pool, width, group, prefill=step.prefill)
        ranks.merge_sums(step.records, healthy=step.error is None, group=group)
        observed = [state.options for _, _, state in step.asking if state.options.observed]
        if observed:
            ranks.share(step.records, group=group)
        if step.logits is not None and any(options.logits for options in observed):
            ranks.share(step.logits.all_ranks(step.records.shape[1], step.records.device), group=group)
        if step.heads is not None:
            step.heads = ranks.gather_heads(step.heads, group)

    def _wrapped_decode(self, backend: Any, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward_decode(q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, *args: Any, **kwargs: Any) -> Any:
            if not self._wanted(layer):
                return original(q, k, v, layer, forward_batch, *args, **kwargs)
            if self.source == "tap":
                if kwargs.get("score_mod") is not None:
                    raise SystemExit(
                        "geom: this model changes its attention scores itself, so they cannot be tapped; "
                        "start with --attention-capture-source probe."
                    )
                place = self._places[id(layer)]
                if place == 0:
                    n = q.numel() // (layer.tp_q_head_num * layer.qk_head_dim)
                    pool, lengths = forward_batch.req_pool_indices[:n], forward_batch.seq_lens[:n]
                    guarded(lambda: tap.open_rows(self.buffers, n, pool, lengths))
                kwargs |= {"score_mod": tap.store_logits, "aux_tensors": [self.buffers.tap[place]]}  # type: ignore[index]
            output = original(q, k, v, layer, forward_batch, *args, **kwargs)
            guarded(lambda: self._after_decode(backend, layer, q, forward_batch, kwargs.get("sinks")))
            return output

        return forward_decode

    def _wrapped_extend(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward_extend(q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, *args: Any, **kwargs: Any) -> Any:
            output = original(q, k, v, layer, forward_batch, *args, **kwargs)
            if scheduler.current is not None and (id(layer) in self._places or id(layer) in self._prefills):
                guarded(lambda: self._after_extend(layer, q, forward_batch, kwargs.get("sinks")))
            return output

        return forward_extend

    def _wanted(self, layer: Any) -> bool:
        """In an eager step only when a row asks; while a graph is recorded always, since its replays serve all."""
        return id(layer) in self._places and (scheduler.current is not None or recording())

    def _after_decode(self, backend: Any, layer: Any, q: Any, forward_batch: Any, sinks: Any) -> None:
        tapped = self.source == "tap"
        index, query = self._see(layer, q, sinks)
        if self._keeps_queries:
            probe.keep_queries(self.buffers, index, query)
        if index == len(self.layers) - 1:
            slots, starts = self._key_slots(backend)
            self._launch(forward_batch, query.shape[0], slots, starts, tapped=tapped)

    def _after_extend(self, layer: Any, q: Any, forward_batch: Any, sinks: Any) -> None:
        if scheduler.evictor is not None:
            scheduler.evictor.see(layer, q)
        ends = forward_batch.extend_seq_lens.cumsum(0) - 1
        if (latent := self._prefills.get(id(layer))) is not None:
            index = latent.place
            queries = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)[ends]
            probe.keep_queries(self.buffers, index, latent.latent_queries(queries))
        else:
            index, query = self._see(layer, q, sinks)
            probe.keep_queries(self.buffers, index, query, ends)
        if index == len(self.layers) - 1:
            self._launch(forward_batch, forward_batch.seq_lens.shape[0], self._table, None, tapped=False, prefill=True)

    def _see(self, layer: Any, q: Any, sinks: Any) -> tuple[int, Any]:
        """The layer's place among the captured ones, and its queries [tokens, H, D]."""
        index = self._places[id(layer)]
        if sinks is not None:
            self.buffers.learned_sinks[index].copy_(sinks)
            self._learned_sinks = True
        return index, q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)

    def _launch(
        self, forward_batch: Any, n: int, slots: Any, starts: Any, *, tapped: bool, prefill: bool = False
    ) -> None:
        pool, lengths = forward_batch.req_pool_indices[:n], forward_batch.seq_lens[:n]
        rows = probe.Rows(n, pool, lengths, slots, starts, prefill)
        if self._beside is None:
            probe.launch(self.buffers, rows, tapped=tapped, learned_sinks=self._learned_sinks)
            return
        # Three short launches wait for each other more than they work: beside the rest of the model they cost little.
        self._beside.wait_stream(torch.cuda.current_stream())
        self._forked = True
        with torch.cuda.stream(self._beside):
            probe.launch(self.buffers, rows, tapped=tapped, learned_sinks=self._learned_sinks)

    def join(self) -> None:
        """After a forward pass, inside its graph if it is recorded: the current stream waits for the launches."""
        if self._forked and self._beside is not None:
            torch.cuda.current_stream().wait_stream(self._beside)
        self._forked = False

    def _key_slots(self, backend: Any) -> tuple[Any, Any]:
        """Where the keys of each row are: the Triton backend's own list, which a graph keeps, else the pool's table.

        The scheduler may write that table while a graph runs: beyond a running row's length, in the row of a request
        that has ended, whose record nobody reads, or with other slots of the prefix cache that hold the same keys.
        """
        metadata = getattr(backend, "forward_metadata", None)
        indices = getattr(metadata, "kv_indices", None)
        if metadata is None or not isinstance(indices, torch.Tensor) or indices.dim() != 1:
            return self._table, None
        return indices, metadata.kv_indptr


def triton_decode_window(runner: Any) -> int | None:
    """Keys before the query's own that SGLang's Triton decode attends to in layers with a sliding window.

    Its list of a window's keys has `sliding_window_size` of them, the query's own included, where its prefill and
    every other backend count that one extra.
    """
    size = getattr(runner, "sliding_window_size", None)
    return None if size is None else size - 1


def has_kernels(device: Any) -> bool:
    """Whether Triton kernels run on this device, if need be in its interpreter."""
    return torch.device(device).type != "cpu" or bool(triton.knobs.runtime.interpret)


def _longest(req: Any) -> int:
    """A length that the request cannot exceed, known alike on every rank."""
    limit = getattr(req.sampling_params, "max_new_tokens", None)
    return len(req.origin_input_ids) + (1 << 30 if limit is None else int(limit)) + 1


def _budget(device: Any) -> int:
    """Bytes that one large buffer of ours may take."""
    if torch.device(device).type != "cuda":
        return BUDGET_BYTES
    free, total = torch.cuda.mem_get_info()
    return min(max(BUDGET_BYTES, int(total * SHARE_OF_DEVICE)), int(free * SHARE_OF_FREE))


def _source(asked: str, shape: Shape, *, rows: int, length: int, windows: tuple[int, ...], device: Any) -> str:
    """`tap` or `probe`; ValueError when a tap was asked for and cannot be."""
    if asked == "probe":
        return "probe"
    needed = tap.bytes_of(shape, layers=len(windows), rows=rows, max_length=length)
    budget = _budget(device)
    if any(window > -1 for window in windows):
        reason = "logits of layers with a sliding window cannot be tapped"
    elif needed > budget:
        reason = f"the logits of {rows} rows of {length} keys take {needed >> 20} MiB, more than {budget >> 20} MiB"
    else:
        return "tap"
    if asked == "tap":
        raise ValueError(f"{reason}; start with --attention-capture-source probe")
    return "probe"


def _layer_of(module: Any, eight_bit: bool, decode_window: int | None) -> Layer:
    """What the logits of this attention module depend on; keys of eight bits are stored divided by a scale."""
    scale = module.scaling
    if eight_bit and getattr(module, "k_scale_float", None) is not None:
        scale *= module.k_scale_float
    window = -1 if module.sliding_window_size is None else module.sliding_window_size
    return Layer(scale, module.logit_cap or 0.0, window, decode_window if window > -1 else None)
