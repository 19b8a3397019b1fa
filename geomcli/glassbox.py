"""Traces from the JSON lines of glassbox, the vLLM plugin: its signals kept as they are, by token, layer and head.

A row of glassbox holds singular values and other scalars of a whole attention matrix, and no attention: there is
nothing to make a fingerprint, a zone or a drift from, and none is made. docs/traces.md says what is assumed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import msgspec

from geomcli.attention_dumps import named
from geomcli.errors import TraceError
from geomcli.schema import TRACE_VERSION, Record

_Count = Annotated[int, msgspec.Meta(ge=0, le=10_000_000)]


class _Row(msgspec.Struct):
    """A line; `feature_group` is what `signal` was called before."""

    request_id: int | str
    layer: str
    head: _Count
    step: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]  # forward passes so far, the prompt's included
    L: _Count  # positions that they covered
    features: dict[str, Any]
    signal: str = ""
    feature_group: str = ""
    layer_idx: int | None = None


def is_glassbox(line: bytes) -> bool:
    """Whether a line is one of glassbox's."""
    try:
        row = msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.MsgspecError:
        return False
    return "record_type" not in row and "features" in row and ("signal" in row or "feature_group" in row)


def read_glassbox(lines: Iterable[bytes], path: Path) -> list[list[Record]]:
    """The records of a trace for each request, in their order; TraceError names a line that is none."""
    requests: dict[int | str, dict[int, list[tuple[_Row, dict[str, Any]]]]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            raw = msgspec.json.decode(line, type=dict[str, Any])
            row = msgspec.convert(raw, _Row)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise TraceError(f"{path.name}, line {number}: no row of glassbox ({error}).") from None
        requests.setdefault(row.request_id, {}).setdefault(row.step, []).append((row, raw))
    if not requests:
        raise TraceError(f"{path.name} holds no row of glassbox.")
    return [_trace(request, steps, path) for request, steps in requests.items()]


def _trace(request: int | str, steps: dict[int, list[tuple[_Row, dict[str, Any]]]], path: Path) -> list[Record]:
    name = "assistant-1-main"
    last = max(steps)
    # The prompt's pass makes the first token; with its length unknown it follows from any later pass.
    prompt_len = max(1, *(row.L - row.step + 1 for rows in steps.values() for row, _ in rows))
    rest: list[Record] = []
    for token in range(last):
        rest.append({"record_type": "token", "index": token, "text": None, "segmentId": name, "tokenId": None})
        if rows := steps.get(token + 1):
            rest.append(_step(token, rows, prompt_len))
    rest.append({"record_type": "segment", "id": name, "type": "assistant_main", "start": 0, "end": last})
    rest.append({"record_type": "metrics", "tokens": last, "entries": 0, "flags": {}, "zoneCounts": {}})
    header: Record = {
        "record_type": "header",
        "version": TRACE_VERSION,
        "trace_id": "",
        "model": "unknown",
        "created": 0,
        "ruleset": "",
        "capture": {"glassbox_request_id": request},
    }
    return named(header, rest, path, "glassbox", request=msgspec.json.encode(request).decode())


def _step(token: int, rows: list[tuple[_Row, dict[str, Any]]], prompt_len: int) -> Record:
    signals: dict[str, Any] = {}
    layers: set[int] = set()
    for row, raw in rows:
        layer = row.layer if row.layer_idx is None else str(row.layer_idx)
        if row.layer_idx is not None:
            layers.add(row.layer_idx)
        kept = {k: v for k, v in raw.items() if k not in _PLACES}
        signals.setdefault(row.signal or row.feature_group, {}).setdefault(layer, {})[str(row.head)] = kept
    return {
        "record_type": "step",
        "tokenIndex": token,
        "attention": None,
        "decode_step": token + 1,
        "query_position": rows[0][0].L - 1,
        "prompt_len": prompt_len,
        "think_phase": "output",
        **({"layer_id": max(layers)} if layers else {}),
        "flags": ["no_attention"],
        "glassbox": signals,
    }


_PLACES = {"request_id", "layer", "layer_idx", "head", "step", "signal", "feature_group"}
