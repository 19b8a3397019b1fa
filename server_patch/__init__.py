"""The SGLang plugin: `register` is the entry point of group `sglang.srt.plugins`.

SGLang calls it in every process that it starts; only the hooks of that process's role are registered, so that no
process imports code it would not have needed. Fails closed: see `geomcli.server_patch.hooks`.
"""

from __future__ import annotations

import logging
import multiprocessing
import sys
from types import FrameType

logger = logging.getLogger("geom")

_OUR_FLAGS = ("--return-attention-tokens", "--attention-", "--spectral-", "--config")
# `--attention-backend` is SGLang's own.
_NOT_OURS = ("--attention-backend",)


def process_role() -> str | None:
    """`main`, `scheduler`, or None for a process that needs no hook."""
    if multiprocessing.parent_process() is None:
        return "main"
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "run_scheduler_process":
            return "scheduler"
        frame = frame.f_back
    return None


def asked_for() -> bool:
    """Whether this command line can ask for capture: then a hook that does not apply must stop the server."""
    return any(arg.startswith(_OUR_FLAGS) and not arg.startswith(_NOT_OURS) for arg in sys.argv)


def register() -> None:
    """Register the hooks of this process's role; stops the process when one of them cannot apply."""
    role = process_role()
    if role is None:
        return
    from geomcli.server_patch import hooks

    if role == "main":
        try:
            hooks.preflight()
        except hooks.HookFailure as failure:
            sentence = f"geom cannot hook into this SGLang ({_sglang_version()}): {failure}."
            if asked_for():
                raise SystemExit(f"{sentence} Install a supported version, or leave the attention flags out.") from None
            logger.warning("%s Attention capture is off.", sentence)
            return
    else:
        from geomcli.server_patch import radix_policy

        radix_policy.register()
    _register_role(role)


def _register_role(role: str) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from geomcli.server_patch import hooks

    mine = hooks.hooks_for(role)
    for hook in mine:
        HookRegistry.register(hook.target, hooks.body_of(hook), HookType(hook.kind))

    apply_hooks = HookRegistry.apply_hooks.__func__

    def apply_and_check(cls: type) -> None:
        # apply_hooks swallows a target's failure; SystemExit is what `except Exception` up the stack lets through.
        apply_hooks(cls)
        missing = [h.target for h in mine if h.target not in cls._patched]  # type: ignore[attr-defined]
        if missing:
            raise SystemExit(f"geom: these hooks did not apply: {', '.join(missing)}.")

    HookRegistry.apply_hooks = classmethod(apply_and_check)


def _sglang_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sglang")
    except PackageNotFoundError:
        return "version unknown"
