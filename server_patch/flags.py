"""The plugin's command-line flags on SGLang's own parser, and the configurations it refuses.

`geom serve` offers the same flags; a test holds the two together.
"""

from __future__ import annotations

import os
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from geomcli.server_patch import eviction_options, firewall_options, radix_options
from geomcli.server_patch.server_options import SOURCES, ServerOptions

CONFIG_ATTRIBUTE = "_geom_options"
DEBUG_VARIABLE = "GEOM_DEBUG"
# SGLang's backend class -> the name of its flag. Others have no hook point that sees every key.
BACKENDS = {
    "TorchNativeAttnBackend": "torch_native",
    "TritonAttnBackend": "triton",
    "FlashAttentionBackend": "fa3",
    "FlashInferAttnBackend": "flashinfer",
}
_UNIFIED_BY_DEFAULT = (0, 5, 20)
_CPP_TREE_VARIABLE = "SGLANG_EXPERIMENTAL_CPP_RADIX_TREE"
_UNIFIED_TREE_VARIABLE = "SGLANG_ENABLE_UNIFIED_RADIX_TREE"
_YES = ("1", "true", "yes", "y")
SUPPORTED_BACKENDS = ("triton", "fa3", "flashinfer", "torch_native")


def add_flags(parser: ArgumentParser) -> None:
    """Add every flag of docs/reference.md."""
    d = ServerOptions()
    group = parser.add_argument_group("geom: attention of every generated token")

    def switch(name: str, told: str) -> None:
        group.add_argument(name, action="store_true", help=told)

    def number(*names: str, default: int, told: str) -> None:
        group.add_argument(*names, type=int, default=default, metavar="N", help=told)

    switch("--return-attention-tokens", "capture for the requests that ask")
    switch("--attention-fingerprint-mode", "default mode is fingerprint instead of raw")
    switch("--attention-fingerprint-only", "nothing but fingerprints ever leaves the server")
    switch("--attention-sketch-mode", "default mode is sketch instead of raw")
    number("--attention-tokens-top-k", default=d.top_k, told="raw links an entry, 1..64")
    number("--attention-tokens-max", default=d.max_entries, told="entries a request, 0 = all")
    number("--attention-tokens-stride", "--attention-capture-stride", default=d.stride, told="capture every Nth step")
    number("--attention-tokens-window", default=d.window, told="only the last N keys, 0 = all")
    group.add_argument(
        "--attention-capture-layers", default=d.layers, metavar="WHICH", help="last, auto, mid or ids like 0,10,20"
    )
    group.add_argument(
        "--attention-capture-source",
        default=d.source,
        choices=SOURCES,
        help="triton backend: read keys again (probe), or store the kernel's logits (tap); auto taps where they fit",
    )
    number("--attention-fingerprint-max-steps", default=d.max_steps, told="stop fingerprints after N steps, 0 = never")
    number("--attention-sink-tokens", default=d.sink_tokens, told="first N positions are sinks")
    number(
        "--attention-chunk-size", default=d.chunk_size,
        told="keys that are handled at a time, 256..16384: memory against latency",
    )  # fmt: skip
    switch("--attention-mask-system-prompt", "a chat's system messages do not exist for capture")
    switch(
        "--attention-derotate",
        "insist on the de-rotated view: keep the queries of tapped layers too, and stop where it cannot be had",
    )
    group.add_argument(
        "--attention-api-key", default=d.api_key, metavar="KEY", help="needed to ask for attention; a bearer token too"
    )
    # A list in a --config file becomes several words.
    group.add_argument(
        "--attention-cors-origins",
        nargs="+",
        default=[d.cors_origins],
        metavar="LIST",
        help="origins that may read /v1/attention/*, with commas between them; * = all",
    )
    number(
        "--attention-max-concurrent-capture",
        default=d.max_concurrent,
        told="captures at once, 0 = no limit; more are answered 429",
    )
    group.add_argument(
        firewall_options.FLAG, default=firewall_options.OFF, choices=firewall_options.CHOICES,
        help="watch every answer's drift, asked for or not: log it, end the answer, or end it for a router to act",
    )  # fmt: skip
    group.add_argument(
        firewall_options.WINDOW_FLAG, type=int, default=None, metavar="N",
        help="tokens that the compass takes drift over; 10, or the calibration's",
    )  # fmt: skip
    group.add_argument(
        firewall_options.THRESHOLD_FLAG, type=float, default=None, metavar="X",
        help="score at which to halt; the calibration's, else a drift of 0.5, which is not calibrated",
    )  # fmt: skip
    group.add_argument(
        firewall_options.DETECTOR_FLAG, default=firewall_options.COMPASS, choices=firewall_options.DETECTORS,
        help="what the firewall watches with; docs/geometry.md, Detectors",
    )  # fmt: skip
    group.add_argument(
        firewall_options.CALIBRATION_FLAG, nargs="+", default=[], metavar="FILE",
        help="files of geom calibrate, for the detectors of this model",
    )  # fmt: skip
    switch(
        "--attention-auto-sampling",
        "the zone of an answer's last tokens chooses its temperature and top_p, unless the request sets one of them",
    )
    group.add_argument(
        "--attention-sidecar-url", default=d.sidecar_url, metavar="URL",
        help="push the fingerprints of requests that ask to a geom sidecar, as in tcp://localhost:9001",
    )  # fmt: skip
    group.add_argument(
        radix_options.WEIGHT_FLAG, type=float, default=d.spectral_weight, metavar="W",
        help=f"received attention against recency, in {radix_options.POLICY_FLAG} {radix_options.POLICY}; 0 = lru",
    )  # fmt: skip
    switch(
        eviction_options.FLAG,
        "tokens of running requests that are hardly looked at leave the KV cache, asked for or not",
    )
    group.add_argument(
        eviction_options.RATIO_FLAG, type=float, default=eviction_options.DEFAULT_RATIO, metavar="R",
        help="share of a running request's tokens that stays in the KV cache",
    )  # fmt: skip
    switch("--attention-disable-in-production", f"no capture unless {DEBUG_VARIABLE}=1 is set")


