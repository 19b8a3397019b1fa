"""What the map of traces needs of one trace: its mean fingerprint and how often it was in which zone.

Kept beside the steps, so that ten thousand traces are drawn without reading millions of them. Knows no database.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from geomcli.fingerprint import BIN_ENTROPY, FINGERPRINT_BYTES, FINGERPRINT_SIZE, LOCAL, LONG, MID, N_BINS, pack
from geomcli.schema import Record
from geomcli.zones import UNKNOWN


@dataclass(frozen=True)
class TraceSummary:
    """Sums over the steps that have mass in their histogram; `total`: sum of their fingerprints [20]."""

    steps: int = 0
    total: NDArray[np.float64] = field(default_factory=lambda: np.zeros(FINGERPRINT_SIZE))
    zones: Counter[str] = field(default_factory=Counter)

    def plus(self, records: Iterable[Record]) -> TraceSummary:
        """This and the `step` records among `records`; the rest of them does not matter."""
        steps = [
            r for r in records if r["record_type"] == "step" and len(r.get("fingerprint") or ()) == FINGERPRINT_SIZE
        ]
        rows = np.array([step["fingerprint"] for step in steps], dtype=np.float64)
        return self._with(rows.reshape(-1, FINGERPRINT_SIZE), [step.get("zone") for step in steps])

    def row(self) -> tuple[Any, ...]:
        """steps, local, mid, long, bin_entropy, zone counts as JSON, mean fingerprint as 80 bytes; steps > 0."""
        mean = self.total / self.steps
        bands = [float(mean[place]) for place in (LOCAL, MID, LONG, BIN_ENTROPY)]
        counts = msgspec.json.encode(dict(sorted(self.zones.items()))).decode()
        return (self.steps, *bands, counts, pack(mean))

    def _with(self, rows: NDArray[np.float64], zones: list[str | None]) -> TraceSummary:
        some = np.isfinite(rows).all(axis=1) & (rows[:, -N_BINS:].sum(axis=1) > 0)
        if not some.any():
            return self
        counted = Counter(zone or UNKNOWN for zone, kept in zip(zones, some.tolist(), strict=True) if kept)
        return TraceSummary(self.steps + int(some.sum()), self.total + rows[some].sum(axis=0), self.zones + counted)


def of_blobs(steps: Iterable[tuple[str | None, bytes]]) -> TraceSummary:
    """Summary of (zone, packed fingerprint) pairs."""
    zones, blobs = [], []
    for zone, blob in steps:
        if len(blob) == FINGERPRINT_BYTES:
            zones.append(zone)
            blobs.append(blob)
    rows = np.frombuffer(b"".join(blobs), dtype="<f4").reshape(-1, FINGERPRINT_SIZE).astype(np.float64)
    return TraceSummary()._with(rows, zones)
