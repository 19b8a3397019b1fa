"""Traces from JSON lines: checked record by record before anything is shown, unknown fields kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from geomcli.client import WireEntry
from geomcli.errors import GeomError
from geomcli.schema import Record

_Index = Annotated[int, msgspec.Meta(ge=0, le=2**31)]


class _Header(msgspec.Struct, tag_field="record_type", tag="header"):
    trace_id: str
    model: str = ""
    created: float = 0
    capture: dict[str, Any] = {}


class _Message(msgspec.Struct, tag_field="record_type", tag="message"):
    role: str
    content: str


class _Token(msgspec.Struct, tag_field="record_type", tag="token"):
    index: _Index
    text: str | None = None
    segmentId: str | None = None  # noqa: N815  (the trace format's own name)


class _Step(WireEntry, tag_field="record_type", tag="step"):
    tokenIndex: _Index = 0  # noqa: N815
    attention: dict[str, Any] | None = None


class _Segment(msgspec.Struct, tag_field="record_type", tag="segment"):
    id: str
    type: Literal["assistant_think", "assistant_main"] | str = ""
    start: _Index = 0
    end: _Index = 0


class _Metrics(msgspec.Struct, tag_field="record_type", tag="metrics"):
    tokens: int | None = None
    promptTokens: int | None = None  # noqa: N815
    tokensPerSecond: float | None = None  # noqa: N815
    attentionBytes: int | None = None  # noqa: N815
    flags: dict[str, int] = {}


_Known = _Header | _Message | _Token | _Step | _Segment | _Metrics
_decoder = msgspec.json.Decoder(dict[str, Any])


def read_traces(path: Path) -> list[list[Record]]:
    """The records of every trace of a file, in its order; GeomError names the line that cannot be read.

    A last line without a line break was being written when its writer ended: it is left out, the rest is kept.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise GeomError(f"{path}: {(error.strerror or str(error)).lower()}.", "geom traces ls") from None
    unfinished = lines.pop()
    traces: list[list[Record]] = []
    tokens = 0
    for number, line in enumerate([*lines, unfinished], 1):
        if not line.strip():
            continue
        try:
            record = _record(line)
        except msgspec.MsgspecError as error:
            if line is unfinished and traces:
                break
            raise GeomError(
                f"{path}, line {number}: not a record of a trace ({error}).", "geom traces export last > trace.jsonl"
            ) from None
        if record["record_type"] == "header":
            traces.append([])
            tokens = 0
        elif not traces:
            raise GeomError(f"{path}, line {number}: a trace begins with its header.", "geom traces export last")
        if record["record_type"] == "token":
            if record["index"] != tokens:
                raise GeomError(f"{path}, line {number}: token {tokens} is missing.", "geom traces export last")
            tokens += 1
        traces[-1].append(record)
    if not traces:
        raise GeomError(f"{path} holds no trace.", "geom run 'Hi' --jsonl > trace.jsonl")
    return traces


def _record(line: bytes) -> Record:
    record = _decoder.decode(line)
    msgspec.convert(record, _Known)
    return record
