"""What a comparison needs of one trace: its steps with a fingerprint, their values as series, its layers and zones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from geomcli.errors import TraceError
from geomcli.fingerprint import FINGERPRINT_SIZE
from geomcli.kept import read_cache
from geomcli.links import layer_ids, layers_named
from geomcli.measured import measured
from geomcli.records import Step, Token
from geomcli.schema import SCHEMA_VERSION, TRACE_VERSION, Record
from geomcli.trace import Trace
from geomcli.zones import UNKNOWN

Floats = NDArray[np.float64]
_TITLE = 120
# Fields of a step that are compared as means.
FIELDS = ("entropy_bits", "sink_mass", "ripple", "drift", "zone_confidence")


class Side(msgspec.Struct, frozen=True):
    """One of the two traces. `steps`: tokens that have a fingerprint; `title`: the user's last message, shortened."""

    trace_id: str
    model: str
    title: str
    tokens: int
    steps: int
    dominant_zone: str
    layers: tuple[int, ...]


class SideView:
    """A trace as columns, called `name` in messages; small enough to be handed from one process to another.

    texts, ids, indices: text, id and number of each token, None where it has no such. steps: how many tokens have a
    fingerprint; rows [steps, 20]: theirs, each number in [0, 1]; mean [20]; zones [steps]; places [steps]: their
    tokens' numbers. prompt: (role, text) of its messages. cache: what the KV cache held at the last step, None where
    nothing leaves it. TraceError when there is nothing in it to compare.
    """

    def __init__(
        self, trace: Trace, name: str, tokens: Sequence[Token] | None = None, steps: Sequence[Step] | None = None
    ) -> None:
        """`tokens` and `steps`: the trace's, where they were read as such and are not among its records."""
        self.name = name
        self.model = str(trace.header.get("model", ""))
        self.metrics = trace.metrics
        self.prompt = [(message.get("role"), message.get("content")) for message in trace.prompt]
        spoken = trace.tokens if tokens is None else tokens
        self.texts: list[str | None] = _column(spoken, "text")
        self.ids: list[int | None] = _column(spoken, "tokenId")
        self.indices: list[int] = _column(spoken, "index")
        version = str(trace.header.get("version", TRACE_VERSION))
        if version.partition(".")[0] != TRACE_VERSION.partition(".")[0]:
            raise TraceError(f"{name} has trace format {version}; this geom reads {TRACE_VERSION}.")
        shown, rows = _usable(trace.steps if steps is None else steps)
        if not shown:
            raise TraceError(f"{name} has no fingerprint: there is nothing to compare.", "geom run … (captures them)")
        schemas = {str(schema) for schema in _column(shown, "schema") if schema is not None} - {str(SCHEMA_VERSION)}
        if schemas:
            found = ", ".join(sorted(schemas))
            raise TraceError(f"{name} has entries of schema {found}; this geom compares schema {SCHEMA_VERSION}.")
        self.steps = len(shown)
        self.places: list[int] = _column(shown, "tokenIndex")
        self.rows: Floats = np.clip(rows, 0.0, 1.0)
        self.mean: Floats = self.rows.mean(axis=0)
        self.zones: list[str] = [zone or UNKNOWN for zone in _column(shown, "zone")]
        self.zone_counts = Counter(self.zones)
        self.layers = _layers(shown)
        self.cache = next((c for kv in reversed(_column(shown, "kv")) if (c := read_cache(kv)) is not None), None)
        self.ruleset = str(trace.header.get("ruleset") or _column(shown[:1], "ruleset")[0] or "")
        self._series = {field: measured(_column(shown, field)) for field in FIELDS}
        self.ripple = self.average("ripple")
        asked = [m["content"] for m in trace.messages if m.get("role") == "user"]
        title = " ".join(str(asked[-1]).split())[:_TITLE] if asked else ""
        dominant = min(self.zone_counts, key=lambda zone: (-self.zone_counts[zone], zone))
        trace_id = str(trace.header.get("trace_id", ""))
        self.side = Side(trace_id, self.model, title, len(self.texts), self.steps, dominant, self.layers)

    def series(self, field: str) -> Floats:
        """Values of one of FIELDS [steps], nan where a step has none or one that is not `measured`."""
        return self._series[field]

    def average(self, field: str) -> float | None:
        values = self.series(field)
        return float(np.nanmean(values)) if np.isfinite(values).any() else None

    def largest(self, field: str) -> float | None:
        values = self.series(field)
        return float(np.nanmax(values)) if np.isfinite(values).any() else None

    def keys(self, *, by_id: bool) -> list[str | int | None]:
        """What makes two tokens the same: the text, else the id where both have one vocabulary."""
        return [
            text if text is not None else token if by_id else None
            for text, token in zip(self.texts, self.ids, strict=True)
        ]

    def text_of(self) -> dict[int | None, str | None]:
        """Text by token number."""
        return dict(zip(self.indices, self.texts, strict=True))

    def zone_of(self) -> dict[int, str]:
        """Zone by token number, of tokens that have a fingerprint."""
        return dict(zip(self.places, self.zones, strict=True))


_Steps = Sequence[Record] | Sequence[Step]


def _column(records: Sequence[Record] | Sequence[Token] | Sequence[Step], field: str) -> list[Any]:
    """A field of each record, None where one has no such."""
    if records and isinstance(records[0], dict):
        return [record.get(field) for record in records]  # type: ignore[union-attr]
    return list(map(attrgetter(field), records))


def _layers(steps: _Steps) -> tuple[int, ...]:
    shown: set[int] = set()
    for attention, own in zip(_column(steps, "attention"), _column(steps, "layer_id"), strict=True):
        several = layers_named({"attention": attention}) if attention else ()
        shown |= layer_ids(several) if several else {own} if own is not None else set()
    return tuple(sorted(shown))


def _usable(steps: _Steps) -> tuple[list[Any], Floats]:
    """The first step of each token with a sound fingerprint that has mass, and their fingerprints [n, 20]."""
    found = [
        place
        for place, (fingerprint, flags) in enumerate(
            zip(_column(steps, "fingerprint"), _column(steps, "flags"), strict=True)
        )
        if fingerprint is not None and len(fingerprint) == FINGERPRINT_SIZE and "empty" not in (flags or ())
    ]
    fingerprints, tokens = _column(steps, "fingerprint"), _column(steps, "tokenIndex")
    numbers = chain.from_iterable(fingerprints[place] for place in found)
    rows = np.fromiter(numbers, np.float64, len(found) * FINGERPRINT_SIZE).reshape(-1, FINGERPRINT_SIZE)
    first: dict[int, int] = {}
    for row in np.flatnonzero(np.isfinite(rows).all(axis=1)).tolist():
        first.setdefault(tokens[found[row]], row)
    kept = list(first.values())
    return [steps[found[row]] for row in kept], rows[kept]