def options_from(args: Namespace) -> ServerOptions:
    """The checked ServerOptions of a parsed command line; ValueError names the flag."""
    in_production = args.attention_disable_in_production and os.environ.get(DEBUG_VARIABLE) != "1"
    known = firewall_options.known_from(args.attention_calibration)
    options = ServerOptions(
        enabled=args.return_attention_tokens and not in_production,
        fingerprint_mode=args.attention_fingerprint_mode,
        fingerprint_only=args.attention_fingerprint_only,
        sketch_mode=args.attention_sketch_mode,
        top_k=args.attention_tokens_top_k,
        max_entries=args.attention_tokens_max,
        stride=args.attention_tokens_stride,
        window=args.attention_tokens_window,
        layers=str(args.attention_capture_layers),
        source=args.attention_capture_source,
        max_steps=args.attention_fingerprint_max_steps,
        sink_tokens=args.attention_sink_tokens,
        chunk_size=args.attention_chunk_size,
        mask_system_prompt=args.attention_mask_system_prompt,
        derotate=args.attention_derotate,
        api_key=args.attention_api_key,
        cors_origins=",".join(args.attention_cors_origins),
        max_concurrent=args.attention_max_concurrent_capture,
        disable_in_production=in_production,
        sidecar_url=args.attention_sidecar_url,
        auto_sampling=args.attention_auto_sampling,
        calibrations=known,
        guard=firewall_options.of_flags(
            args.attention_firewall,
            args.attention_firewall_window,
            args.attention_firewall_threshold,
            args.attention_firewall_detector,
            known,
        ),
        spectral_radix=getattr(args, "radix_eviction_policy", None) == radix_options.POLICY,
        spectral_weight=args.spectral_weight,
        retention=eviction_options.of_flags(args.spectral_evict_decode, args.spectral_retention_ratio),
    )
    options.check()
    if not options.enabled and (what := options.observer):
        reason = "is off without --return-attention-tokens"
        if in_production:
            reason = f"is off under --attention-disable-in-production without {DEBUG_VARIABLE}=1"
        raise ValueError(f"{what} what is captured, and capture {reason}")
    return options


def without_key(command: str) -> str:
    """The command line without the value of --attention-api-key, also where that name is cut short."""
    return re.sub(r"(--attention-a(?:p[\w-]*)?[\s=])\S+", r"\1***", command)


