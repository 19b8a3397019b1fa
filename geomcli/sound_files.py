"""The trace of a file in which nothing is wrong, decoded at once into typed records: a fifth of the time of `jsonl`.

Whatever is unusual (a line that is broken, blank or two records, several traces, a hole, another version) is left to
the reader that can say what it is. Only what a comparison reads is looked at: of links, the layers that they are of.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from geomcli import trace_files
from geomcli.errors import TraceError
from geomcli.links import without_links
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


class _Unusual(Exception):
    """Something that the tolerant reader has to look at."""


def read(path: Path) -> Sound | None:
    """The one trace of a file, plain or compressed; None where the tolerant reader is needed."""
    try:
        return _sorted(path)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, TraceError, OSError, _Unusual):
        return None


def _sorted(path: Path) -> Sound:
    """A header comes first, tokens count from 0, and at most one step of each stands behind it."""
    tokens: list[Token] = []
    steps: list[Step] = []
    rest: list[AnyRecord] = []
    last = -1  # token of the last step
    ended = False
    for block in _blocks(path):
        for record in block:
            if type(record) is Token:
                if not rest or record.index != len(tokens):
                    raise _Unusual
                tokens.append(record)
            elif type(record) is Step:
                if not last < record.tokenIndex < len(tokens):
                    raise _Unusual
                last = record.tokenIndex
                if record.attention is not None or record.moe is not None or record.prompt_tokens is not None:
                    _slim(record)
                steps.append(record)
            elif isinstance(record, Header) == bool(rest) or (isinstance(record, Metrics) and ended):
                raise _Unusual  # a second header, no first one, or a second end
            else:
                ended = ended or isinstance(record, Metrics)
                rest.append(record)
    if not rest or not isinstance(rest[0], Header) or _major(rest[0].version) != _major(TRACE_VERSION):
        raise _Unusual
    return Sound(Trace(map(msgspec.to_builtins, rest)), tokens, steps)


def _major(version: str) -> str:
    return version.partition(".")[0]


def _slim(step: Step) -> None:
    """Drop what takes room and no comparison reads."""
    step.moe = step.prompt_tokens = None
    if step.attention:
        step.attention = without_links(step.attention)


def _blocks(path: Path) -> Iterator[list[AnyRecord]]:
    if not path.is_file():  # what cannot be read a second time
        raise _Unusual
    rest = b""
    with trace_files.opened(str(path)) as stream:
        while block := stream.read(_BLOCK):
            end = block.rfind(b"\n") + 1
            if len(rest) + (block.find(b"\n") if end else len(block)) > trace_files.LONGEST_LINE:
                raise _Unusual
            if end:
                yield _decoded(rest + block[:end])
                rest = block[end:]
            else:
                rest += block
    yield _decoded(rest)


def _decoded(lines: bytes) -> list[AnyRecord]:
    # A field that has no name here is passed over unseen, and so are the breaks of lines.
    lines.decode()
    records = _decoder.decode_lines(lines)
    if len(records) != lines.count(b"\n") + (lines[-1:] not in (b"\n", b"")):
        raise _Unusual
    return records
