"""Messages for the sidecar: what is packed is what the sidecar reads, and sending never waits."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import zmq

from geomcli.server_patch.sidecar_push import Pusher, packed, with_phase
from geomcli.server_patch.values import key_and_options, request_of
from geomcli.sidecar.messages import decode
from tests.library.made_traces import LOCAL, numbers


def entry(**more: Any) -> dict[str, Any]:
    return {"decode_step": 3, "flags": [], "sink_mass": 0.25, "ripple": None, **numbers(LOCAL), **more}


def test_a_message_says_what_the_entry_says() -> None:
    routing = {"1": {"experts": [3, 5], "weights": [0.75, 0.25]}}
    for thinking, phase in ((False, "output"), (True, "think")):
        for one in (entry(), entry(drift=0.5, ripple=0.75, moe=routing)):
            message = decode(with_phase(packed("m", "r", one), thinking=thinking))
            assert (message.model, message.request_id, message.decode_step, message.phase) == ("m", "r", 3, phase)
            assert (message.zone, message.sink_mass, message.drift) == (one["zone"], 0.25, one["drift"])
            assert message.ripple == one["ripple"]
            np.testing.assert_array_equal(message.values, np.asarray(one["fingerprint"], dtype=np.float32))
            assert abs(message.ts_ms - time.time() * 1000) < 60_000
            assert (message.moe is None) == ("moe" not in one)


def test_what_has_no_numbers_is_no_message() -> None:
    assert packed("m", "r", {"decode_step": 1, "flags": ["error"]}) == b""
    assert packed("m", "r", entry(flags=["empty"])) == b""


def test_a_request_is_called_by_its_id() -> None:
    assert request_of(key_and_options("7:{}", "chat/cmpl-1")[0]) == "chat/cmpl-1"


def bind_again(socket: zmq.Socket[bytes], port: int, deadline: float) -> None:
    """Unbinding takes its time: until it is done the address is in use."""
    while True:
        try:
            socket.bind(f"tcp://127.0.0.1:{port}")
            return
        except zmq.ZMQError as error:
            if error.errno != zmq.EADDRINUSE or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def test_nobody_there_or_full_is_dropped_and_counted_at_once() -> None:
    context = zmq.Context()
    sink = context.socket(zmq.PULL)
    sink.set(zmq.RCVHWM, 10)
    sink.set(zmq.RCVTIMEO, 30_000)
    port = sink.bind_to_random_port("tcp://127.0.0.1")
    sink.unbind(f"tcp://127.0.0.1:{port}")
    pusher = Pusher(f"tcp://127.0.0.1:{port}", high_water=10)
    try:
        message = packed("m", "r", entry())
        pusher.send(message, thinking=False)
        assert (pusher.sent, pusher.dropped) == (0, 1)
        deadline = time.monotonic() + 30
        bind_again(sink, port, deadline)
        while not pusher.sent:
            assert time.monotonic() < deadline
            time.sleep(0.05)
            pusher.send(message, thinking=False)
        # Nobody reads: the kernel's buffers fill, then ours.
        began, tried = time.monotonic(), 0
        dropped = pusher.dropped
        large = packed("m", "r" * 8000, entry())
        while pusher.dropped == dropped and tried < 100_000:
            pusher.send(large, thinking=True)
            tried += 1
        assert pusher.dropped == dropped + 1
        assert time.monotonic() - began < 30
        assert decode(sink.recv()).request_id == "r"
    finally:
        pusher.close()
        context.destroy(0)