def refusal(server_args: Any, options: ServerOptions = ServerOptions()) -> str | None:  # noqa: B008  (frozen)
    """One sentence naming the flag to change if capture cannot be exact under this configuration, else None."""

    def value(name: str, default: Any = None) -> Any:
        return getattr(server_args, name, default)

    def set_to(name: str) -> bool:
        return value(name) not in (None, "", "NONE", "null", False)

    checks = (
        (set_to("speculative_algorithm"), f"speculative decoding ({value('speculative_algorithm')})",
         "--speculative-algorithm"),
        (value("pp_size", 1) > 1, "pipeline parallelism", "--pp-size"),
        (value("dp_size", 1) > 1, "data parallelism", "--dp-size"),
        (value("attn_cp_size", 1) > 1, "context parallelism", "--attention-context-parallel-size"),
        (value("dcp_size", 1) > 1, "context parallelism of decode", "--dcp-size"),
        (set_to("enable_prefill_cp"), "context parallelism of prefill", "--enable-prefill-cp"),
        (value("tokenizer_worker_num", 1) > 1, "several tokenizer workers", "--tokenizer-worker-num"),
        (set_to("disaggregation_mode"), "disaggregation", "--disaggregation-mode"),
        (set_to("enable_two_batch_overlap"), "two-batch overlap", "--enable-two-batch-overlap"),
        (set_to("enable_pdmux"), "multiplexed prefill and decode", "--enable-pdmux"),
        (_prefill_graph(server_args) == "full", "prefill as one CUDA graph: no hook runs in its replays",
         "--cuda-graph-backend-prefill full"),
        (set_to("enable_hisparse"), "sparse attention over a part of the keys", "--enable-hisparse"),
        (set_to("dllm_algorithm"), "diffusion decoding: its tokens have no order", "--dllm-algorithm"),
        (set_to("enable_torch_compile"), "torch.compile: it would trace through the hooks", "--enable-torch-compile"),
        (set_to("grpc_mode"), "the gRPC server", "--grpc-mode"),
        (set_to("smg_grpc_mode"), "the gRPC server", "--smg-grpc-mode"),
        (set_to("use_ray"), "Ray actors", "--use-ray"),
        (set_to("enable_unified_memory"), "unified memory: its key slots are virtual", "--enable-unified-memory"),
        (set_to("enable_nvidia_megakernel"), "a megakernel: no attention backend runs", "--enable-nvidia-megakernel"),
        (set_to("enable_amd_monokernel"), "a monokernel: no attention backend runs", "--enable-amd-monokernel"),
        ("fp4" in str(value("kv_cache_dtype")), "4-bit keys", "--kv-cache-dtype"),
        ("mxfp8" in str(value("kv_cache_dtype")), "block-scaled keys", "--kv-cache-dtype"),
    )  # fmt: skip
    for applies, what, flag in checks:
        if applies:
            return f"--return-attention-tokens cannot capture under {what}; leave {flag} out."
    if options.retention is not None and (sentence := _evicting(value, set_to)):
        return sentence
    if os.environ.get("SGLANG_RUST_SERVER", "").lower() in _YES:
        return "--return-attention-tokens cannot capture behind the Rust server; unset SGLANG_RUST_SERVER."
    return None


def _evicting(value: Callable[..., Any], set_to: Callable[[str], bool]) -> str | None:
    """The same for what cannot be where keys of running requests leave."""
    checks = (
        (value("tp_size", 1) > 1, "tensor parallelism: ranks might choose differently", "--tp-size"),
        ((value("page_size", None) or 1) != 1, "pages of several tokens", "--page-size"),
        (set_to("enable_mixed_chunk"), "prefill and decode in one step", "--enable-mixed-chunk"),
        (set_to("enable_dp_attention"), "data-parallel attention", "--enable-dp-attention"),
        (set_to("enable_hierarchical_cache"), "a hierarchical cache", "--enable-hierarchical-cache"),
        (set_to("enable_lmcache"), "LMCache", "--enable-lmcache"),
        (set_to("enable_flexkv"), "FlexKV", "--enable-flexkv"),
        (set_to("enable_streaming_session"), "streaming sessions", "--enable-streaming-session"),
        (set_to("enable_session_radix_cache"), "sessions in the prefix cache", "--enable-session-radix-cache"),
        (set_to("strip_thinking_cache"), "a prefix cache without thoughts", "--strip-thinking-cache"),
        (value("kv_canary", None) not in (None, "none"), "a canary in the KV cache", "--kv-canary"),
        ("fp8" in str(value("kv_cache_dtype")), "8-bit keys", "--kv-cache-dtype"),
        (value("radix_cache_backend", None) is not None, "a prefix cache of another make", "--radix-cache-backend"),
        (set_to("enable_unified_cache_external_linker"), "a prefix cache linked to another",
         "--enable-unified-cache-external-linker"),
    )  # fmt: skip
    for applies, what, flag in checks:
        if applies:
            return f"{eviction_options.FLAG} cannot be under {what}; leave {flag} out."
    if os.environ.get(_CPP_TREE_VARIABLE, "").lower() in _YES:
        return f"{eviction_options.FLAG} cannot be under the C++ tree; unset {_CPP_TREE_VARIABLE}."
    # That tree gave a request's lock back in a third way then.
    number = tuple(map(int, re.findall(r"\d+", version("sglang"))[:3]))
    if number < _UNIFIED_BY_DEFAULT and os.environ.get(_UNIFIED_TREE_VARIABLE, "").lower() in _YES:
        return f"{eviction_options.FLAG} needs this SGLang's default tree; unset {_UNIFIED_TREE_VARIABLE}."
    return None


def _prefill_graph(server_args: Any) -> str:
    """How prefills are put into CUDA graphs; attention runs between the pieces of all kinds but `full`."""
    phase = getattr(getattr(server_args, "cuda_graph_config", None), "prefill", None)
    backend = getattr(phase, "backend", None)
    return str(getattr(backend, "value", backend))
