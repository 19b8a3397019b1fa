"""Scheduler process: what SGLang has written down of a request's KV.

Up to 0.5.18 most of it stands on the request, from 0.5.20 on all of it on the request's KV object.
"""

from __future__ import annotations

from typing import Any


def slot_of(request: Any) -> int:
    """The request's row of SGLang's token table."""
    return int(_keeper(request, "req_pool_idx").req_pool_idx)


def owned_by_tree(request: Any) -> int:
    """How many of its first tokens lie in slots of the prefix cache."""
    return int(_keeper(request, "cache_protected_len").cache_protected_len)


def is_of_length(request: Any, physical: int) -> bool:
    """Whether the request holds slots, as many as it has written, `physical` of them."""
    kv = request.kv
    if kv is None or kv.kv_allocated_len != physical or _keeper(request, "req_pool_idx").req_pool_idx is None:
        return False
    return bool(_keeper(request, "kv_committed_len").kv_committed_len == physical)


def set_length(request: Any, physical: int) -> None:
    """The request holds its row's first `physical` slots."""
    request.kv.kv_allocated_len = _keeper(request, "kv_committed_len").kv_committed_len = physical


def set_owned_by_tree(request: Any, tokens: int) -> None:
    """Its first `tokens` tokens lie in slots of the prefix cache."""
    _keeper(request, "cache_protected_len").cache_protected_len = tokens


def give_prompt_back(tree: Any, request: Any) -> None:
    """The prefix cache may give up the prompt, of which the request has a copy."""
    if hasattr(tree, "unlock"):  # from 0.5.22 on the lock is an object of its own
        tree.unlock(request.lock)
        request.lock = None
        request.prefix_len = 0
        set_owned_by_tree(request, 0)
        return
    from sglang.srt.mem_cache.base_prefix_cache import DecLockRefParams

    if hasattr(request, "lock_receipt"):
        tree._dec_req_lock(request, skip_swa=request.swa_prefix_lock_released)
        request.last_node = None
        request.lock_receipt = DecLockRefParams()
    else:
        # These trees release once more when the request ends: of the root, which nobody locks.
        tree.dec_lock_ref(request.last_node)
        request.last_node = tree.root_node
    request.prefix_indices = request.prefix_indices[:0]
    set_owned_by_tree(request, 0)


def _keeper(request: Any, name: str) -> Any:
    return request.kv if hasattr(request.kv, name) else request
