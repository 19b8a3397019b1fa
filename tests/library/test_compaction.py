"""A row of the token table closes up: every slot has one owner at any time, and every token keeps its place."""

from __future__ import annotations

import random
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geomcli.eviction.retention import Retention, choose
from geomcli.server_patch import accounts, compaction, eviction
from geomcli.server_patch.held import Held
from geomcli.server_patch.query_ring import WINDOW, QueryRing
from geomcli.server_patch.scheduler_state import scheduler

SLOT = 1
RELEASES = ("0.5.16", "0.5.20", "0.5.22")  # the first ones with each of the three ways of accounting
TREES = "sglang.srt.mem_cache.base_prefix_cache"


class Allocator:
    """Slots that are free, as SGLang hands them out; freeing one twice is an error."""

    def __init__(self, size: int) -> None:
        self.open = list(range(1, size + 1))

    def alloc(self, n: int) -> torch.Tensor | None:
        if n > len(self.open):
            return None
        taken, self.open = self.open[:n], self.open[n:]
        return torch.tensor(taken)

    def free(self, slots: torch.Tensor) -> None:
        found = slots.tolist()
        assert len(set(found)) == len(found)
        assert not set(found) & set(self.open)
        self.open += found


class World:
    """One request of which the prefix cache owns the first `shared` tokens; what a slot holds is its token's place.

    `release`: whose SGLang keeps its accounts.
    """

    def __init__(self, n: int, shared: int, spare: int, release: str = "0.5.22") -> None:
        self.allocator = Allocator(n + spare)
        self.table = torch.zeros(3, 4 * (n + spare), dtype=torch.int32)
        slots = self.allocator.alloc(n)
        assert slots is not None
        self.table[SLOT, :n] = slots.int()
        self.of_tree = slots[:shared].tolist()
        self.holds = {slot: place for place, slot in enumerate(slots.tolist())}
        self.locked = bool(shared)
        self.request = SimpleNamespace(skip_radix_cache_insert=False)
        accounts = {"req_pool_idx": SLOT, "cache_protected_len": shared, "kv_committed_len": n}
        if release == "0.5.16":
            vars(self.request).update(accounts, kv=SimpleNamespace(kv_allocated_len=n))
        else:
            self.request.kv = SimpleNamespace(**accounts, kv_allocated_len=n)
        self.keeper = self.request if release == "0.5.16" else self.request.kv
        root, leaf = object(), object()
        self.tree = SimpleNamespace(token_to_kv_pool_allocator=self.allocator)
        if release == "0.5.22":
            self.request.lock, self.request.prefix_len = leaf, shared
            self.tree.unlock = self._unlock
        else:
            self.request.last_node, self.request.prefix_indices = leaf, slots[:shared]
            self.tree.dec_lock_ref, self.tree.root_node = self._unlock, root
        if release == "0.5.20":
            self.request.lock_receipt, self.request.swa_prefix_lock_released = object(), False
            self.tree._dec_req_lock = lambda request, skip_swa: self._unlock(request.last_node)
        self.leaf = leaf
        self.held = Held(Retention(0.3))

    def _unlock(self, lock: Any) -> None:
        assert lock is self.leaf
        assert self.locked
        self.locked = False

    def set_length(self, n: int) -> None:
        self.request.kv.kv_allocated_len = self.keeper.kv_committed_len = n

    def ends(self) -> None:
        """What SGLang gives back when the request has ended: the lock, once."""
        if not hasattr(self.request, "last_node"):
            assert (self.request.lock is None) is not self.locked
        elif hasattr(self.request, "lock_receipt"):
            assert (self.request.last_node is None) is not self.locked
        else:
            assert self.request.last_node is (self.leaf if self.locked else self.tree.root_node)
        if not self.locked and hasattr(self.request, "prefix_indices"):
            assert not self.request.prefix_indices.numel()

    def step(self) -> bool:
        slots = self.allocator.alloc(1)
        if slots is None:
            return False
        n = self.request.kv.kv_allocated_len
        self.table[SLOT, n] = slots[0]
        self.holds[int(slots[0])] = self.held.text(n)
        self.set_length(n + 1)
        return True

    def evict(self, stay: Any) -> None:
        n = self.request.kv.kv_allocated_len
        compaction.compact(self.request, self.held, n, stay, self.table, self.tree)
        change = self.held.change
        if change.source is not None:
            moved = [self.holds[slot] for slot in change.source.tolist()]
            self.holds |= dict(zip(change.target.tolist(), moved, strict=True))

    def check(self, size: int) -> None:
        n, of_tree = self.request.kv.kv_allocated_len, self.keeper.cache_protected_len
        assert self.keeper.kv_committed_len == n
        assert accounts.is_of_length(self.request, n)
        row = self.table[SLOT, :n].tolist()
        assert [self.holds[slot] for slot in row] == self.held.places(len(row)).tolist()
        own = row[of_tree:]
        every = [*own, *self.of_tree, *self.allocator.open]
        assert sorted(every) == list(range(1, size + 1))
        assert set(row[:of_tree]) <= set(self.of_tree)
        assert self.locked is bool(of_tree)
        if self.of_tree:
            self.ends()


