"""From the scheduler's values to finished entries: each once, in order, whatever is missing."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
from array import array
from types import SimpleNamespace
from typing import Any

import msgspec
import orjson
import pytest

from geomcli.server_patch import arrivals, faults, state
from geomcli.server_patch.collector import Collector
from geomcli.server_patch.request_options import CaptureOptions
from geomcli.server_patch.requests import _set_params, after_create_tokenized
from geomcli.server_patch.values import PARAMS_KEY, Value
from geomcli.server_patch.worker import Order

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
    assert entries == [
        {"index": 0, "decode_step": 1, "token_id": -200, "flags": [], "think_phase": "output", "token": None}
    ]
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

    def __init__(self, serial: int | None = None, **options: Any) -> None:
        encoded = msgspec.json.encode(msgspec.structs.replace(OPTIONS, **options)).decode()
        custom = {"mine": 1} if serial is None else {PARAMS_KEY: f"{serial}:{encoded}"}
        self.obj = SimpleNamespace(sampling_params={"custom_params": custom})


def batch_of(tokens: dict[str, list[int]]) -> Any:
    n = len(tokens)
    ids = [array("q", of_request) for of_request in tokens.values()]
    return SimpleNamespace(rids=list(tokens), output_ids=ids, prompt_tokens=[3] * n)


async def arrive(manager: Any, tokens: dict[str, list[int]]) -> None:
    """Until SGLang's own function has seen the batch."""
    seen = []

    async def original(_manager: Any, _batch: Any) -> None:
        seen.append(1)

    await arrivals.around_handle_batch_output(original, manager, batch_of(tokens))
    while not seen:
        await asyncio.sleep(0)


async def test_tokens_become_values_of_the_request_that_asked(main_state: state.MainState) -> None:
    manager = SimpleNamespace(rid_to_state={"a": Waiting(1), "b": Waiting()})
    main_state.counters.add(requests=1)
    await arrive(manager, {"a": [7, 8], "b": [1], "unknown": [2]})
    assert [(v.step, v.token_id) for v in arrivals.take("a", 1)] == [(1, 7)]
    # The value of the second token came with the first one's batch and waits for its answer.
    assert [(v.step, v.token_id) for v in arrivals.take("a", 2)] == [(2, 8)]
    assert arrivals.take("a", 9) == arrivals.take("b", 9) == arrivals.take("unknown", 9) == []
    await arrive(manager, {"a": [9]})
    (value,) = arrivals.take("a", 9)
    body = orjson.loads(b"{" + value.body + b"}")
    assert (body["decode_step"], body["query_position"], body["flags"]) == (3, 4, ["error"])
    # Another request of the same name starts anew.
    manager.rid_to_state["a"] = Waiting(2)
    await arrive(manager, {"a": [5]})
    assert [(v.step, v.token_id) for v in arrivals.take("a", 9)] == [(1, 5)]


async def test_a_batch_of_others_goes_straight_through(main_state: state.MainState) -> None:
    manager = SimpleNamespace(rid_to_state={"b": Waiting()})
    main_state.counters.add(requests=1)
    seen = []

    async def original(_manager: Any, one: Any) -> None:
        seen.append(one)

    for batch in (batch_of({"b": [1]}), SimpleNamespace(rids=["b"])):
        await arrivals.around_handle_batch_output(original, manager, batch)
        assert seen.pop() is batch
    assert not arrivals._waiting


async def test_the_first_value_brings_the_ids_of_a_prompt_whose_texts_were_asked_for(
    main_state: state.MainState,
) -> None:
    main_state.counters.add(requests=1)
    asking, other = Waiting(1, prompt_tokens=True), Waiting(2)
    for one in (asking, other):
        after_create_tokenized(SimpleNamespace(input_ids=array("q", [4, 5, 6])), None, one.obj)
    await arrive(SimpleNamespace(rid_to_state={"a": asking, "b": other}), {"a": [7, 8], "b": [9]})
    assert [v.prompt_ids for v in arrivals.take("a", 9)] == [[4, 5, 6], None]
    assert [v.prompt_ids for v in arrivals.take("b", 9)] == [None]


