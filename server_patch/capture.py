"""Scheduler process: which rows of a step are captured, and how their statistics reach the step's result.

Order within one step: ForwardBatch.init_new plans, ModelRunner.forward publishes the plan, the attention backend fills
it (native.py, device.py), ModelRunner.sample sends it along with the logits. A body that raises marks its rows as
failed; the model's text goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from geomcli.errors import GeomError
from geomcli.kernels import layout
from geomcli.server_patch import (
    eviction,
    eviction_options,
    faults,
    flags,
    hooks,
    moe,
    native,
    transport,
    zone_sampling,
)
from geomcli.server_patch.attention_ranks import attention_ranks
from geomcli.server_patch.deviations import deviations
from geomcli.server_patch.firewall_options import loaded
from geomcli.server_patch.held import text_length
from geomcli.server_patch.logit_statistics import Logits
from geomcli.server_patch.publisher import Publisher
from geomcli.server_patch.request_state import RequestState, population, state_of
from geomcli.server_patch.ropes import NotUndone, embeddings_of
from geomcli.server_patch.scheduler_state import scheduler
from geomcli.server_patch.server_options import ServerOptions, parse_layers
from geomcli.server_patch.startup import INIT_INFO_KEY, options_of
from geomcli.server_patch.values import LOGIT_STATISTICS

logger = logging.getLogger("geom")

STEP_ATTRIBUTE = "_geom_step"
_EVICTING = ("torch_native", "triton")  # backends that keys may leave under


def after_init_attention_backends(_result: Any, runner: Any) -> None:
    from sglang.srt.runtime_context import get_server_args

    server_args = get_server_args()
    options = options_of(server_args)
    if not options.enabled or getattr(runner, "is_draft_worker", False):
        return
    try:
        _prepare(runner, server_args)
    except ValueError as error:
        raise SystemExit(f"geom: {error}.") from None


def _prepare(runner: Any, server_args: Any) -> None:
    """Learn the model's shape and put capture on its attention; ValueError with a sentence when that cannot be."""
    options, config = options_of(server_args), runner.model_config
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError("encoder-decoder models cannot be captured: their attention is not over their own text")
    decode = getattr(runner.attn_backend, "decode_backend", runner.attn_backend)
    extend = getattr(runner.attn_backend, "prefill_backend", runner.attn_backend)
    kinds = [flags.BACKENDS.get(type(backend).__name__) for backend in (decode, extend)]
    for kind, backend in zip(kinds, (decode, extend), strict=True):
        if kind is None or (kind == "torch_native" and kinds != ["torch_native"] * 2):
            raise ValueError(
                f"attention of {type(backend).__name__} cannot be captured; "
                f"start with --attention-backend {' or '.join(flags.SUPPORTED_BACKENDS)}"
            )
    if any(getattr(b, "use_sliding_window_kv_pool", False) for b in (decode, extend)):
        raise ValueError("models with a sliding-window KV pool cannot be captured")
    if _is_latent(config) and set(kinds) != {"triton"}:
        raise ValueError(
            "latent attention (MLA) is captured with the triton attention backend only; "
            "start with --attention-backend triton"
        )
    scheduler.layers = parse_layers(options.layers, config.num_hidden_layers)
    scheduler.backend = str(kinds[0])
    group = attention_ranks()
    if scheduler.backend == "torch_native":
        if group is not None:
            raise ValueError(
                "torch_native attention cannot be captured under tensor parallelism; start with --attention-backend "
                "triton, or leave --tp-size out"
            )
        scheduler.source = "recompute"
    else:
        from geomcli.server_patch.device import DeviceCapture, has_kernels

        if not has_kernels(runner.device):
            raise ValueError(
                f"the {scheduler.backend} attention backend has no kernels for {runner.device}; "
                "start with --attention-backend torch_native"
            )

        source = options.source if scheduler.backend == "triton" else "probe"
        evicts = options.retention is not None
        capture = DeviceCapture(runner, scheduler.layers, source, group, options.chunk_size, evicts=evicts)
        capture.attach(decode, extend=extend is decode)
        if extend is not decode:
            capture.attach(extend, decode=False)
        scheduler.device, scheduler.source = capture, capture.source
    model = str(server_args.served_model_name or server_args.model_path)
    try:
        calibrations = loaded(options.calibrations, model, scheduler.layers, config.num_attention_heads)
        scheduler.calibrations = calibrations
    except GeomError as error:
        raise ValueError(str(error).removesuffix(".")) from None
    if options.retention is not None:
        _prepare_eviction(runner, options)
    _prepare_derotation(runner.model, insisted=options.derotate)
    if scheduler.device is not None:
        scheduler.device.compile_kernels()
    scheduler.deviations = deviations(runner.model, config.hf_text_config, list(map(str, kinds)), config.context_len)
    for sentence in scheduler.deviations:
        logger.warning("geom: %s. Entries say what the engine computed.", sentence)
    scheduler.routing, scheduler.routing_missing = moe.of_model(runner, server_args)
    scheduler.options = options
    scheduler.metrics = bool(getattr(server_args, "enable_metrics", False))
    scheduler.layers_total = config.num_hidden_layers
    scheduler.heads_total = config.num_attention_heads
    scheduler.cuda_graph = str(runner.device) == "cuda" and not getattr(server_args, "disable_cuda_graph", True)
    # The others' tokens nobody reads.
    if group is None or group.rank == 0:
        rows = runner.req_to_token_pool.req_to_token.shape[0]
        words = layout.RECORD_WORDS + config.num_attention_heads * layout.HEAD_WORDS + layout.D_WEIGHT * layout.KEEP
        words *= len(scheduler.layers)
        if scheduler.routing is not None:
            words += scheduler.routing.words
        words += len(LOGIT_STATISTICS)
        scheduler.publisher = Publisher(scheduler.layers, 4 * rows * words)
        if scheduler.device is not None:
            scheduler.device.pin(scheduler.publisher.ring)


