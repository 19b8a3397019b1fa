"""`geom serve`: the real SGLang with the plugin, in the foreground."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from geomcli import config, engine, engine_plan, models
from geomcli.cli import output
from geomcli.errors import ServerUnreachable, UsageError

# Option -> field of the plugin's ServerOptions.
_OPTIONS = {
    "return_attention_tokens": "enabled",
    "attention_fingerprint_mode": "fingerprint_mode",
    "attention_fingerprint_only": "fingerprint_only",
    "attention_sketch_mode": "sketch_mode",
    "attention_tokens_top_k": "top_k",
    "attention_tokens_max": "max_entries",
    "attention_tokens_stride": "stride",
    "attention_tokens_window": "window",
    "attention_capture_layers": "layers",
    "attention_capture_source": "source",
    "attention_fingerprint_max_steps": "max_steps",
    "attention_sink_tokens": "sink_tokens",
    "attention_chunk_size": "chunk_size",
    "attention_mask_system_prompt": "mask_system_prompt",
    "attention_derotate": "derotate",
    "attention_api_key": "api_key",
    "attention_cors_origins": "cors_origins",
    "attention_max_concurrent_capture": "max_concurrent",
    "attention_sidecar_url": "sidecar_url",
    "attention_auto_sampling": "auto_sampling",
    "spectral_weight": "spectral_weight",
    "attention_disable_in_production": "disable_in_production",
}
# Those of the firewall, which are one value together, as `of_flags` names them.
_FIREWALL = {
    "attention_firewall": "action", "attention_firewall_window": "window", "attention_firewall_threshold": "threshold",
    "attention_firewall_detector": "detector",
}  # fmt: skip


def serve(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="A pulled model, a folder, or a Hugging Face name.", show_default=True)
    ] = models.DEFAULT_MODEL,
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to bind.", min=1, max=65535)] = config.DEFAULT_PORT,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    log: Annotated[Path | None, typer.Option(help="Log file of the engine.", dir_okay=False)] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the engine.", min=1)] = engine.BOOT_SECONDS,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command and exit.")] = False,
    return_attention_tokens: Annotated[bool, typer.Option(help="Capture for the requests that ask.")] = True,
    attention_fingerprint_mode: Annotated[
        bool,
        typer.Option("--attention-fingerprint-mode", help="Default mode is fingerprint."),
    ] = False,
    attention_fingerprint_only: Annotated[
        bool,
        typer.Option("--attention-fingerprint-only", help="Nothing but fingerprints ever leaves."),
    ] = False,
    attention_sketch_mode: Annotated[
        bool, typer.Option("--attention-sketch-mode", help="Default mode is sketch.")
    ] = False,
    attention_tokens_top_k: Annotated[int | None, typer.Option(help="Raw links an entry, 1..64 (16).")] = None,
    attention_tokens_max: Annotated[int | None, typer.Option(help="Entries a request, 0 = all (4096).")] = None,
    attention_tokens_stride: Annotated[
        int | None,
        typer.Option(
            "--attention-tokens-stride",
            "--attention-capture-stride",
            help="Capture every Nth step (1).",
        ),
    ] = None,
    attention_tokens_window: Annotated[int | None, typer.Option(help="Only the last N keys, 0 = all (0).")] = None,
    attention_capture_layers: Annotated[
        str | None, typer.Option(help="last, auto, mid or ids like 0,10,20 (last).")
    ] = None,
    attention_capture_source: Annotated[
        str | None, typer.Option(help="triton backend: auto, tap (its own logits) or probe (keys read again).")
    ] = None,
    attention_fingerprint_max_steps: Annotated[
        int | None, typer.Option(help="Stop fingerprints after N steps, 0 = never (256).")
    ] = None,
    attention_sink_tokens: Annotated[int | None, typer.Option(help="The first N positions are sinks (4).")] = None,
    attention_chunk_size: Annotated[
        int | None, typer.Option(help="Keys handled at a time, 256..16384 (2048): memory against latency.")
    ] = None,
    attention_mask_system_prompt: Annotated[
        bool, typer.Option("--attention-mask-system-prompt", help="System messages do not exist for capture.")
    ] = False,
    attention_derotate: Annotated[
        bool, typer.Option("--attention-derotate", help="Insist on the de-rotated view, also where logits are tapped.")
    ] = False,
    attention_api_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Key that is needed to ask for attention.")
    ] = None,
    attention_cors_origins: Annotated[
        str | None, typer.Option(metavar="LIST", help="Origins that may read /v1/attention/* (*).")
    ] = None,
    attention_max_concurrent_capture: Annotated[
        int | None, typer.Option(help="Captures at once, 0 = no limit (0).")
    ] = None,
    attention_sidecar_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Push fingerprints to a geom sidecar, as in tcp://localhost:9001.")
    ] = None,
    attention_auto_sampling: Annotated[
        bool,
        typer.Option(
            "--attention-auto-sampling", help="The zone chooses temperature and top_p of requests that set neither."
        ),
    ] = False,
    attention_firewall: Annotated[
        str | None,
        typer.Option(metavar="WHAT", help="Watch every answer's drift: off, log_only, early_stop or re_route (off)."),
    ] = None,
    attention_firewall_window: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens that the compass takes drift over (10).")
    ] = None,
    attention_firewall_threshold: Annotated[
        float | None,
        typer.Option(metavar="X", help="Score at which to halt: the calibration's, else a drift of 0.5."),
    ] = None,
    attention_firewall_detector: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What it watches with: compass, logprob, rauq, heads or received (compass)."),
    ] = None,
    attention_calibration: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="A file of geom calibrate, or a detector's name for the one that it keeps; repeatable."
        ),
    ] = None,
    spectral_weight: Annotated[
        float | None,
        typer.Option(metavar="W", help="Attention against recency, with `-- --radix-eviction-policy spectral` (0.7)."),
    ] = None,
    spectral_evict_decode: Annotated[
        bool,
        typer.Option("--spectral-evict-decode", help="Let tokens of running requests leave the KV cache."),
    ] = False,
    spectral_retention_ratio: Annotated[
        float | None, typer.Option(metavar="R", help="Share of a request's tokens that stays in the KV cache (0.3).")
    ] = None,
    attention_disable_in_production: Annotated[
        bool, typer.Option("--attention-disable-in-production", help="No capture unless GEOM_DEBUG=1 is set.")
    ] = False,
) -> None:
    """Serve MODEL with SGLang and the plugin; everything after `--` goes to SGLang as it is.

    Waits until the server is healthy and the plugin's hooks are in place, then stays in the foreground. Ctrl-C ends
    every process. Without a CUDA GPU it uses SGLang's CPU engine.

    \b
    Examples:
      geom serve                       the default model, on whatever this machine has
      geom serve Qwen/Qwen3-4B --attention-fingerprint-only
      geom serve ./my-model -- --context-length 4096
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device must be auto, cpu or cuda, got {device!r}.")
    values = {
        "return_attention_tokens": return_attention_tokens,
        "attention_fingerprint_mode": attention_fingerprint_mode,
        "attention_fingerprint_only": attention_fingerprint_only,
        "attention_sketch_mode": attention_sketch_mode,
        "attention_tokens_top_k": attention_tokens_top_k,
        "attention_tokens_max": attention_tokens_max,
        "attention_tokens_stride": attention_tokens_stride,
        "attention_tokens_window": attention_tokens_window,
        "attention_capture_layers": attention_capture_layers,
        "attention_capture_source": attention_capture_source,
        "attention_fingerprint_max_steps": attention_fingerprint_max_steps,
        "attention_sink_tokens": attention_sink_tokens,
        "attention_chunk_size": attention_chunk_size,
        "attention_mask_system_prompt": attention_mask_system_prompt,
        "attention_derotate": attention_derotate,
        "attention_api_key": attention_api_key,
        "attention_cors_origins": attention_cors_origins,
        "attention_max_concurrent_capture": attention_max_concurrent_capture,
        "attention_sidecar_url": attention_sidecar_url,
        "attention_auto_sampling": attention_auto_sampling,
        "attention_firewall": attention_firewall,
        "attention_firewall_window": attention_firewall_window,
        "attention_firewall_threshold": attention_firewall_threshold,
        "attention_firewall_detector": attention_firewall_detector,
        "attention_calibration": attention_calibration or None,
        "spectral_weight": spectral_weight,
        "spectral_evict_decode": spectral_evict_decode,
        "spectral_retention_ratio": spectral_retention_ratio,
        "attention_disable_in_production": attention_disable_in_production,
    }
    resolved = models.resolve(model)
    if attention_calibration:
        values["attention_calibration"] = [calibration_at(one, resolved.served_name) for one in attention_calibration]
    said = check_attention(values)
    plan = engine_plan.plan(
        resolved,
        flags=attention_flags(values),
        extra=context.obj or [],
        host=host,
        port=port,
        device=device,
        log=log,
    )
    if said:
        output.narrator().print(f"[yellow]{said}.[/]")
    if dry_run:
        print(plan.shown())
        return
    serve_until_stopped(plan, timeout, capture=return_attention_tokens)


