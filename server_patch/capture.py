"""Scheduler process: which rows of a step are captured, and their statistics while keys and query are at hand.

Order within one step: ForwardBatch.init_new plans, ModelRunner.forward publishes the plan, the attention backend's
hook fills it, ModelRunner.sample sends it along with the logits. A body that raises marks its rows as failed; the
model's text goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from geomcli.kernels.reference import RowStatistics, attention_logits, row_statistics
from geomcli.server_patch import faults, flags, hooks
from geomcli.server_patch.options import CaptureOptions, ServerOptions, parse_layers
from geomcli.server_patch.request_state import state_of
from geomcli.server_patch.startup import INIT_INFO_KEY, options_of

STEP_ATTRIBUTE = "_geom_step"


@dataclass
class RowPlan:
    """One captured row: where it is in the batch, and the output token that its attention belongs to."""

    row: int
    request: Any
    options: CaptureOptions
    output_index: int
    query_position: int
    statistics: dict[int, RowStatistics] = field(default_factory=dict)
    error: str | None = None


@dataclass
class StepPlan:
    """The captured rows of one forward pass; travels as an auxiliary output of its logits."""

    rows: list[RowPlan]
    layers: frozenset[int]
    extend: bool

    def copy_to_host(self, _copy_tensor: Callable[[Any], Any]) -> StepPlan:
        return self

    def consume(self, _batch: Any, _commits: Any) -> None:
        """Entries are built before the tokens are committed (results.py); nothing is left to do afterwards."""


class SchedulerState:
    """What this scheduler learnt at start, and the step that is being computed."""

    def __init__(self) -> None:
        self.options = ServerOptions()
        self.layers: tuple[int, ...] = ()
        self.layers_total = 0
        self.heads_total = 0
        self.backend = ""
        self.cuda_graph = False
        self.current: StepPlan | None = None


scheduler = SchedulerState()


def after_init_attention_backends(_result: Any, runner: Any) -> None:
    from sglang.srt.runtime_context import get_server_args

    server_args = get_server_args()
    options = options_of(server_args)
    if not options.enabled or getattr(runner, "is_draft_worker", False):
        return
    backend = type(runner.attn_backend).__name__
    if backend != "TorchNativeAttnBackend":
        raise SystemExit(
            f"geom: attention of {backend} cannot be captured; "
            f"start with --attention-backend {' or '.join(flags.SUPPORTED_BACKENDS)}."
        )
    if getattr(runner.attn_backend, "use_sliding_window_kv_pool", False):
        raise SystemExit("geom: models with a sliding-window KV pool cannot be captured on this backend.")
    config = runner.model_config
    if getattr(config, "is_encoder_decoder", False):
        raise SystemExit("geom: encoder-decoder models cannot be captured: their attention is not over their own text.")
    try:
        scheduler.layers = parse_layers(options.layers, config.num_hidden_layers)
    except ValueError as error:
        raise SystemExit(f"geom: {error}.") from None
    scheduler.options = options
    scheduler.layers_total = config.num_hidden_layers
    scheduler.heads_total = config.num_attention_heads
    scheduler.backend = "torch_native"
    scheduler.cuda_graph = str(runner.device) == "cuda" and not getattr(server_args, "disable_cuda_graph", True)


def after_get_init_info(info: Any, _scheduler: Any) -> Any:
    if not scheduler.options.enabled or not isinstance(info, dict):
        return None
    from sglang.srt.plugins.hook_registry import HookRegistry

    mine = {h.target for h in hooks.hooks_for(hooks.SCHEDULER)}
    info[INIT_INFO_KEY] = {
        "layers_total": scheduler.layers_total,
        "layers_captured": list(scheduler.layers),
        "heads_total": scheduler.heads_total,
        "backend": scheduler.backend,
        "cuda_graph": scheduler.cuda_graph,
        "sglang": version("sglang"),
        "hooks": {
            "applied": sorted(mine & HookRegistry._patched),
            "missing": sorted(mine - HookRegistry._patched),
        },
    }
    return info


def after_init_new(forward_batch: Any, _cls: type, batch: Any, _model_runner: Any, *_: Any, **__: Any) -> None:
    if not scheduler.options.enabled:
        return
    try:
        step = _plan(forward_batch, batch)
    except Exception:
        faults.report("a step could not be planned; its tokens carry error entries")
        return
    if step is not None:
        setattr(forward_batch, STEP_ATTRIBUTE, step)


def _plan(forward_batch: Any, batch: Any) -> StepPlan | None:
    asking = [(row, req, s) for row, req in enumerate(batch.reqs) if (s := state_of(req)) is not None]
    if not asking:
        return None
    extend = forward_batch.forward_mode.is_extend()
    lengths = forward_batch.seq_lens_cpu if forward_batch.seq_lens_cpu is not None else forward_batch.seq_lens
    rows = []
    for row, req, request_state in asking:
        length = int(lengths[row])
        prompt_len = len(req.origin_input_ids)
        if extend and length < prompt_len + len(req.output_ids):
            continue  # a middle chunk of a chunked prefill: no token comes out of it
        output_index = length - prompt_len
        if request_state.captures(output_index):
            rows.append(RowPlan(row, req, request_state.options, output_index, length - 1))
    if not rows:
        return None
    return StepPlan(rows, frozenset(layer for plan in rows for layer in plan.options.layers), extend)


def around_forward(original: Callable[..., Any], runner: Any, forward_batch: Any, *args: Any, **kwargs: Any) -> Any:
    step = getattr(forward_batch, STEP_ATTRIBUTE, None)
    if step is None:
        return original(runner, forward_batch, *args, **kwargs)
    scheduler.current = step
    try:
        return original(runner, forward_batch, *args, **kwargs)
    finally:
        scheduler.current = None


def after_attention(
    _output: Any, backend: Any, q: Any, _k: Any, _v: Any, layer: Any, forward_batch: Any, *_: Any, **__: Any
) -> None:
    """Torch-native backend: the step's keys are in the pool by now, so the row can be computed again, exactly."""
    step = scheduler.current
    if step is None or layer.layer_id not in step.layers or layer.is_cross_attention:
        return
    try:
        query = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        key_buffer = backend.token_to_kv_pool.get_key_buffer(layer.layer_id)
        table = backend.req_to_token_pool.req_to_token
        pool_rows = forward_batch.req_pool_indices.tolist()
        last_rows = (forward_batch.extend_seq_lens.cumsum(0) - 1).tolist() if step.extend else None
    except Exception as error:
        faults.report("a layer of a step could not be read")
        for plan in step.rows:
            plan.error = plan.error or type(error).__name__
        return
    for plan in step.rows:
        if plan.error is None and layer.layer_id in plan.options.layers:
            try:
                row = plan.row if last_rows is None else last_rows[plan.row]
                plan.statistics[layer.layer_id] = _statistics(
                    plan, query[row], key_buffer, table[pool_rows[plan.row]], layer
                )
            except Exception as error:
                faults.report("a layer of a row could not be captured")
                plan.error = type(error).__name__


