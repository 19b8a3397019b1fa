"""Answers to calibrate a detector on: the traces of a file, which of them are wrong, and what belongs together.

Labels are in a file of their own (CSV with a header, or JSON lines: trace_id, wrong, optionally group) or in a trace's
header, under the same names. Answers of one group, by default of one prompt, are never on both sides of a split.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from geomcli import jsonl, trace_files
from geomcli.detectors.observations import Observations, of_entries
from geomcli.errors import TraceError, UsageError
from geomcli.schema import Entry, Record
from geomcli.trace import entry_of

_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")
_LABELS = 'a CSV with the columns trace_id,wrong, or lines of {"trace_id": …, "wrong": true}'


class Label(NamedTuple):
    """group: None where it was not said."""

    wrong: bool
    group: str | None


@dataclass(frozen=True, eq=False)
class Answer:
    """wrong: None without a label; tokens: of the answer, captured or not; layers, heads: of its head statistics;
    linked: the layer of its links, None without any; fingerprinted: layers and heads that its fingerprints are of.
    """

    trace_id: str
    model: str
    group: str
    wrong: bool | None
    seen: Observations
    tokens: int
    layers: tuple[int, ...]
    heads: int
    linked: int | None = None
    fingerprinted: tuple[tuple[int, ...], int] = ((), 0)


class Reading(NamedTuple):
    """problems: a sentence for each line that could not be read."""

    answers: list[Answer]
    problems: list[str]


def read(name: str, labels: Mapping[str, Label] | None = None) -> Reading:
    """The answers of a file of traces, or of stdin for `-`; TraceError says what is wrong with it."""
    shown = trace_files.shown(name)
    broken: list[jsonl.Broken] = []
    try:
        with trace_files.opened(name) as stream:
            found = jsonl.stream(trace_files.lines(stream, shown), shown)
            answers = [_answer(one, labels or {}, shown) for one in _traces(found, broken)]
    except OSError as error:
        raise TraceError(f"{shown}: {error.strerror or error}.", jsonl.EXPORT) from None
    ids = [answer.trace_id for answer in answers]
    if len(set(ids)) < len(ids):
        twice = next(one for at, one in enumerate(ids) if one in ids[:at])
        raise TraceError(f"{shown} holds the trace {twice} twice.", "each trace once")
    return Reading(answers, jsonl.problems(broken, shown))


def read_labels(path: Path) -> dict[str, Label]:
    """Labels by trace id; UsageError names the line that is none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}.", _LABELS) from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text.", _LABELS) from None
    rows = _json_rows(lines, path) if any(lines) and lines[0].lstrip().startswith("{") else _csv_rows(lines, path)
    made: dict[str, Label] = {}
    for number, row in rows:
        trace_id, wrong, group = row.get("trace_id"), _truth(row.get("wrong")), row.get("group")
        if not isinstance(trace_id, str) or not trace_id:
            raise UsageError(f"{path}, line {number}: `trace_id` is missing.", _LABELS)
        if wrong is None:
            raise UsageError(
                f"{path}, line {number}: `wrong` must be true or false, got {row.get('wrong')!r:.40}.", _LABELS
            )
        label = Label(wrong, None if group in (None, "") else str(group))
        if made.setdefault(trace_id, label) != label:
            raise UsageError(f"{path}, line {number}: {trace_id} has two labels.", "each trace once")
    if not made:
        raise UsageError(f"{path} holds no label.", _LABELS)
    return made


def _json_rows(lines: list[str], path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, msgspec.json.decode(line, type=dict[str, Any])
            except (msgspec.MsgspecError, RecursionError) as error:
                raise UsageError(f"{path}, line {number}: {error}.", _LABELS) from None


def _csv_rows(lines: list[str], path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(lines, skipinitialspace=True)
    missing = {"trace_id", "wrong"} - set(reader.fieldnames or ())
    if missing:
        raise UsageError(f"{path}: the first line names no column {' and no '.join(sorted(missing))}.", _LABELS)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UsageError(f"{path}, line {reader.line_num}: {error}.", _LABELS) from None
        yield reader.line_num, row


def _truth(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower() if isinstance(value, str | int) else ""
    return True if text in _TRUE else False if text in _FALSE else None


class _Trace:
    """What is held of one trace while it is read."""

    def __init__(self, header: Record) -> None:
        self.header = header
        self.prompt: list[str] = []
        self.entries: dict[int, Entry] = {}
        self.tokens = 0

    def add(self, record: Record) -> None:
        kind = record["record_type"]
        if kind == "message" and not self.tokens:
            self.prompt.append(f"{record['role']}: {record['content']}")
        elif kind == "token":
            self.tokens += 1
        elif kind == "step":
            self.entries[record["tokenIndex"]] = entry_of(record)


def _traces(found: Iterable[tuple[int, Record] | jsonl.Broken], broken: list[jsonl.Broken]) -> Iterator[_Trace]:
    now: _Trace | None = None
    for one in found:
        if isinstance(one, jsonl.Broken):
            broken.append(one)
            continue
        _, record = one
        if record["record_type"] == "header":
            if now is not None:
                yield now
            now = _Trace(record)
        elif now is not None:
            now.add(record)
    if now is not None:
        yield now


def _answer(trace: _Trace, labels: Mapping[str, Label], shown: str) -> Answer:
    header = trace.header
    entries: list[Mapping[str, Any]] = [trace.entries[at] for at in sorted(trace.entries)]
    own = _truth(header.get("wrong"))
    label = labels.get(header["trace_id"]) or (None if own is None else Label(own, header.get("group")))
    group = header.get("group") if label is None or label.group is None else label.group
    group = "\n".join(trace.prompt) if group in (None, "") else str(group)
    try:
        seen = of_entries(entries)
        layers = next((tuple(sorted(map(int, e["head_stats"]))) for e in entries if e.get("head_stats")), ())
        linked = next((e.get("layer_id") for e in entries if e.get("token_positions")), None)
        fingerprinted = next((_fingerprinted(e) for e in entries if e.get("fingerprint")), ((), 0))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise TraceError(
            f"{shown}, trace {header['trace_id']}: its entries cannot be read ({error}).", jsonl.EXPORT
        ) from None
    return Answer(
        header["trace_id"], header["model"], group, label.wrong if label else None,
        seen, max(trace.tokens, len(entries)), layers, 0 if seen.heads is None else seen.heads.shape[-1], linked,
        fingerprinted,
    )  # fmt: skip


def _fingerprinted(entry: Mapping[str, Any]) -> tuple[tuple[int, ...], int]:
    of_layers = entry.get("layers") or entry.get("layer_sketches") or {entry.get("layer_id", -1): None}
    layers = tuple(sorted(map(int, of_layers)))
    heads = int((entry.get("heads") or {}).get("seen", 0))
    return (layers, heads) if heads and min(layers) >= 0 else ((), 0)