def _prepare_eviction(runner: Any, options: ServerOptions) -> None:
    from geomcli.server_patch.evictor import Evictor

    if scheduler.backend not in _EVICTING:
        raise ValueError(
            f"keys do not leave under the {scheduler.backend} attention backend; leave {eviction_options.FLAG} out, or "
            f"start with --attention-backend {' or '.join(_EVICTING)}"
        )
    buffers = None if scheduler.device is None else scheduler.device.buffers
    try:
        scheduler.evictor = Evictor(runner, scheduler.layers, options.sink_tokens, buffers)
    except ValueError as reason:
        raise ValueError(f"{eviction_options.FLAG} cannot be: {reason}") from None
    if sentence := eviction_options.warning(options.retention):
        logger.warning("geom: %s.", sentence)


def _prepare_derotation(model: Any, *, insisted: bool) -> None:
    """Offer the de-rotated view where it costs those nothing who do not ask for it, or where the server insists."""
    if scheduler.evictor is not None:
        scheduler.not_derotated = f"links are not de-rotated where keys leave ({eviction_options.FLAG})"
        return
    try:
        found = embeddings_of(model, scheduler.layers)
    except NotUndone as reason:
        scheduler.not_derotated = f"there is no de-rotated view of this model: {reason}"
        if insisted:
            raise ValueError(f"{scheduler.not_derotated}; leave --attention-derotate out") from None
        return
    if scheduler.source == "tap" and not insisted:
        scheduler.not_derotated = (
            "this server taps logits and keeps no queries; start it with --attention-derotate, "
            "or with --attention-capture-source probe"
        )
        return
    scheduler.embeddings = dict(zip(scheduler.layers, found, strict=True))
    if scheduler.device is not None:
        scheduler.device.derotate(found)


