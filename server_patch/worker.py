"""A process of its own for building entries, so that the main process, which writes every stream, has only to splice.

Started by the main process (worker_client.py) with one end of a socket as its standard input. Each message
and each answer is its length in 8 bytes and a pickle. Ends when the other end closes. Imports neither torch nor SGLang.
"""

from __future__ import annotations

import logging
import pickle
import socket
import struct
from typing import Any, NamedTuple

from geomcli.server_patch import faults
from geomcli.server_patch.answers import Answer
from geomcli.server_patch.building import build
from geomcli.server_patch.values import INFO_KEY, Sent

LENGTH = struct.Struct(">Q")


class Order(NamedTuple):
    """A batch of outputs: pickled customized_info, the request of each row, and requests that are over."""

    rids: list[str]
    info: bytes
    over: list[str]


class Built(NamedTuple):
    """By request the tokens' Values as plain tuples, and what else the pickle held, pickled; None: nothing of ours."""

    values: dict[str, list[tuple[Any, ...]]] | None
    rest: bytes | None


class Builder:
    """What the answers carry from batch to batch, by request; `layers` are those that the server captures."""

    def __init__(self, layers: tuple[int, ...]) -> None:
        self._layers = layers
        self._answers: dict[str, Answer] = {}

    def build(self, order: Order) -> Built:
        """Raises what unpickling raises; a fault in building makes error entries."""
        for rid in order.over:
            self._answers.pop(rid, None)
        info = dict(pickle.loads(order.info))
        rows = info.pop(INFO_KEY, None)
        if rows is None:
            return Built(None, None)
        tokens = {
            rid: found
            for rid, values in zip(order.rids, rows, strict=True)
            if (found := [Sent(*value) for value in values if value is not None])
        }
        built = build([(self._answer(rid, found), found) for rid, found in tokens.items()], self._layers)
        values = {rid: [tuple(value) for value in of_request] for rid, of_request in zip(tokens, built, strict=True)}
        return Built(values, pickle.dumps(info) if info else None)

    def _answer(self, rid: str, tokens: list[Sent]) -> Answer | None:
        known = self._answers.get(rid)
        if known is None and (options := next((token.options for token in tokens if token.options), "")):
            known = self._answers[rid] = Answer(options)
        return known


def serve(connection: socket.socket) -> None:
    """Answer orders until the other end closes; the first message is the captured layers."""
    with connection, connection.makefile("rb", buffering=1 << 20) as stream:
        builder = Builder(pickle.loads(_read(stream)))
        while data := _read(stream):
            try:
                answer: Any = builder.build(Order(*pickle.loads(data)))
            except Exception:
                faults.report("a batch of entries could not be built")
                answer = None
            packed = pickle.dumps(None if answer is None else tuple(answer), protocol=5)
            connection.sendall(LENGTH.pack(len(packed)) + packed)


def _read(stream: Any) -> bytes:
    """The next message; empty at the end."""
    head = stream.read(LENGTH.size)
    return stream.read(LENGTH.unpack(head)[0]) if len(head) == LENGTH.size else b""


def main() -> None:
    logging.basicConfig(format="[%(asctime)s] %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    try:
        serve(socket.socket(fileno=0))
    except (KeyboardInterrupt, ConnectionError):
        return


if __name__ == "__main__":
    main()
