"""Bytes are never overwritten before they were read, and whole reservations never wrap."""

from __future__ import annotations

import mmap
import os
from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geomcli.server_patch import publisher as publishing
from geomcli.server_patch.publisher import Part, Publisher
from geomcli.server_patch.receiver import Receiver, Step
from geomcli.server_patch.ring import Ring
from geomcli.server_patch.values import key_and_options


@given(st.lists(st.tuples(st.integers(1, 3000), st.booleans()), max_size=60))
def test_what_waits_is_as_it_was_written(steps: list[tuple[int, bool]]) -> None:
    ring = Ring.create(mmap.PAGESIZE)
    waiting: deque[tuple[int, int, int, int]] = deque()
    for number, (size, read) in enumerate(steps):
        if (place := ring.reserve(size)) is not None:
            ring.view(place[0], size)[:] = number % 251
            waiting.append((*place, size, number % 251))
        else:
            assert waiting
        if read and waiting:
            _, end, _, _ = waiting.popleft()
            ring.release(end)
        for start, _, n, value in waiting:
            assert (ring.view(start, n) == value).all()
            assert start % ring.size + n <= ring.size
    os.close(ring.file)


def test_a_quiet_ring_begins_anew_and_a_full_one_says_no() -> None:
    ring = Ring.create(mmap.PAGESIZE)
    half = ring.size // 2
    for _ in range(5):
        place = ring.reserve(half)
        assert place is not None
        assert place[0] % ring.size == 0
        ring.release(place[1])
    assert ring.reserve(half) is not None
    assert ring.reserve(half) is not None
    assert ring.reserve(1) is None
    ring.forget()
    assert ring.reserve(ring.size) is not None
    os.close(ring.file)


def test_a_message_that_is_too_long_ends_neither_side() -> None:
    publisher = Publisher((0,), 1 << 12)
    receiver = Receiver(publisher.address)
    part = Part("records", "int32", (1, 1, 1))

    def step() -> None:
        place = publisher.reserve([part])
        assert place is not None
        publisher.publish(place, (), ())

    step()
    publisher.announce(1, ("x" * (64 << 20), "{}", 1))
    publisher.announce(2, ("1/a", "{}", 1))
    step()
    found = list(receiver.messages())
    assert [type(message).__name__ for message in found] == ["Step", "Request", "Step"]
    assert receiver.open
    receiver.close()


def test_a_client_s_name_for_its_request_has_no_part_in_the_length() -> None:
    assert key_and_options("7:{}", "r" * 64) == ("7/" + "r" * 64, "{}")
    long, other = (key_and_options("7:{}", name * 300_000)[0] for name in ("r", "s"))
    assert len(long) == 66
    assert long != other


def test_steps_arrive_whole_and_in_order_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(publishing, "_LEAST_BYTES", 0)
    publisher = Publisher((0,), 1 << 12)
    part = Part("records", "int32", (1, 4, 100))
    assert publisher.reserve([part]) is None
    assert "nobody reads them" in caplog.text
    receiver = Receiver(publisher.address)
    sent = []
    for number in range(1000):
        place = publisher.reserve([part])
        if place is not None:
            publisher.views(place)[0][...] = number
            publisher.publish(place, ("flag",), (5,))
            sent.append(number)
    assert len(sent) < 1000
    found = []
    for message in receiver.messages():
        assert isinstance(message, Step)
        assert (message.flags, message.windows) == (("flag",), (5,))
        array = message.parts["records"]
        assert array.shape == part.shape
        assert np.ptp(array) == 0
        found.append(int(array[0, 0, 0]))
    assert found == sent
    assert publisher.reserve([part]) is not None
    receiver.close()