def calibration_at(given: Path, model: str) -> Path:
    """The file, or for a detector's name the one that `geom calibrate` keeps for this model; UsageError without it."""
    from geomcli.detectors.calibration import default_path
    from geomcli.detectors.registry import DETECTORS

    if given.exists() or str(given) not in DETECTORS:
        return given
    kept = default_path(model, str(given))
    if not kept.exists():
        raise UsageError(
            f"there is no calibration of {given} for {model} at {kept}.", f"geom calibrate … --detector {given}"
        )
    return kept


def check_attention(values: dict[str, Any]) -> str:
    """What the plugin would warn of, "" for nothing; UsageError for what it would refuse, before a minute of loading is
    spent on it."""
    from geomcli.server_patch import eviction_options
    from geomcli.server_patch.firewall_options import OFF, known_from, of_flags
    from geomcli.server_patch.server_options import SOURCES, ServerOptions

    if (source := values["attention_capture_source"]) not in (None, *SOURCES):
        raise UsageError(f"--attention-capture-source must be one of {', '.join(SOURCES)}, got {source!r}.")
    given = {_OPTIONS[name]: value for name, value in values.items() if value is not None and name in _OPTIONS}
    firewall = {of: values[name] for name, of in _FIREWALL.items() if values[name] is not None}
    try:
        ServerOptions(**given).check()
        known = known_from([str(path) for path in values["attention_calibration"] or ()])
        guard = of_flags(**{"action": OFF, **firewall}, known=known)
        given_ratio = values["spectral_retention_ratio"]
        ratio = eviction_options.DEFAULT_RATIO if given_ratio is None else given_ratio
        retention = eviction_options.of_flags(values["spectral_evict_decode"], ratio)
        watching = "--attention-firewall watches" if guard is not None else ""
        watching = watching or ("--attention-auto-sampling watches" if values["attention_auto_sampling"] else "")
        watching = watching or (f"{eviction_options.FLAG} scores by" if retention is not None else "")
        if watching and not values["return_attention_tokens"]:
            raise ValueError(f"{watching} what is captured, and --no-return-attention-tokens captures nothing")
    except ValueError as error:
        raise UsageError(f"{error}.", "geom serve --help") from None
    return eviction_options.warning(retention)


