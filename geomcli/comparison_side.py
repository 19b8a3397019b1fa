"""What a comparison needs of one trace: its steps with a fingerprint, their values as series, its layers and zones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain

import msgspec
import numpy as np
from numpy.typing import NDArray

from geomcli.errors import TraceError
from geomcli.fingerprint import FINGERPRINT_SIZE
from geomcli.links import layer_ids, layers_named
from geomcli.measured import measured
from geomcli.schema import SCHEMA_VERSION, TRACE_VERSION, Record, has_numbers
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
    tokens' numbers. prompt: (role, text) of its messages. TraceError when there is nothing in it to compare.
    """

    def __init__(self, trace: Trace, name: str) -> None:
        self.name = name
        self.model = str(trace.header.get("model", ""))
        self.metrics = trace.metrics
        self.prompt = [(message.get("role"), message.get("content")) for message in trace.prompt]
        self.texts: list[str | None] = [token.get("text") for token in trace.tokens]
        self.ids: list[int | None] = [token.get("tokenId") for token in trace.tokens]
        self.indices = [int(token["index"]) for token in trace.tokens]
        version = str(trace.header.get("version", TRACE_VERSION))
        if version.partition(".")[0] != TRACE_VERSION.partition(".")[0]:
            raise TraceError(f"{name} has trace format {version}; this geom reads {TRACE_VERSION}.")
        by_token, rows = _usable(trace.steps)
        steps = list(by_token.values())
        if not steps:
            raise TraceError(f"{name} has no fingerprint: there is nothing to compare.", "geom run … (captures them)")
        schemas = {str(step.get("schema", SCHEMA_VERSION)) for step in steps} - {str(SCHEMA_VERSION)}
        if schemas:
            found = ", ".join(sorted(schemas))
            raise TraceError(f"{name} has entries of schema {found}; this geom compares schema {SCHEMA_VERSION}.")
        self.steps = len(steps)
        self.places = list(by_token)
        self.rows: Floats = np.clip(rows, 0.0, 1.0)
        self.mean: Floats = self.rows.mean(axis=0)
        self.zones: list[str] = [step.get("zone") or UNKNOWN for step in steps]
        self.zone_counts = Counter(self.zones)
        self.layers = _layers(steps)
        self.ruleset = str(trace.header.get("ruleset") or steps[0].get("ruleset") or "")
        self._series = {field: measured([step.get(field) for step in steps]) for field in FIELDS}
        self.ripple = self.average("ripple")
        spoken = [m["content"] for m in trace.messages if m.get("role") == "user"]
        title = " ".join(str(spoken[-1]).split())[:_TITLE] if spoken else ""
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


def _layers(steps: Sequence[Record]) -> tuple[int, ...]:
    shown: set[int] = set()
    for step in steps:
        several, own = layers_named(step), step.get("layer_id")
        shown |= layer_ids(several) if several else {own} if own is not None else set()
    return tuple(sorted(shown))


def _usable(steps: list[Record]) -> tuple[dict[int, Record], Floats]:
    """Token index -> its first step with a sound fingerprint that has mass, and their fingerprints [n, 20]."""
    found = [
        step
        for step in steps
        if has_numbers(step)  # type: ignore[arg-type]
        and step["fingerprint"] is not None
        and len(step["fingerprint"]) == FINGERPRINT_SIZE
    ]
    numbers = chain.from_iterable(step["fingerprint"] for step in found)
    rows = np.fromiter(numbers, np.float64, len(found) * FINGERPRINT_SIZE).reshape(-1, FINGERPRINT_SIZE)
    places: dict[int, int] = {}
    for place in np.flatnonzero(np.isfinite(rows).all(axis=1)).tolist():
        places.setdefault(found[place]["tokenIndex"], place)
    return {index: found[place] for index, place in places.items()}, rows[list(places.values())]
