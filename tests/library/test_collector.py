"""From the scheduler's values to finished entries: each once, in order, whatever is missing."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import pickle
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec
import orjson
import pytest

from geomcli.server_patch import arrivals, faults, state
from geomcli.server_patch.collector import Collector
from geomcli.server_patch.options import CaptureOptions
from geomcli.server_patch.requests import _set_params
from geomcli.server_patch.values import FAILED, INFO_KEY, PARAMS_KEY, Value
from geomcli.server_patch.worker import Order
from geomcli.server_patch.worker_client import EntryWorker

OPTIONS = CaptureOptions(
    mode="fingerprint", top_k=0, layers=(3,), heads=None, heads_total=4, mask_prefix=0, stride=1, limit=0, window=0,
    sink_tokens=4, head_stats=False, prompt_tokens=False,
)  # fmt: skip


class Letters:
    """A tokenizer whose token n is the n-th letter."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(chr(97 + i) for i in ids)


@pytest.fixture(autouse=True)
def main_state(monkeypatch: pytest.MonkeyPatch) -> state.MainState:
    fresh = state.MainState()
    fresh.tokenizer = Letters()
    arrivals._waiting.clear()
    arrivals._over.clear()
    monkeypatch.setattr(arrivals, "_line", arrivals._Line())
    monkeypatch.setattr(state, "main", fresh)
    return fresh


def value(step: int, token_id: int, *flags: str, prompt_ids: list[int] | None = None) -> Value:
    body = orjson.dumps({"decode_step": step, "token_id": token_id, "flags": flags})[1:-1]
    return Value(step, token_id, "error" in flags, body, prompt_ids)


def read(entries: list[bytes]) -> list[dict[str, Any]]:
    return [orjson.loads(entry) for entry in entries]


def test_entries_come_in_order_whatever_is_missing(main_state: state.MainState) -> None:
    values = [value(1, 0), Value(2, 1), value(3, 2), value(5, 4)]
    whole = read(Collector().new_entries(0, values, 5))
    collector = Collector()
    cuts = ((0, 2, 2), (2, 3, 4), (3, 4, 5))
    assert whole == [e for start, end, n in cuts for e in read(collector.new_entries(0, values[start:end], n))]
    assert [(e["decode_step"], e["token"], e["flags"]) for e in whole] == [
        (1, "a", []),
        (3, "c", []),
        (4, None, ["error"]),
        (5, "e", []),
    ]
    assert main_state.counters.as_dict() == {"requests": 0, "entries": 8, "errors": 2}


def test_choices_do_not_mix() -> None:
    collector = Collector()
    first = collector.new_entries(0, [value(1, 0)], 1)
    second = collector.new_entries(1, [value(1, 5)], 1)
    assert [(e["index"], e["token"]) for e in read(first + second)] == [(0, "a"), (1, "f")]


def test_an_entry_whose_text_fails_keeps_its_numbers(main_state: state.MainState) -> None:
    entries = read(Collector().new_entries(0, [value(1, -200)], 1))
    assert entries == [{"index": 0, "decode_step": 1, "token_id": -200, "flags": [], "token": None}]
    assert main_state.counters.errors == 0


def test_a_value_that_never_came_is_an_entry_that_says_so(main_state: state.MainState) -> None:
    collector = Collector()
    # Of the first three tokens the last one's value is missing; of the next three the first one's.
    sent = [[value(1, 0), value(2, 1)], [value(5, 4), value(6, 5)]]
    found = [read(collector.new_entries(0, values, total)) for values, total in zip(sent, (3, 6), strict=True)]
    steps = [[(e["decode_step"], "error" in e["flags"]) for e in entries] for entries in found]
    assert steps == [[(1, False), (2, False), (3, True)], [(4, True), (5, False), (6, False)]]
    assert main_state.counters.as_dict() == {"requests": 0, "entries": 6, "errors": 2}


def test_a_request_of_which_nothing_came_has_an_entry_for_every_token() -> None:
    entries = read(Collector().new_entries(0, [], 3))
    assert [(e["decode_step"], e["flags"], e["token"]) for e in entries] == [(n, ["error"], None) for n in (1, 2, 3)]


