"""Traces as JSON lines, header first: what `geom run --jsonl` and `geom traces export` write."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from geomcli.schema import Record

_encoder = msgspec.json.Encoder()


def line(record: Record) -> str:
    """One record as one line, without the line break."""
    return _encoder.encode(record).decode()


def dump(records: Iterable[Record]) -> str:
    """All records, each line ended."""
    return "".join(line(record) + "\n" for record in records)