def attention_flags(values: dict[str, Any]) -> list[str]:
    """Parsed options back to the flags that SGLang's parser knows through the plugin."""
    flags: list[str] = []
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            flags.append(flag)
        elif isinstance(value, list):
            flags += [flag, *(str(path.absolute()) for path in value)]
        elif value is not None and value is not False:
            flags += [flag, str(value)]
    return flags


def serve_until_stopped(plan: engine_plan.Plan, timeout: float, *, capture: bool) -> None:
    console = output.narrator()

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # SIGINT too: a shell starts background jobs with it ignored, and Python then leaves it so.
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, interrupt)
    with engine.Engine(plan) as running:
        console.print(f"Starting {plan.model.served_name} on {plan.device}; log: {plan.log}", markup=False)
        try:
            with progress_line("Waiting for the engine") as tick:
                document = running.wait(timeout=timeout, progress=tick, capture=capture)
            console.print(f"Ready at {plan.base_url}/v1 · {describe(document)}", markup=False)
            console.print("Ctrl-C stops it. In another terminal: [bold]geom run 'Why is the sky blue?'[/]")
            assert running.process is not None
            running.process.wait()
            raise ServerUnreachable(f"the engine ended: {running.reason()}", f"less +G {plan.log}")
        except KeyboardInterrupt:
            console.print("Stopping the engine …")
            raise


def describe(document: dict[str, Any]) -> str:
    if not document.get("supported"):
        in_production = document.get("guardrails", {}).get("disabled_in_production")
        return "attention capture is off" + (" (GEOM_DEBUG=1 is not set)" if in_production else "")
    heads, layers = document["heads"], document["layers_captured"]
    ratio = (document.get("eviction") or {}).get("retention_ratio", 1)
    evicts = f", {ratio:.0%} of a running request's tokens stay" if ratio < 1 else ""
    return (
        f"{document['default_mode']} by default, layers {', '.join(map(str, layers))} of {document['layers_total']}, "
        f"heads {heads['seen']}/{heads['total']}{evicts}, SGLang {document['sglang']} ({document['backend']})"
    )


class progress_line:  # noqa: N801  (used like a function)
    """A line on stderr that counts the seconds; on something that is no terminal, one line every 15 s."""

    def __init__(self, text: str) -> None:
        self._text, self._console, self._shown = text, output.narrator(), 0.0

    def __enter__(self) -> Callable[[float], None]:
        self._status = self._console.status(f"{self._text} …") if self._console.is_terminal else None
        if self._status is not None:
            self._status.start()
        return self._tick

    def _tick(self, seconds: float) -> None:
        if self._status is not None:
            self._status.update(f"{self._text} … {seconds:.0f} s")
        elif seconds - self._shown >= 15:
            self._shown = seconds
            print(f"{self._text} … {seconds:.0f} s", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()
