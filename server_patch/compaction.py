"""Scheduler process: a running request's row of SGLang's token table closes up over the tokens that leave.

The row, `kv_allocated_len` and `seq_lens` stay what SGLang takes them for, the tokens that are there; only positions
are those of the text, which `orig_seq_lens` counts. What stays of a prompt that the prefix cache owns is copied into
slots of the request's own, so that the cache may give the prompt up; where there is no room, it stays the cache's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from geomcli.server_patch import accounts, faults
from geomcli.server_patch.held import Change, Held
from geomcli.server_patch.query_ring import to_device


def is_settled(request: Any, physical: int) -> bool:
    """Whether SGLang's accounts of the request are all of one length, and nothing ends or moves it in this step."""
    return (
        accounts.is_of_length(request, physical)
        and request.decode_batch_idx >= 1
        and getattr(request, "beam_group", None) is None
        and request.to_finish is None
        and not request.finished()
        and not request.is_retracted
    )


def compact(
    request: Any,
    held: Held,
    physical: int,
    stay: NDArray[np.int64],
    table: Any,
    tree: Any,
    copy: Callable[[Any, Any], None],
) -> None:
    """Of the request's `physical` tokens only `stay` (ascending indices) keep a slot. table: SGLang's req_to_token;
    copy: of keys and values from slots [n] to slots [n].

    Between two steps, on the stream that SGLang schedules on, behind all that reads the table. All that may fail comes
    before anything is changed, or leaves the request with the cache's slots of the prompt.
    """
    allocator, device = tree.token_to_kv_pool_allocator, table.device
    slot, owned_by_tree = accounts.slot_of(request), accounts.owned_by_tree(request)
    of_tree = int(np.searchsorted(stay, owned_by_tree))
    leaves = np.ones(physical, dtype=np.bool_)
    leaves[stay] = False
    leaves[:owned_by_tree] = False
    row = table[slot, :physical]
    new = row[to_device(stay, device)]
    dead = row[to_device(np.flatnonzero(leaves), device)].to(torch.int64)
    places = to_device(held.places(physical)[stay], device, torch.int32)

    table[slot, : new.shape[0]] = new
    accounts.set_length(request, new.shape[0])
    accounts.set_owned_by_tree(request, of_tree)
    if not getattr(request, "skip_radix_cache_insert", False):
        request.skip_radix_cache_insert = held.barred = True
    held.left(physical, stay)
    held.change = Change(places, slot, held.gone)
    if dead.numel():
        allocator.free(dead)
    if owned_by_tree:
        try:
            _own(request, of_tree, table, tree, copy)
        except Exception:
            faults.report("what stays of a prompt could not be copied; it stays the prefix cache's")


def _own(request: Any, of_tree: int, table: Any, tree: Any, copy: Callable[[Any, Any], None]) -> None:
    """The request's first tokens, which lie in slots of the prefix cache, in slots of its own, if there is room."""
    allocator, slot = tree.token_to_kv_pool_allocator, accounts.slot_of(request)
    from sglang.srt.mem_cache.common import evict_from_tree_cache

    evict_from_tree_cache(tree, of_tree)
    target = allocator.alloc(of_tree)
    if target is None:
        return
    try:
        # At once: from here on the cache may hand the old slots out, also to a prefill that comes before the next step.
        copy(table[slot, :of_tree].to(torch.int64), target)
        accounts.give_prompt_back(tree, request)
    except Exception:
        allocator.free(target)
        raise
    table[slot, :of_tree] = target.to(table.dtype)


def shorten(batch: Any, lengths: dict[int, tuple[int, int]]) -> None:
    """The batch's lengths of some rows: row -> (before, now). New tensors: a step in flight holds the old ones."""
    on_host = batch.seq_lens_cpu.clone()
    less = torch.zeros(on_host.shape[0], dtype=batch.seq_lens.dtype)
    for row, (before, now) in lengths.items():
        on_host[row] = now
        less[row] = before - now
    batch.seq_lens_cpu = on_host
    batch.seq_lens = batch.seq_lens - to_device(less, batch.seq_lens.device, less.dtype)
    batch.seq_lens_sum = None


def move(pool: Any, layers: int, source: Any, target: Any) -> None:
    """Copy keys and values from slots [n] to slots [n] in every layer, on the current stream."""
    first = pool.start_layer or 0
    for layer in range(first, first + layers):
        for buffer in (pool.get_key_buffer(layer), pool.get_value_buffer(layer)):
            buffer[target] = buffer[source]
