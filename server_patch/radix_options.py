"""The flags of the prefix cache's ranking: SGLang's own takes `spectral` too, and what cannot be ranked is refused."""

from __future__ import annotations

import os
from argparse import ArgumentParser
from typing import Any

POLICY_FLAG, WEIGHT_FLAG = "--radix-eviction-policy", "--spectral-weight"
POLICY = "spectral"
# Since 0.5.22 SGLang's tree is in Rust by default, which knows its own policies only.
CORE_VARIABLE, PYTHON_CORE = "SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND", "python"
_OTHER_TREES = (
    ("disable_radix_cache", "--disable-radix-cache"),
    ("enable_lmcache", "--enable-lmcache"),
    ("enable_flexkv", "--enable-flexkv"),
    ("radix_cache_backend", "--radix-cache-backend"),
)


def offer(parser: ArgumentParser) -> None:
    """Let SGLang's own flag take the policy."""
    from sglang.srt.server_args import RADIX_EVICTION_POLICY_CHOICES, add_radix_eviction_policy_choices

    if POLICY not in RADIX_EVICTION_POLICY_CHOICES:
        add_radix_eviction_policy_choices([POLICY])
    for action in parser._actions:
        if POLICY_FLAG in action.option_strings and action.choices is not None and POLICY not in action.choices:
            action.choices = [*action.choices, POLICY]


def refusal(server_args: Any) -> str | None:
    """One sentence naming what to change if the tree of this server cannot be ranked, else None."""
    for name, flag in _OTHER_TREES:
        if getattr(server_args, name, None):
            return f"{POLICY_FLAG} {POLICY} ranks SGLang's own prefix cache; leave {flag} out."
    if os.environ.get("SGLANG_EXPERIMENTAL_CPP_RADIX_TREE", "").lower() in ("1", "true", "yes", "y"):
        return f"{POLICY_FLAG} {POLICY} cannot rank the C++ tree; unset SGLANG_EXPERIMENTAL_CPP_RADIX_TREE."
    if os.environ.get(CORE_VARIABLE, PYTHON_CORE) != PYTHON_CORE:
        return f"{POLICY_FLAG} {POLICY} ranks the {PYTHON_CORE} tree only; unset {CORE_VARIABLE}."
    return None


def choose_core() -> None:
    """Have the scheduler processes, which take over the environment, build the tree that can be ranked."""
    os.environ[CORE_VARIABLE] = PYTHON_CORE