def test_an_entry_that_failed_counts_as_an_error(main_state: state.MainState) -> None:
    (entry,) = read(Collector().new_entries(0, [value(1, 0, "error", prompt_ids=[2, 3])], 1))
    assert (entry["token"], entry["prompt_tokens"]) == ("a", ["c", "d"])
    assert main_state.counters.as_dict() == {"requests": 0, "entries": 1, "errors": 1}


class Waiting:
    """Stands in for SGLang's state of a request."""

    def __init__(self, obj: Any = None) -> None:
        self.obj = obj


@pytest.fixture
def sglang_pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("sglang.srt.managers.io_struct")
    module.wrap_as_pickle = lambda info: SimpleNamespace(data=pickle.dumps(info))  # type: ignore[attr-defined]
    for name in ("sglang", "sglang.srt", "sglang.srt.managers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)


async def arrive(manager: Any, rids: list[str], info: dict[str, Any] | None, *, plain: bool = False) -> Any:
    """The batch as SGLang's own function gets to see it."""
    wrapped = info if plain or info is None else SimpleNamespace(data=pickle.dumps(info))
    batch = SimpleNamespace(rids=rids, customized_info=wrapped)
    seen = []

    async def original(_manager: Any, one: Any) -> None:
        seen.append(one.customized_info)

    await arrivals.around_handle_batch_output(original, manager, batch)
    while not seen:
        await asyncio.sleep(0)
    return seen[0]


@pytest.mark.usefixtures("sglang_pickles")
async def test_values_reach_only_the_request_that_asked(main_state: state.MainState) -> None:
    manager = SimpleNamespace(rid_to_state={"a": Waiting(), "b": Waiting()})
    main_state.counters.add(requests=1)
    info = {INFO_KEY: [[(1, 7), (2, 8)], [None, None]], "someone's": [[1, 2], [3, 4]]}
    rest = await arrive(manager, ["a", "b"], info)
    assert pickle.loads(rest.data) == {"someone's": [[1, 2], [3, 4]]}
    assert [v.token_id for v in arrivals.take("a", 1)] == [7]
    # The value of the second token came with the first one's batch and waits for its answer.
    assert [v.token_id for v in arrivals.take("a", 2)] == [8]
    assert arrivals.take("a", 9) == arrivals.take("b", 9) == []
    assert await arrive(manager, ["a"], {INFO_KEY: [[(3, 9)]]}) is None
    assert [v.token_id for v in arrivals.take("a", 9)] == [9]
    # Another request of the same name starts anew; SGLang may also hand the dictionary itself on.
    manager.rid_to_state["a"] = Waiting()
    assert await arrive(manager, ["a"], {INFO_KEY: [[(1, 5)]]}, plain=True) is None
    assert [v.token_id for v in arrivals.take("a", 9)] == [5]


@pytest.mark.usefixtures("sglang_pickles")
async def test_what_is_not_ours_is_left_alone(main_state: state.MainState) -> None:
    manager = SimpleNamespace(rid_to_state={"a": Waiting()})
    assert await arrive(manager, ["a"], None) is None
    assert pickle.loads((await arrive(manager, ["a"], {"someone's": [[1]]})).data) == {"someone's": [[1]]}
    main_state.counters.add(requests=1)
    assert pickle.loads((await arrive(manager, ["a"], {"someone's": [[1]]})).data) == {"someone's": [[1]]}
    assert arrivals.take("a", 9) == []


@pytest.mark.usefixtures("sglang_pickles")
async def test_values_outlive_their_request_for_a_while(
    main_state: state.MainState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "_GRACE_SECONDS", 0.05)
    main_state.counters.add(requests=1)
    manager = SimpleNamespace(rid_to_state={"gone": Waiting()})
    await arrive(manager, ["gone", "unknown"], {INFO_KEY: [[(1, 7), (2, 8)], [(1, 9)]]})
    manager.rid_to_state.clear()
    gc.collect()
    await asyncio.sleep(0)
    assert [v.token_id for v in arrivals.take("gone", 1)] == [7]
    assert arrivals.take("unknown", 1) == []
    await asyncio.sleep(0.5)
    assert arrivals.take("gone", 2) == []
    assert not arrivals._waiting
    assert arrivals._over == ["unknown", "gone"]


def order(step: int, rid: str = "a", *, over: tuple[str, ...] = ()) -> Order:
    """One token that the scheduler could not capture: its entry needs the request's options alone."""
    options = msgspec.json.encode(OPTIONS).decode()
    return Order([rid], pickle.dumps({INFO_KEY: [[(step, 7, FAILED, (options, 3, 1))]]}), list(over))


async def test_entries_are_built_in_a_process_and_here_when_it_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    worker, alone = EntryWorker(), EntryWorker()
    worker.start((3,))
    assert worker.process is not None
    try:
        first = await worker.build(order(1))
        assert first == await alone.build(order(1))
        assert first is not None
        assert first.values is not None
        body = orjson.loads(b"{" + Value(*first.values["a"][0]).body + b"}")
        assert (body["decode_step"], body["query_position"], body["flags"]) == (1, 2, ["error"])
        assert await worker.build(Order(["a"], b"no pickle", [])) is None
        worker.process.kill()
        worker.process.wait()
        assert await worker.build(order(2)) == await alone.build(order(2))
        assert "is gone" in caplog.text
    finally:
        worker.stop()


async def test_the_process_ends_with_the_one_that_started_it() -> None:
    worker = EntryWorker()
    worker.start((3,))
    assert worker.process is not None
    assert worker._socket is not None
    worker._socket.close()
    assert await asyncio.to_thread(worker.process.wait, 10) == 0


@pytest.mark.usefixtures("sglang_pickles")
async def test_batches_keep_their_order_while_entries_of_later_ones_are_built(
    main_state: state.MainState, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    main_state.counters.add(requests=1)
    futures: list[asyncio.Future[Any]] = []

    class Slow:
        """Answers when the test says so."""

        def build(self, _order: Order) -> asyncio.Future[Any]:
            futures.append(asyncio.get_running_loop().create_future())
            return futures[-1]

        def stop(self) -> None:
            for future in futures:
                if not future.done():
                    future.set_result(None)

    main_state.worker = Slow()  # type: ignore[assignment]
    manager, passed = SimpleNamespace(rid_to_state={}), list[int]()

    async def handle(number: int, info: Any) -> None:
        async def original(_manager: Any, _batch: Any) -> None:
            passed.append(number)

        batch = SimpleNamespace(rids=[], customized_info=info)
        await arrivals.around_handle_batch_output(original, manager, batch)

    await handle(1, None)
    assert passed == [1]
    await handle(2, {INFO_KEY: []})
    await handle(3, None)
    await handle(4, {INFO_KEY: []})
    await asyncio.sleep(0.01)
    assert len(futures) == 2
    assert passed == [1]
    futures[1].set_result(None)
    futures[0].set_result(None)
    await asyncio.sleep(0.01)
    assert passed == [1, 2, 3, 4]
    assert arrivals._line.empty
    # One that never answers is left after a while.
    monkeypatch.setattr(arrivals, "_PATIENCE_SECONDS", 0.05)
    await handle(5, {INFO_KEY: []})
    await asyncio.sleep(0.2)
    assert passed == [1, 2, 3, 4, 5]
    assert "does not answer" in caplog.text


@pytest.mark.usefixtures("sglang_pickles")
async def test_an_abort_waits_for_the_outputs_that_came_before_it(main_state: state.MainState) -> None:
    main_state.counters.add(requests=1)
    slow: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    main_state.worker = SimpleNamespace(build=lambda _order: slow)  # type: ignore[assignment]
    manager, passed = SimpleNamespace(rid_to_state={}), list[str]()

    def abort(name: str) -> None:
        arrivals.around_handle_abort(lambda _manager, one: passed.append(one), manager, name)

    async def outputs(_manager: Any, _batch: Any) -> None:
        passed.append("outputs")

    abort("at once")
    assert passed == ["at once"]
    batch = SimpleNamespace(rids=[], customized_info={INFO_KEY: []})
    await arrivals.around_handle_batch_output(outputs, manager, batch)
    for _ in range(2 * arrivals._LINE_LENGTH):  # they take no place in the line
        abort("behind")
    await asyncio.sleep(0.01)
    assert passed == ["at once"]
    slow.set_result(None)
    await asyncio.sleep(0.01)
    assert passed == ["at once", "outputs", *["behind"] * 2 * arrivals._LINE_LENGTH]
    assert arrivals._line.empty


@pytest.mark.usefixtures("sglang_pickles")
async def test_nothing_is_kept_for_an_answer_that_nobody_reads(main_state: state.MainState) -> None:
    main_state.counters.add(requests=1)
    left, other = SimpleNamespace(rid="a"), SimpleNamespace(rid="b")
    states = {"a": Waiting(left), "b": Waiting(other)}
    manager = SimpleNamespace(rid_to_state=states)
    await arrive(manager, ["a", "b"], {INFO_KEY: [[(1, 7)], [(1, 8)]]})
    assert arrivals.waiting() == 2
    arrivals.leave(manager, left, {"a"})
    assert arrivals.waiting() == 1
    await arrive(manager, ["a", "b"], {INFO_KEY: [[(2, 7)], [(2, 8)]]})
    assert arrivals.take("a", 9) == []
    assert [v.step for v in arrivals.take("b", 9)] == [1, 2]
    # A request that was never heard of, and one that took over its name.
    arrivals.leave(manager, SimpleNamespace(rid="never"), set())
    arrivals.leave(manager, SimpleNamespace(rid="b"), set())
    await arrive(manager, ["b"], {INFO_KEY: [[(3, 8)]]})
    assert [v.step for v in arrivals.take("b", 9)] == [3]


async def test_a_batch_that_cannot_be_handled_ends_the_server_as_without_us(main_state: state.MainState) -> None:
    main_state.counters.add(requests=1)

    async def original(_manager: Any, _batch: Any) -> None:
        raise RuntimeError("SGLang's own")

    async def put() -> None:
        batch = SimpleNamespace(rids=[], customized_info={INFO_KEY: []})
        await arrivals.around_handle_batch_output(original, SimpleNamespace(rid_to_state={}), batch)

    await put()
    await asyncio.sleep(0.01)
    with pytest.raises(RuntimeError, match="SGLang's own"):
        await put()


async def test_a_failure_is_seen_by_a_batch_that_waits_for_its_place() -> None:
    line = arrivals._Line()

    async def handle(number: int) -> None:
        await asyncio.sleep(0)
        if number == 1:
            raise KeyError(number)

    async def fill() -> None:
        for number in range(3 * arrivals._LINE_LENGTH):
            await line.put(functools.partial(handle, number), None, None, None)

    with pytest.raises(KeyError):
        await asyncio.wait_for(fill(), 10)


@pytest.mark.usefixtures("sglang_pickles")
async def test_a_batch_that_cannot_be_read_leaks_nothing(main_state: state.MainState) -> None:
    main_state.counters.add(requests=1)
    manager = SimpleNamespace(rid_to_state={"a": Waiting()})
    batch = SimpleNamespace(rids=["a"], customized_info=SimpleNamespace(data=b"no pickle"))
    seen = []

    async def original(_manager: Any, one: Any) -> None:
        seen.append(one.customized_info)

    await arrivals.around_handle_batch_output(original, manager, batch)
    await asyncio.sleep(0.01)
    assert seen == [None]


@pytest.mark.parametrize("sent", [{PARAMS_KEY: "x", "mine": 1}, {PARAMS_KEY: None}, {"mine": 1}, None, "text"])
@pytest.mark.parametrize("batched", [False, True])
def test_only_the_server_writes_our_parameter(sent: Any, batched: bool) -> None:
    class Obj:
        sampling_params: Any = [{"custom_params": sent}] if batched else {"custom_params": sent}

    obj = Obj()
    _set_params(obj, None)
    one = obj.sampling_params[0] if batched else obj.sampling_params
    custom = one["custom_params"]
    assert not (isinstance(custom, dict) and PARAMS_KEY in custom)
    if isinstance(sent, dict) and "mine" in sent:
        assert custom == {"mine": 1}


def test_a_fault_that_repeats_is_not_logged_every_time(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, logger="geom"):
        for _ in range(2000):
            try:
                raise RuntimeError("again")
            except RuntimeError:
                faults.report("a test failed")
    assert len(caplog.records) == 12
    assert "(2000. time)" in caplog.records[-1].message