def _is_latent(config: Any) -> bool:
    """Whether the pool holds latent keys, whose queries other backends than Triton's get in two parts."""
    return str(getattr(getattr(config, "attention_arch", None), "name", "")) == "MLA"


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
        "source": scheduler.source,
        "not_derotated": scheduler.not_derotated,
        "cuda_graph": scheduler.cuda_graph,
        "records": None if scheduler.publisher is None else scheduler.publisher.address,
        "deviations": scheduler.deviations,
        "moe_layers": [] if scheduler.routing is None else list(scheduler.routing.layers),
        "moe_missing": scheduler.routing_missing,
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
    eviction.begin(forward_batch, batch)
    try:
        step = _plan(forward_batch, batch)
        if step is not None and population.logits:
            rows = [row for row, _, state in _asking(batch.reqs) if state.options.logits]
            step.logits = Logits(rows) if rows else None
        if population.steered:
            asking = _asking(batch.reqs)
            steered = [(row, state.steered) for row, _, state in asking if state.steered is not None]
            sampled = zone_sampling.apply(forward_batch, batch.reqs, steered)
            if step is not None:
                step.sampled = sampled
    except Exception:
        faults.report("a step could not be planned; its tokens carry error entries")
        return
    if step is not None:
        setattr(forward_batch, STEP_ATTRIBUTE, step)


def _plan(forward_batch: Any, batch: Any) -> Any:
    if forward_batch.forward_mode.is_extend():
        asking = _asking(batch.reqs)
        if scheduler.device is not None:
            return scheduler.device.plan_extend(batch.reqs, tuple(asking))
        return native.plan_step(forward_batch, asking) if asking else None
    if not population.count or not _any_due(batch.reqs, getattr(forward_batch, "seq_lens_cpu", None)):
        return None
    if scheduler.device is None:
        return native.plan_step(forward_batch, _asking(batch.reqs))
    named = scheduler.device.group is not None or population.derotated or population.observed
    named = named or population.logits > 0
    return scheduler.device.plan_decode(tuple(_asking(batch.reqs)) if named else ())


def _asking(requests: Any) -> list[tuple[int, Any, RequestState]]:
    return [(row, req, state) for row, req in enumerate(requests) if (state := state_of(req)) is not None]


def _any_due(requests: Any, lengths: Any) -> bool:
    """Whether a row's token is captured, as far as the host knows their lengths: a step of others runs as it is."""
    known = None
    for row, req in enumerate(requests):
        state = state_of(req)
        if state is None:
            continue
        if state.always or lengths is None:
            return True
        if known is None:
            known = lengths.tolist()
        if state.captures(max(0, text_length(req, known[row]) - len(req.origin_input_ids))):
            return True
    return False


def around_forward(original: Callable[..., Any], runner: Any, forward_batch: Any, *args: Any, **kwargs: Any) -> Any:
    step = getattr(forward_batch, STEP_ATTRIBUTE, None)
    writes = None if scheduler.evictor is None else scheduler.evictor.writes
    if step is None and writes is None:
        return original(runner, forward_batch, *args, **kwargs)
    if step is None and scheduler.device is not None:
        # Nothing is captured, but queries are kept.
        step = scheduler.device.plan_decode()
    scheduler.current = step
    try:
        output = original(runner, forward_batch, *args, **kwargs)
        if writes is not None and scheduler.device is not None:
            eviction.remember(writes)
        return output
    finally:
        scheduler.current = None
        if scheduler.evictor is not None:
            scheduler.evictor.writes = None
        if scheduler.device is not None:
            scheduler.device.join()


def before_sample(_runner: Any, logits_output: Any, forward_batch: Any, *_: Any, **__: Any) -> None:
    step = getattr(forward_batch, STEP_ATTRIBUTE, None)
    if step is None or step.logits is None:
        return
    try:
        step.logits.read(logits_output.next_token_logits)
    except Exception:
        faults.report("the logits of a step could not be read; its entries say null")


def after_sample(tokens: Any, _runner: Any, logits_output: Any, forward_batch: Any) -> None:
    step = getattr(forward_batch, STEP_ATTRIBUTE, None)
    try:
        transport.forget(logits_output)
        if step is None:
            return
        if step.logits is not None:
            _finish(step.logits, tokens)
        if scheduler.device is not None:
            scheduler.device.collect(step, forward_batch, tokens.shape[0])
        moe.collect(scheduler.routing, step, forward_batch, tokens.shape[0])
        transport.attach(logits_output, step)
    except Exception:
        faults.report("a step's statistics could not be sent along; its tokens carry error entries")


def _finish(logits: Logits, tokens: Any) -> None:
    try:
        logits.finish(tokens)
    except Exception:
        faults.report("the logits of a step could not be used; its entries say null")
