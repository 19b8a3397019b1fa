"""What the plugin pushes: one msgpack map for each fingerprint; docs/wire.md, "Sidecar"."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from geomcli.fingerprint import FINGERPRINT_BYTES, FINGERPRINT_SIZE

LONGEST = 16 << 10  # bytes of a message
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
_Share = Annotated[float, msgspec.Meta(ge=-0.001, le=1.001)]
_ROUNDING = 1e-3


class Routing(msgspec.Struct, frozen=True, gc=False):
    """The experts that a layer sent a token to, and their weights."""

    experts: list[Annotated[int, msgspec.Meta(ge=0, lt=2**31)]]
    weights: list[float]


class Message(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A fingerprint of a request's token. decode_step from 1; ts_ms: epoch; fingerprint: 20 little-endian float32."""

    v: Literal[1]
    model: _Name
    request_id: _Name
    decode_step: Annotated[int, msgspec.Meta(ge=1, lt=2**53)]
    ts_ms: Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
    fingerprint: Annotated[bytes, msgspec.Meta(min_length=FINGERPRINT_BYTES, max_length=FINGERPRINT_BYTES)]
    zone: Annotated[str, msgspec.Meta(max_length=64)] = ""
    phase: Annotated[str, msgspec.Meta(max_length=16)] = ""
    sink_mass: _Share | None = None
    drift: _Share | None = None
    ripple: _Share | None = None
    moe: dict[str, Routing] | None = None

    @property
    def values(self) -> NDArray[np.float32]:
        """[20]."""
        return np.frombuffer(self.fingerprint, dtype="<f4")


class Malformed(ValueError):
    """A frame that is no such message, and why."""


_decoder = msgspec.msgpack.Decoder(Message)
_encoder = msgspec.msgpack.Encoder()


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def decode(frame: bytes) -> Message:
    """The message of a frame; Malformed where it is none, is too long, or its numbers are not a fingerprint's."""
    if len(frame) > LONGEST:
        raise Malformed(f"{len(frame)} bytes, more than {LONGEST}")
    try:
        message = _decoder.decode(frame)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Malformed(str(error)) from None
    values = message.values
    if not (np.isfinite(values).all() and (values >= -_ROUNDING).all() and (values <= 1 + _ROUNDING).all()):
        raise Malformed(f"fingerprint: not {FINGERPRINT_SIZE} numbers in [0, 1]")
    return message
