"""A process of its own for building entries, so that the main process, which writes every stream, has only to splice.

Started by the main process (worker_client.py) with one end of a socket as its standard input. Each message and each
answer is its length in 8 bytes and a pickle. The records come from the scheduler itself (receiver.py). Ends when
either of them does. Imports neither torch nor SGLang.
"""

from __future__ import annotations

import gc
import logging
import pickle
import selectors
import socket
import struct
import time
from collections import deque
from typing import Any, NamedTuple

from geomcli.kernels import layout
from geomcli.server_patch import faults
from geomcli.server_patch.answers import Answer, Found
from geomcli.server_patch.building import build
from geomcli.server_patch.receiver import Gone, Kept, Receiver, Request, Step
from geomcli.server_patch.values import request_of

LENGTH = struct.Struct(">Q")
_GRACE_SECONDS = 120.0  # for the tokens of a request that the scheduler has forgotten


class Start(NamedTuple):
    """The first message. address: where the scheduler publishes; model: in messages for the sidecar, none without."""

    address: str
    model: str


class Tokens(NamedTuple):
    """New tokens of one request: its key, and the first one's place in the answer."""

    key: str
    first: int
    ids: list[int]
    options: str  # CaptureOptions as JSON
    prompt_len: int


class Order(NamedTuple):
    """A batch of outputs, and the requests that are over."""

    tokens: list[tuple[Any, ...]]
    over: list[str]


Built = dict[str, list[tuple[Any, ...]]]  # by request the tokens' Values as plain tuples


class Builder:
    """What the answers carry from batch to batch. Without a receiver every captured token is one that failed."""

    def __init__(self, receiver: Receiver | None, model: str = "") -> None:
        self._receiver = receiver
        self._model = model
        self._answers: dict[str, Answer] = {}
        self._by_stamp: dict[int, tuple[str, Answer]] = {}
        self._gone: deque[tuple[float, int]] = deque()

    def take_in(self) -> None:
        """What the scheduler has sent."""
        if self._receiver is None:
            return
        for message in self._receiver.messages():
            try:
                if isinstance(message, Step):
                    self._keep(message)
                elif isinstance(message, Request):
                    answer = self._answer(message.key, message.options, message.prompt_len)
                    answer.stamp = message.stamp
                    self._by_stamp[message.stamp] = message.key, answer
                elif isinstance(message, Kept):
                    if (known := self._by_stamp.get(message.stamp)) is not None:
                        known[1].presence.add(message.length, message.mask)
                elif isinstance(message, Gone):
                    self._gone.append((time.monotonic() + _GRACE_SECONDS, message.stamp))
            except Exception:
                faults.report("a message of the scheduler could not be read")
        while self._gone and self._gone[0][0] < time.monotonic():
            known = self._by_stamp.get(self._gone.popleft()[1])
            if known is not None:
                self._forget(known[0])

    def _keep(self, step: Step) -> None:
        """Hand the rows of a step to their answers; what a row holds of an earlier request's has its stamp."""
        records = step.parts["records"]
        stamps, lengths = records[..., layout.R_STAMP].T.tolist(), records[..., layout.R_LENGTH].T.tolist()
        mine = [
            (row, of_row, known[1])
            for row, of_row in enumerate(zip(stamps, lengths, strict=True))
            for stamp in set(of_row[0])
            if (known := self._by_stamp.get(stamp)) is not None
        ]
        if not mine:
            return
        judged = {at: tuple(decision) for at, *decision in step.judged}
        sampled = {at: tuple(values) for at, *values in step.sampled}
        kept = {name: array[:, [row for row, _, _ in mine]] for name, array in step.parts.items()}
        names = ("heads", "head_statistics", "derotated", "routing", "logits")
        heads, statistics, scores, routing, logits = (kept.get(name) for name in names)
        for at, (row, (of_layers, lengths_of), answer) in enumerate(mine):
            length = max(n for stamp, n in zip(of_layers, lengths_of, strict=True) if stamp == answer.stamp)
            answer.add(
                length,
                Found(
                    step.flags,
                    step.windows,
                    kept["records"][:, at],
                    None if heads is None else heads[:, at],
                    None if statistics is None else statistics[:, at],
                    None if scores is None else scores[:, at],
                    None if routing is None else routing[:, at],
                    None if logits is None else logits[0, at],
                    judged.get(row),
                    sampled.get(row),
                ),
            )

    def build(self, order: Order) -> Built:
        """A fault in building makes error entries."""
        self.take_in()
        for key in order.over:
            self._forget(key)
        layers = () if self._receiver is None else self._receiver.layers
        keys, answers = [], []
        for one in order.tokens:
            tokens = Tokens(*one)
            answer = self._answer(tokens.key, tokens.options, tokens.prompt_len)
            keys.append(tokens.key)
            answers.append((answer, answer.tokens(tokens.first, tokens.ids, layers)))
        built = build(answers, layers, between=self.take_in, model=self._model)
        return {key: [tuple(value) for value in values] for key, values in zip(keys, built, strict=True)}

    def _answer(self, key: str, options: str, prompt_len: int) -> Answer:
        known = self._answers.get(key)
        if known is None:
            known = self._answers[key] = Answer(options, prompt_len, request_of(key))
        return known

    def _forget(self, key: str) -> None:
        answer = self._answers.pop(key, None)
        if answer is not None:
            self._by_stamp.pop(answer.stamp, None)


def serve(connection: socket.socket) -> None:
    """Answer orders until the other end closes."""
    with connection, connection.makefile("rb", buffering=0) as stream:
        start = Start(*pickle.loads(read_message(stream)))
        receiver = Receiver(start.address)
        builder = Builder(receiver, start.model)
        _write(connection, True)
        with selectors.DefaultSelector() as selector:
            selector.register(connection, selectors.EVENT_READ)
            selector.register(receiver, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if receiver in ready:
                    builder.take_in()
                if not receiver.open:
                    # Whoever ordered is told by the end of this process, and reads the records itself.
                    return
                if connection in ready:
                    if not (data := read_message(stream)):
                        return
                    _write(connection, _built(builder, data))


def _built(builder: Builder, data: bytes) -> Built | None:
    try:
        return builder.build(Order(*pickle.loads(data)))
    except Exception:
        faults.report("a batch of entries could not be built")
        return None


def _write(connection: socket.socket, answer: Any) -> None:
    packed = pickle.dumps(answer, protocol=5)
    connection.sendall(LENGTH.pack(len(packed)) + packed)


def read_message(stream: Any) -> bytes:
    """The next message of an unbuffered stream; empty at its end."""
    head = _exactly(stream, LENGTH.size)
    return _exactly(stream, LENGTH.unpack(head)[0]) if head else b""


def _exactly(stream: Any, size: int) -> bytes:
    parts, missing = [], size
    while missing:
        part = stream.read(missing)
        if not part:
            return b""
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def main() -> None:
    # Entries are lists of lists, made and dropped by the thousand, with no cycles among them.
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
    logging.basicConfig(format="[%(asctime)s] %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    try:
        serve(socket.socket(fileno=0))
    except (KeyboardInterrupt, ConnectionError):
        return


if __name__ == "__main__":
    main()