@pytest.fixture(autouse=True)
def _engine(monkeypatch: pytest.MonkeyPatch) -> None:
    names = "sglang", "sglang.srt", "sglang.srt.mem_cache", "sglang.srt.mem_cache.common", TREES
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[TREES].DecLockRefParams = object  # type: ignore[attr-defined]
    sys.modules["sglang.srt.mem_cache.common"].evict_from_tree_cache = lambda tree, n: None  # type: ignore[attr-defined]


@given(st.integers(70, 200), st.integers(0, 200), st.integers(0, 300), st.integers(0, 1000), st.sampled_from(RELEASES))
def test_every_slot_has_one_owner_and_every_token_its_place(
    n: int, shared: int, spare: int, seed: int, release: str
) -> None:
    world, dice = World(n, min(shared, n), spare, release), random.Random(seed)
    size = n + spare
    world.check(size)
    for _ in range(6):
        for _ in range(dice.randrange(1, 40)):
            if not world.step():
                break
        there = world.request.kv.kv_allocated_len
        budget = world.held.retention.budget(world.held.text(there))
        if budget >= there:
            continue
        stay = choose(np.random.default_rng(seed).random(there), budget)
        before = world.held.places(there)
        world.evict(stay)
        world.check(size)
        assert world.held.places(budget).tolist() == before[stay].tolist()
        assert world.request.skip_radix_cache_insert


@pytest.mark.parametrize("release", RELEASES)
def test_without_room_the_prompt_stays_the_caches(release: str) -> None:
    world = World(100, 90, 0, release)
    world.evict(choose(np.arange(100.0), 64))
    assert world.locked
    assert world.keeper.cache_protected_len == 54
    world.check(100)
    world = World(100, 90, 54, release)
    world.evict(choose(np.arange(100.0), 64))
    assert not world.locked
    assert world.keeper.cache_protected_len == 0
    world.check(154)


def test_a_batch_gets_new_lengths_and_keeps_the_old_ones_for_the_step_in_flight() -> None:
    on_host, on_device = torch.tensor([5, 90, 7]), torch.tensor([5, 90, 7], dtype=torch.int32)
    batch = SimpleNamespace(seq_lens_cpu=on_host, seq_lens=on_device, seq_lens_sum=102)
    compaction.shorten(batch, {1: (90, 64)})
    assert batch.seq_lens_cpu.tolist() == batch.seq_lens.tolist() == [5, 64, 7]
    assert on_host.tolist() == on_device.tolist() == [5, 90, 7]
    assert batch.seq_lens.dtype == torch.int32
    assert batch.seq_lens_sum is None


def test_the_ring_holds_the_last_queries_of_each_slot() -> None:
    ring = QueryRing(layers=2, slots=4, heads=1, dim=1, device="cpu", dtype=torch.float32)

    def queries(positions: list[int], slot: int) -> torch.Tensor:
        return torch.tensor([1000.0 * slot + position for position in positions]).view(-1, 1, 1)

    parts = [(2, 0, 0, 100), (3, 100, 5, 7)]  # slot, first token, first position, tokens
    together = torch.cat([queries(list(range(100)), 2), queries(list(range(5, 12)), 3)])
    for layer in (0, 1):
        ring.write(layer, together + 0.5 * layer, ring.of_prompts(parts))
    for position in range(100, 103):
        at = torch.tensor([position, position - 88])
        both = torch.stack([queries([position], 2)[0], queries([position - 88], 3)[0]])
        ring.write_all(torch.stack([both, both + 0.5]), ring.of_decode(torch.tensor([2, 3]), at))
    last = list(range(103 - WINDOW, 103))
    assert ring.read(2, last)[0].flatten().tolist() == queries(last, 2).flatten().tolist()
    assert ring.read(3, range(5, 15))[1].flatten().tolist() == (queries(list(range(5, 15)), 3) + 0.5).flatten().tolist()


def test_what_sglang_sets_aside_is_what_a_request_will_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    params = SimpleNamespace(max_new_tokens=2000)
    request = SimpleNamespace(sampling_params=params, origin_input_ids=[0] * 50, output_ids=[0] * 10)
    request._geom_held = Held(Retention(0.3))
    monkeypatch.setattr(scheduler, "evictor", SimpleNamespace(delay=1))

    def counted(_adder: Any, req: Any) -> int:
        return int(req.sampling_params.max_new_tokens)

    for around in (eviction.around_token_offset, eviction.around_add_one_req):
        assert 600 < around(counted, None, request) < 800
        assert params.max_new_tokens == 2000
    request._geom_held = None
    assert eviction.around_token_offset(counted, None, request) == 2000


def test_a_request_that_is_taken_back_forgets_what_had_left() -> None:
    held = Held(Retention(0.3))
    held.left(100, choose(np.arange(100.0), 64))
    held.barred = True
    request = SimpleNamespace(_geom_held=held, skip_radix_cache_insert=True)
    scheduler.evictor = object()
    try:
        eviction.after_reset_for_retract(None, request)
    finally:
        scheduler.evictor = None
    assert (held.gone, held.text(5), request.skip_radix_cache_insert) == (0, 5, False)
    assert held.places(3).tolist() == [0, 1, 2]
