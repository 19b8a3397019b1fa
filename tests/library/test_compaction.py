"""A row of the token table closes up: every slot has one owner at any time, and every token keeps its place."""

from __future__ import annotations

import random
import sys
from concurrent.futures import Future
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geomcli.eviction.retention import Retention, choose
from geomcli.server_patch import accounts, compaction, eviction
from geomcli.server_patch.evictor import Evictor
from geomcli.server_patch.held import Change, Held, Scoring
from geomcli.server_patch.query_ring import WINDOW, QueryRing, to_device
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
        compaction.compact(self.request, self.held, n, stay, self.table, self.tree, self.copy)

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        moved = [self.holds[slot] for slot in source.tolist()]
        self.holds |= dict(zip(target.tolist(), moved, strict=True))

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


def refuse(*_: Any, **__: Any) -> Any:
    raise RuntimeError("out of memory")


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("at", ["alloc", "copy", "lock", "evict"])
def test_what_fails_while_a_prompt_is_copied_leaves_it_the_caches(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], release: str, at: str
) -> None:
    world = World(100, 90, 80, release)
    if at == "alloc":
        monkeypatch.setattr(world.allocator, "alloc", refuse)
    elif at == "copy":
        monkeypatch.setattr(world, "copy", refuse)
    elif at == "evict":
        sys.modules["sglang.srt.mem_cache.common"].evict_from_tree_cache = refuse  # type: ignore[attr-defined]
    else:
        name = {"0.5.16": "dec_lock_ref", "0.5.20": "_dec_req_lock", "0.5.22": "unlock"}[release]
        setattr(world.tree, name, refuse)
    world.evict(choose(np.arange(100.0), 64))
    assert world.locked
    assert world.keeper.cache_protected_len == 54
    assert world.held.change is not None
    assert world.held.change.gone == world.held.gone == 36
    world.check(180)


def test_what_fails_before_a_row_is_closed_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for fails_at in (1, 2, 3):
        world, calls = World(100, 90, 80), []
        before = world.table.clone()

        def late(*args: Any, fails_at: int = fails_at, calls: list[int] = calls) -> torch.Tensor:
            calls.append(1)
            return refuse() if len(calls) == fails_at else to_device(*args)

        monkeypatch.setattr(compaction, "to_device", late)
        with pytest.raises(RuntimeError):
            world.evict(choose(np.arange(100.0), 64))
        assert (world.held.gone, world.held.change, world.request.skip_radix_cache_insert) == (0, None, False)
        assert torch.equal(world.table, before)
        world.check(180)


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


def test_room_for_a_copy_of_the_prompt_is_set_aside_again_once_a_request_was_taken_back() -> None:
    request = SimpleNamespace(
        sampling_params=SimpleNamespace(max_new_tokens=100), origin_input_ids=[0] * 3000, output_ids=[]
    )
    held = request._geom_held = Held(Retention(0.3))
    first = eviction._room(request, 1, running=True)
    held.left(3000, choose(np.arange(3000.0), 900))
    later = eviction._room(request, 1, running=True)
    held.clear()
    assert later is not None
    assert first == eviction._room(request, 1, running=True) == 100
    request.sampling_params.max_new_tokens = 5000
    again = eviction._room(request, 1, running=True)
    held.left(3000, choose(np.arange(3000.0), 900))
    after = eviction._room(request, 1, running=True)
    assert again is not None
    assert after is not None
    assert again != after


@pytest.fixture
def evictor(monkeypatch: pytest.MonkeyPatch) -> Evictor:
    """On a CPU, without a model: what is scored stays by its index."""
    made = object.__new__(Evictor)
    made.delay, made._forward, made.table = 1, None, torch.zeros(3, 8)
    monkeypatch.setattr(compaction, "is_settled", lambda request, physical: True)
    monkeypatch.setattr("geomcli.server_patch.evictor.is_paused", lambda request: False)
    monkeypatch.setattr("geomcli.server_patch.evictor._say", lambda request, held: None)
    return made


def batch_of(*scored: Any) -> Any:
    """Requests of 300 tokens each, with their scores: an array (one of two axes fails), an exception, or None yet."""
    requests = []
    for found in scored:
        held = Held(Retention(0.3))
        held.scoring = Scoring(300, Future())
        if isinstance(found, Exception):
            held.scoring.found.set_exception(found)
        elif found is not None:
            held.scoring.found.set_result(found)
        requests.append(SimpleNamespace(_geom_held=held))
    lengths = torch.tensor([300] * len(scored))
    return SimpleNamespace(
        reqs=requests, seq_lens_cpu=lengths, seq_lens=lengths.clone(), seq_lens_sum=0, tree_cache=None
    )


def test_a_request_that_fails_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch, evictor: Evictor) -> None:
    good = np.arange(300, dtype=np.float32)
    batch = batch_of(good, RuntimeError("out of memory"), good[None], None, good)

    def compact(request: Any, held: Held, physical: int, stay: Any, *_: Any) -> None:
        if request is batch.reqs[4]:
            raise RuntimeError("out of memory")
        held.left(physical, stay)

    monkeypatch.setattr(compaction, "compact", compact)
    assert evictor.evict(batch) == (1, 210)
    assert batch.seq_lens_cpu.tolist() == batch.seq_lens.tolist() == [90, 300, 300, 300, 300]
    pending = [request._geom_held.scoring is not None for request in batch.reqs]
    assert pending == [False, False, False, True, False]
    # Scores that were late are used before the next step.
    batch.reqs[3]._geom_held.scoring.found.set_result(good)
    assert evictor.evict(batch) == (1, 210)
    assert batch.seq_lens_cpu.tolist() == [90, 300, 300, 90, 300]


def test_a_step_is_at_the_positions_of_its_texts_whatever_else_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    made = object.__new__(Evictor)
    made.on_device, made.ring = False, None
    batch = batch_of(None, None)
    held = batch.reqs[0]._geom_held
    held.left(300, choose(np.arange(300.0), 90))
    held.change = Change(torch.arange(90), SLOT, 210)
    batch.orig_seq_lens = torch.tensor([301, 301])
    step = SimpleNamespace(
        forward_mode=SimpleNamespace(is_extend=lambda: False, is_decode=lambda: True),
        positions=torch.tensor([90, 300]),
    )
    monkeypatch.setattr(made, "_tell", refuse)
    with pytest.raises(RuntimeError):
        made.begin(step, batch)
    assert step.positions.tolist() == [300, 300]
    assert held.change is not None


def test_a_request_that_is_taken_back_forgets_what_had_left() -> None:
    held = Held(Retention(0.3))
    held.left(100, choose(np.arange(100.0), 64))
    held.barred, held.scoring, held.change = True, Scoring(64, Future()), Change(None, SLOT, 36)
    request = SimpleNamespace(_geom_held=held, skip_radix_cache_insert=True)
    scheduler.evictor = object()
    try:
        eviction.after_reset_for_retract(None, request)
    finally:
        scheduler.evictor = None
    assert (held.gone, held.text(5), request.skip_radix_cache_insert) == (0, 5, False)
    assert held.places(3).tolist() == [0, 1, 2]
    assert (held.scoring, held.change, held.evictions) == (None, None, 0)