def first_key(options: CaptureOptions, query_position: int, sliding_window: int = -1) -> int:
    """First position whose key counts: behind the mask, inside the request's and the layer's window."""
    first = options.mask_prefix
    if options.window:
        first = max(first, query_position + 1 - options.window)
    if sliding_window > -1:
        first = max(first, query_position - sliding_window)
    return min(first, query_position + 1)


def _statistics(plan: RowPlan, query: Any, key_buffer: Any, token_row: Any, layer: Any) -> RowStatistics:
    options = plan.options
    window = layer.sliding_window_size if layer.sliding_window_size is not None else -1
    first = first_key(options, plan.query_position, window)
    keys = key_buffer[token_row[first : plan.query_position + 1].long()]
    if options.heads is not None and keys.shape[1] > 1:
        group = query.shape[0] // keys.shape[1]
        keys = keys[:, [head // group for head in options.heads]]
    if options.heads is not None:
        query = query[list(options.heads)]
    row = row_statistics(
        attention_logits(query, keys, layer.scaling),
        query_position=plan.query_position,
        first_key=first,
        prompt_len=len(plan.request.origin_input_ids),
        sink_tokens=options.sink_tokens,
        top_k=options.top_k,
        head_statistics=options.head_stats,
    )
    if not math.isfinite(row.lse + row.entropy_bits + row.sink_mass + float(row.histogram.sum())):
        raise FloatingPointError(f"layer {layer.layer_id}: the attention of this row is not finite")
    return row


def after_sample(_tokens: Any, _runner: Any, logits_output: Any, forward_batch: Any) -> None:
    step = getattr(forward_batch, STEP_ATTRIBUTE, None)
    if step is None:
        return
    try:
        from sglang.srt.managers.auxiliary_output import append_auxiliary_output

        output = append_auxiliary_output(logits_output.auxiliary_device_output, step)
        logits_output.auxiliary_device_output = output
    except Exception:
        faults.report("a step's statistics could not be sent along; its tokens carry error entries")
