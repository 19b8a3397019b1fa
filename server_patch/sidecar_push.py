"""Fingerprints for a sidecar (docs/wire.md, "Sidecar"): packed where entries are built, sent by the main process.

Sending never waits: without a sidecar, or with one that takes no more, a message is dropped and counted.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec
import numpy as np

from geomcli.server_patch import faults

HIGH_WATER = 10_000  # messages that wait for a sidecar that is slow
# The phase is known in the main process alone: it stands last, and is written over there.
_THINK, _OUTPUT = msgspec.msgpack.encode("think"), msgspec.msgpack.encode("output")
_encoder = msgspec.msgpack.Encoder()


def packed(model: str, request: str, entry: dict[str, Any]) -> bytes:
    """The message of an entry with numbers, for a token of the output; empty for one without."""
    fingerprint = entry.get("fingerprint")
    if fingerprint is None or "empty" in entry["flags"]:
        return b""
    message = {
        "v": 1,
        "model": model,
        "request_id": request,
        "decode_step": entry["decode_step"],
        "ts_ms": time.time_ns() // 1_000_000,
        "fingerprint": np.asarray(fingerprint, dtype="<f4").tobytes(),
        "zone": entry["zone"],
        "sink_mass": entry["sink_mass"],
        "drift": entry["drift"],
        "ripple": entry["ripple"],
    }
    if (moe := entry.get("moe")) is not None:
        message["moe"] = moe
    return _encoder.encode({**message, "phase": "output"})


def with_phase(message: bytes, *, thinking: bool) -> bytes:
    return message[: -len(_OUTPUT)] + _THINK if thinking else message


class Pusher:
    """A PUSH socket that connects by itself, again and again. `sent`, `dropped`: messages."""

    def __init__(self, url: str, high_water: int = HIGH_WATER) -> None:
        import zmq

        self.url = url
        self.sent = self.dropped = 0
        self._again, self._flags = zmq.Again, zmq.NOBLOCK
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.set(zmq.SNDHWM, high_water)
        self._socket.set(zmq.LINGER, 0)
        # Nothing waits for a sidecar that is not there: what it would get then is old.
        self._socket.set(zmq.IMMEDIATE, 1)
        self._socket.connect(url)

    def send(self, message: bytes, *, thinking: bool) -> None:
        try:
            self._socket.send(with_phase(message, thinking=thinking), self._flags)
            self.sent += 1
        except self._again:
            self.dropped += 1
        except Exception:
            self.dropped += 1
            faults.report("a fingerprint could not be sent to the sidecar")

    def close(self) -> None:
        self._context.destroy(0)
