"""What a comparison needs of one trace: its steps with a fingerprint, their values as series, its layers and zones."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
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
    """A trace, called `name` in messages; TraceError when there is nothing in it to compare.

    rows [steps, 20]: fingerprints, each number in [0, 1]; mean [20]: theirs; zones [steps].
    """

    def __init__(self, trace: Trace, name: str) -> None:
        self.name = name
        self.trace = trace
        self.model = str(trace.header.get("model", ""))
        self.tokens = trace.tokens
        version = str(trace.header.get("version", TRACE_VERSION))
        if version.partition(".")[0] != TRACE_VERSION.partition(".")[0]:
            raise TraceError(f"{name} has trace format {version}; this geom reads {TRACE_VERSION}.")
        self.steps, rows = _usable(trace.steps)
        if not self.steps:
            raise TraceError(f"{name} has no fingerprint: there is nothing to compare.", "geom run … (captures them)")
        schemas = {str(step.get("schema", SCHEMA_VERSION)) for step in self.steps.values()} - {str(SCHEMA_VERSION)}
        if schemas:
            found = ", ".join(sorted(schemas))
            raise TraceError(f"{name} has entries of schema {found}; this geom compares schema {SCHEMA_VERSION}.")
        self.rows: Floats = np.clip(rows, 0.0, 1.0)
        self.mean: Floats = self.rows.mean(axis=0)
        self._series: dict[str, Floats] = {}
        self.zones = [step.get("zone") or UNKNOWN for step in self.steps.values()]
        self.zone_counts = Counter(self.zones)
        self.ripple = self.average("ripple")

    @property
    def ruleset(self) -> str:
        named = self.trace.header.get("ruleset") or next(iter(self.steps.values())).get("ruleset")
        return str(named or "")

    @cached_property
    def layers(self) -> tuple[int, ...]:
        shown: set[int] = set()
        for step in self.steps.values():
            several, own = layers_named(step), step.get("layer_id")
            shown |= layer_ids(several) if several else {own} if own is not None else set()
        return tuple(sorted(shown))

    def series(self, field: str) -> Floats:
        """Values of a field [steps], nan where a step has none or one that is not `measured`."""
        if field not in self._series:
            self._series[field] = measured([step.get(field) for step in self.steps.values()])
        return self._series[field]

    def average(self, field: str) -> float | None:
        values = self.series(field)
        return float(np.nanmean(values)) if np.isfinite(values).any() else None

    def largest(self, field: str) -> float | None:
        values = self.series(field)
        return float(np.nanmax(values)) if np.isfinite(values).any() else None

    def side(self) -> Side:
        spoken = [m["content"] for m in self.trace.messages if m.get("role") == "user"]
        title = " ".join(str(spoken[-1]).split())[:_TITLE] if spoken else ""
        trace_id = str(self.trace.header.get("trace_id", ""))
        dominant = min(self.zone_counts, key=lambda zone: (-self.zone_counts[zone], zone))
        return Side(trace_id, self.model, title, len(self.tokens), len(self.steps), dominant, self.layers)

    @cached_property
    def zones_by_index(self) -> dict[int, str]:
        """Token index -> zone of its step."""
        return dict(zip(self.steps, self.zones, strict=True))


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
