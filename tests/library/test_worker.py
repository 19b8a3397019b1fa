"""The process that builds entries: its answers, and that nothing is missing where it does not start or has ended."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import msgspec
import orjson
import pytest

from geomcli.kernels import layout
from geomcli.server_patch import publisher as publishing
from geomcli.server_patch import worker_client
from geomcli.server_patch.publisher import Part, Publisher
from geomcli.server_patch.request_options import CaptureOptions
from geomcli.server_patch.values import Value
from geomcli.server_patch.worker import Order
from geomcli.server_patch.worker_client import EntryWorker

OPTIONS = CaptureOptions(
    mode="fingerprint", top_k=0, layers=(3,), heads=None, heads_total=4, mask_prefix=0, stride=1, limit=0, window=0,
    sink_tokens=4, head_stats=False, prompt_tokens=False,
)  # fmt: skip


def order(step: int, *, over: tuple[str, ...] = ()) -> Order:
    """One token of which nothing was found: its entry needs the request's options alone."""
    return Order([("1/a", step - 1, [7], msgspec.json.encode(OPTIONS).decode(), 3)], list(over))


async def test_entries_are_built_in_a_process_and_here_when_it_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    worker, alone = EntryWorker(), EntryWorker()
    publisher = Publisher((3,), 1 << 16)
    worker.start(publisher.address)
    assert worker.process is not None
    try:
        first = await worker.build(order(1))
        assert first == await alone.build(order(1))
        assert first is not None
        body = orjson.loads(b"{" + Value(*first["1/a"][0]).body + b"}")
        assert (body["decode_step"], body["query_position"], body["flags"]) == (1, 2, ["error"])
        assert await worker.build(Order([("a",)], [])) is None
        worker.process.kill()
        worker.process.wait()
        assert await worker.build(order(2)) == await alone.build(order(2))
        assert "is gone" in caplog.text
    finally:
        worker.stop()


async def test_orders_and_answers_larger_than_the_socket_holds_keep_their_order() -> None:
    worker, publisher = EntryWorker(), Publisher((3,), 1 << 16)
    worker.start(publisher.address)
    try:
        over = tuple(f"{number:0100}" for number in range(20_000))
        many = Order([("1/a", 2, [7] * 5000, msgspec.json.encode(OPTIONS).decode(), 3)], [])
        futures = [worker.build(one) for one in (order(1), order(2, over=over), many, order(5003, over=over))]
        built = [await asyncio.wait_for(future, 60) for future in futures]
        assert [[value[0] for value in one["1/a"]] for one in built if one is not None] == [
            [1], [2], list(range(3, 5003)), [5003],
        ]  # fmt: skip
    finally:
        worker.stop()


async def test_a_process_that_cannot_start_is_done_without(caplog: pytest.LogCaptureFixture) -> None:
    worker = EntryWorker()
    worker.start("\0geom-nobody-is-here")
    assert "could not be started" in caplog.text
    built = await worker.build(order(1))
    assert built is not None
    assert len(built["1/a"]) == 1


async def test_the_process_ends_with_the_one_that_started_it() -> None:
    worker = EntryWorker()
    publisher = Publisher((3,), 1 << 16)
    worker.start(publisher.address)
    assert worker.process is not None
    assert worker._socket is not None
    worker._socket.close()
    assert await asyncio.to_thread(worker.process.wait, 10) == 0


def test_without_the_process_records_are_read_before_their_tokens_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang hands on the tokens of an answer that is no stream by fifties; room is for two of these steps."""
    monkeypatch.setattr(publishing, "_LEAST_BYTES", 0)
    monkeypatch.setattr(publishing, "_STEPS_HELD", 2)
    monkeypatch.setattr(worker_client, "sys", SimpleNamespace(executable="/no/such/python"))
    part = Part("records", "int32", (1, 100, layout.RECORD_WORDS))
    publisher, worker = Publisher((3,), part.n_bytes), EntryWorker()
    worker.start(publisher.address)

    async def published() -> list[bool]:
        worker.listen()
        found = []
        for _ in range(20):
            place = publisher.reserve([part])
            found.append(place is not None)
            if place is not None:
                publisher.publish(place, (), ())
            await asyncio.sleep(0.01)
        return found

    assert asyncio.run(published()) == [True] * 20
