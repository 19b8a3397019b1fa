"""Traces from the JSON lines of glassbox, the vLLM plugin: its signals kept as they are, by token, layer and head.

A row of glassbox holds singular values and other scalars of a whole attention matrix, and no attention: there is
nothing to make a fingerprint, a zone or a drift from, and none is made. docs/traces.md says what is assumed.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec

from geomcli.attention_dumps import named
from geomcli.errors import TraceError
from geomcli.schema import TRACE_VERSION, Record

_BARE = 10_000  # tokens without a row that a file may make
_BARE_BY_ROW = 100  # and as many more for each of its rows; glassbox has a row of each layer and head every 32 passes
_Count = Annotated[int, msgspec.Meta(ge=0, le=10_000_000)]
_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class _Row(msgspec.Struct):
    """A line; `feature_group` is what `signal` was called before."""

    request_id: _Int64 | str
    layer: str
    head: _Count
    step: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]  # forward passes so far, the prompt's included
    L: _Count  # positions that they covered
    features: dict[str, Any]
    signal: str = ""
    feature_group: str = ""
    layer_idx: Annotated[int, msgspec.Meta(ge=0, le=999_999)] | None = None


class _Read(NamedTuple):
    number: int  # of the line
    row: _Row
    raw: dict[str, Any]

    def layer(self) -> str:
        return self.row.layer if self.row.layer_idx is None else str(self.row.layer_idx)

    def signal(self) -> str:
        return self.row.signal or self.row.feature_group


_Steps = dict[int, list[_Read]]


def is_glassbox(line: bytes) -> bool:
    """Whether a line is one of glassbox's."""
    try:
        row = msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False
    return "record_type" not in row and "features" in row and ("signal" in row or "feature_group" in row)


def read_glassbox(lines: Iterable[bytes], path: Path) -> Iterator[list[Record]]:
    """The records of a trace for each request, in their order; TraceError names a line that is none."""
    requests: dict[int | str, _Steps] = {}
    seen: dict[tuple[int | str, int, str, str, int], _Read] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            raw = msgspec.json.decode(line, type=dict[str, Any])
            read = _Read(number, msgspec.convert(raw, _Row), raw)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            file = "FILE" if str(path) == "-" else shlex.quote(str(path))
            others = f"sed {number}d {file} | geom traces import --format glassbox -"
            mend = others if requests else "geom traces import FILE with the lines that glassbox wrote"
            raise TraceError(f"{path.name}, line {number}: no row of glassbox ({error}).", mend) from None
        row = read.row
        first = seen.setdefault((row.request_id, row.step, read.signal(), read.layer(), row.head), read)
        if first is read:
            requests.setdefault(row.request_id, {}).setdefault(row.step, []).append(read)
        elif first.raw != raw:
            raise TraceError(
                f"{path.name}, lines {first.number} and {number}: two rows of request {row.request_id!r}, step "
                f"{row.step}, layer {read.layer()}, head {row.head}, signal {read.signal()!r} differ; nothing was "
                "imported.",
                f"a file for each run of glassbox; the second may begin at line {number}",
            )
    if not requests:
        raise TraceError(f"{path.name} holds no row of glassbox.", "geom traces import FILE, without --format glassbox")
    _check_passes(requests, len(seen), path)
    return (_trace(request, steps, path) for request, steps in requests.items())


def _check_passes(requests: dict[int | str, _Steps], rows: int, path: Path) -> None:
    """Each pass up to the last makes a token, and a step is only a number: without a bound one line makes a million."""
    bare = {request: max(steps) - len(steps) for request, steps in requests.items()}
    if sum(bare.values()) > _BARE + _BARE_BY_ROW * rows:
        request = max(bare, key=lambda name: bare[name])
        last = max(requests[request])
        raise TraceError(
            f"{path.name}, line {requests[request][last][0].number}: step {last:,} of request {request!r}, of which "
            f"only {len(requests[request]):,} passes have a row; a file may leave out {_BARE:,} passes, and "
            f"{_BARE_BY_ROW} more for each of its rows.",
            "GLASSBOX_SVD_INTERVAL=32 where glassbox runs: a row every 32 passes",
        )


def _trace(request: int | str, steps: _Steps, path: Path) -> list[Record]:
    name = "assistant-1-main"
    last = max(steps)
    # The prompt's pass makes the first token; with its length unknown it follows from any later pass.
    prompt_len = max(1, *(read.row.L - read.row.step + 1 for rows in steps.values() for read in rows))
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


def _step(token: int, rows: list[_Read], prompt_len: int) -> Record:
    signals: dict[str, Any] = {}
    layers = {read.row.layer_idx for read in rows if read.row.layer_idx is not None}
    for read in rows:
        kept = {k: v for k, v in read.raw.items() if k not in _PLACES}
        signals.setdefault(read.signal(), {}).setdefault(read.layer(), {})[str(read.row.head)] = kept
    return {
        "record_type": "step",
        "tokenIndex": token,
        "attention": None,
        "decode_step": token + 1,
        "query_position": rows[0].row.L - 1,
        "prompt_len": prompt_len,
        "think_phase": "output",
        **({"layer_id": max(layers)} if layers else {}),
        "flags": ["no_attention"],
        "glassbox": signals,
    }


_PLACES = {"request_id", "layer", "layer_idx", "head", "step", "signal", "feature_group"}
