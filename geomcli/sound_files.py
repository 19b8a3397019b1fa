"""The trace of a file in which nothing is wrong, decoded at once into typed records: a fifth of the time of `jsonl`.

Whatever is unusual (a broken or a blank line, several traces, a hole, another version) is left to the reader that can
say what it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from geomcli import trace_files
from geomcli.errors import TraceError
from geomcli.records import AnyRecord, Header, Metrics, Step, Token
from geomcli.schema import TRACE_VERSION
from geomcli.trace import Trace

_BLOCK = 4 << 20  # bytes
_decoder = msgspec.json.Decoder(AnyRecord)


class Sound(NamedTuple):
    """`trace` holds the records that are neither tokens nor steps."""

    trace: Trace
    tokens: list[Token]
    steps: list[Step]


def read(path: Path) -> Sound | None:
    """The one trace of a file, plain or compressed; None where the tolerant reader is needed."""
    try:
        records = _records(path)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, TraceError, OSError):
        return None
    return _sorted(records)


def _sorted(records: Sequence[AnyRecord]) -> Sound | None:
    """By kind; None unless a header comes first, tokens count from 0, and at most one step of each stands behind it."""
    tokens: list[Token] = []
    steps: list[Step] = []
    rest: list[AnyRecord] = []
    last = -1  # token of the last step
    for record in records:
        if isinstance(record, Token):
            if record.index != len(tokens):
                return None
            tokens.append(record)
        elif isinstance(record, Step):
            if not last < record.tokenIndex < len(tokens):
                return None
            last = record.tokenIndex
            steps.append(record)
        else:
            rest.append(record)
    kinds = Counter(map(type, rest))
    first = records[0] if records else None
    if not isinstance(first, Header) or kinds[Header] > 1 or kinds[Metrics] > 1:
        return None
    if first.version.partition(".")[0] != TRACE_VERSION.partition(".")[0]:
        return None
    return Sound(Trace(map(msgspec.to_builtins, rest)), tokens, steps)


def _records(path: Path) -> list[AnyRecord]:
    made: list[AnyRecord] = []
    if not path.is_file():  # what cannot be read a second time
        raise FileNotFoundError(path)
    rest = b""
    with trace_files.opened(str(path)) as stream:
        while block := stream.read(_BLOCK):
            whole, _, tail = block.rpartition(b"\n")
            if whole:
                made += _decoder.decode_lines(rest + whole)
                rest = tail
            elif len(rest) < trace_files.LONGEST_LINE:
                rest += block
            else:
                raise TraceError(f"{path} has a line longer than any trace's.")
    return made + _decoder.decode_lines(rest)