async def test_values_outlive_their_request_for_a_while(
    main_state: state.MainState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "_GRACE_SECONDS", 0.05)
    main_state.counters.add(requests=1)
    manager = SimpleNamespace(rid_to_state={"gone": Waiting(1)})
    await arrive(manager, {"gone": [7, 8]})
    manager.rid_to_state.clear()
    gc.collect()
    await asyncio.sleep(0)
    assert [v.token_id for v in arrivals.take("gone", 1)] == [7]
    await asyncio.sleep(0.5)
    assert arrivals.take("gone", 2) == []
    assert not arrivals._waiting
    assert arrivals._over == ["1/gone"]


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
    manager, passed = SimpleNamespace(rid_to_state={"a": Waiting(1), "b": Waiting()}), list[int]()

    async def handle(number: int, rid: str) -> None:
        async def original(_manager: Any, _batch: Any) -> None:
            passed.append(number)

        await arrivals.around_handle_batch_output(original, manager, batch_of({rid: [number]}))

    await handle(1, "b")
    assert passed == [1]
    await handle(2, "a")
    await handle(3, "b")
    await handle(4, "a")
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
    await handle(5, "a")
    await asyncio.sleep(0.2)
    assert passed == [1, 2, 3, 4, 5]
    assert "does not answer" in caplog.text


async def test_an_abort_waits_for_the_outputs_that_came_before_it(main_state: state.MainState) -> None:
    main_state.counters.add(requests=1)
    slow: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    main_state.worker = SimpleNamespace(build=lambda _order: slow)  # type: ignore[assignment]
    manager, passed = SimpleNamespace(rid_to_state={"a": Waiting(1)}), list[str]()

    def abort(name: str) -> None:
        arrivals.around_handle_abort(lambda _manager, one: passed.append(one), manager, name)

    async def outputs(_manager: Any, _batch: Any) -> None:
        passed.append("outputs")

    abort("at once")
    assert passed == ["at once"]
    await arrivals.around_handle_batch_output(outputs, manager, batch_of({"a": [7]}))
    for _ in range(2 * arrivals._LINE_LENGTH):  # they take no place in the line
        abort("behind")
    await asyncio.sleep(0.01)
    assert passed == ["at once"]
    slow.set_result(None)
    await asyncio.sleep(0.01)
    assert passed == ["at once", "outputs", *["behind"] * 2 * arrivals._LINE_LENGTH]
    assert arrivals._line.empty


async def test_nothing_is_kept_for_an_answer_that_nobody_reads(main_state: state.MainState) -> None:
    main_state.counters.add(requests=1)
    states = {"a": Waiting(1), "b": Waiting(2)}
    for rid, one in states.items():
        one.obj.rid = rid
    manager = SimpleNamespace(rid_to_state=states)
    await arrive(manager, {"a": [7], "b": [8]})
    assert arrivals.waiting() == 2
    arrivals.leave(manager, states["a"].obj, {"a"})
    assert arrivals.waiting() == 1
    await arrive(manager, {"a": [7], "b": [8]})
    assert arrivals.take("a", 9) == []
    assert [v.step for v in arrivals.take("b", 9)] == [1, 2]
    # A request that was never heard of, and one that took over its name.
    arrivals.leave(manager, SimpleNamespace(rid="never"), set())
    arrivals.leave(manager, SimpleNamespace(rid="b"), set())
    await arrive(manager, {"b": [8]})
    assert [v.step for v in arrivals.take("b", 9)] == [3]


async def test_a_batch_that_cannot_be_handled_ends_the_server_as_without_us(main_state: state.MainState) -> None:
    main_state.counters.add(requests=1)
    manager = SimpleNamespace(rid_to_state={"a": Waiting(1)})

    async def original(_manager: Any, _batch: Any) -> None:
        raise RuntimeError("SGLang's own")

    async def put() -> None:
        await arrivals.around_handle_batch_output(original, manager, batch_of({"a": [1]}))

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
            await line.put(functools.partial(handle, number))

    with pytest.raises(KeyError):
        await asyncio.wait_for(fill(), 10)


async def test_a_batch_that_cannot_be_read_loses_its_entries_alone(
    main_state: state.MainState, caplog: pytest.LogCaptureFixture
) -> None:
    main_state.counters.add(requests=1)
    manager, seen = SimpleNamespace(rid_to_state={"a": Waiting(1)}), []

    async def original(_manager: Any, one: Any) -> None:
        seen.append(one)

    batch = SimpleNamespace(rids=["a"], output_ids=[], prompt_tokens=[])
    await arrivals.around_handle_batch_output(original, manager, batch)
    assert seen == [batch]
    assert "could not be read" in caplog.text


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
