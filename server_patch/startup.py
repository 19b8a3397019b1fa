"""Main process, before anything is served: flags in, refusals, the route, and the check that schedulers are hooked."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from typing import Any

import msgspec

from geomcli.server_patch import flags, radix_options, routes, state, system_prompt
from geomcli.server_patch.server_options import ServerOptions
from geomcli.server_patch.sidecar_push import Pusher

INIT_INFO_KEY = "geom"
_COMMAND_ATTRIBUTE = "_launch_command"  # what /server_info shows, from SGLang 0.5.20 on


def after_add_cli_args(_result: Any, parser: ArgumentParser) -> None:
    flags.add_flags(parser)
    radix_options.offer(parser)


def after_from_cli_args(server_args: Any, _cls: type, args: Namespace) -> None:
    try:
        options = flags.options_from(args)
    except ValueError as error:
        raise SystemExit(f"geom: {error}.") from None
    # The key stays in this process, where nothing that SGLang shows, dumps or hands on has it.
    state.main.key = options.api_key
    sys.argv[:] = flags.without_key("\n".join(sys.argv)).split("\n")
    setattr(server_args, flags.CONFIG_ATTRIBUTE, msgspec.structs.replace(options, api_key=""))
    if options.spectral_radix and not options.ranks:
        server_args.radix_eviction_policy = "lru"


def options_of(server_args: Any) -> ServerOptions:
    """The options kept on SGLang's server arguments; disabled when it was started without a command line."""
    found = getattr(server_args, flags.CONFIG_ATTRIBUTE, None)
    return found if isinstance(found, ServerOptions) else ServerOptions()


def after_check_server_args(_result: Any, server_args: Any) -> None:
    options = options_of(server_args)
    if options.enabled and (sentence := flags.refusal(server_args, options)):
        raise SystemExit(f"geom: {sentence}")
    if options.ranks:
        if sentence := radix_options.refusal(server_args):
            raise SystemExit(f"geom: {sentence}")
        radix_options.choose_core()


def before_run_http_server(
    server_args: Any,
    tokenizer_manager: Any,
    _template_manager: Any,
    _port_args: Any,
    scheduler_infos: Any,
    *_: Any,
    **__: Any,
) -> None:
    options = options_of(server_args)
    if isinstance(command := getattr(server_args, _COMMAND_ATTRIBUTE, None), str):
        setattr(server_args, _COMMAND_ATTRIBUTE, flags.without_key(command))
    # Taken off: /server_info shows what is left.
    infos = [info.pop(INIT_INFO_KEY, None) for info in scheduler_infos or [] if isinstance(info, dict)]
    if options.enabled and (not infos or not all(infos)):
        raise SystemExit(
            "geom: the plugin did not load in the scheduler process; its reason is further up in this log."
        )
    state.main.bearer_taken = bool(getattr(server_args, "api_key", None))
    state.main.configure(options, infos[0] if infos else None, tokenizer_manager)
    if options.enabled and options.mask_system_prompt:
        system_prompt.watch(state.main.tokenizer)
    routes.install(metrics=bool(getattr(server_args, "enable_metrics", False)))
    if options.enabled:
        address = next(address for info in infos if info and (address := info["records"]))
        pushed = bool(options.sidecar_url)
        state.main.worker.start(address, str(server_args.served_model_name or server_args.model_path) if pushed else "")
        if pushed:
            state.main.pusher = Pusher(options.sidecar_url)
