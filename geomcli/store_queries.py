"""What the panes ask of the store: one point for each trace, one trace's zones over time, its fingerprints.

Reads only. A trace that is still being written is there up to its last commit.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from geomcli.fingerprint import FINGERPRINT_SIZE
from geomcli.projection import Projection, fit
from geomcli.store import Store
from geomcli.zones import UNKNOWN

Scope = Literal["session", "recent", "saved", "all"]

RECENT_TRACES = 200
RECENT_DAYS = 7
AXES_TRACES = 40  # stored traces from which axes are fitted: two for each number of a fingerprint
_AXES = 4
_MOST_FITTED = 5000
_DAY_MS = 86_400_000


class TracePoint(msgspec.Struct, frozen=True):
    """One trace on the map. created: epoch ms; steps: those with a fingerprint; zones: zone -> steps."""

    trace_id: str
    created: int
    model: str
    title: str
    tokens: int | None
    steps: int
    complete: bool
    dominant_zone: str
    zones: dict[str, int]
    max_drift: float | None


class TracePoints(NamedTuple):
    """The traces, newest first, and their mean fingerprints [n, 20] float32 in the same order."""

    traces: list[TracePoint]
    fingerprints: NDArray[np.float32]


def trace_points(
    store: Store,
    scope: Scope = "recent",
    *,
    ids: Sequence[str] = (),
    limit: int = RECENT_TRACES,
    days: float = RECENT_DAYS,
    model: str | None = None,
    now_ms: int | None = None,
) -> TracePoints:
    """The traces of a scope that have a fingerprint; of one `model` only, where given.

    session: the traces `ids`. recent: the newest `limit` of the last `days` days. saved: every trace that was written
    to its end. all: those that were cut off, too.
    """
    conditions: list[str] = []
    parameters: list[Any] = []
    most = -1
    if scope == "session":
        conditions.append("t.id IN (SELECT value FROM json_each(?))")
        parameters.append(msgspec.json.encode(list(ids)).decode())
    elif scope == "recent":
        now = int(time.time() * 1000) if now_ms is None else now_ms
        conditions.append("t.created >= ?")
        parameters.append(now - int(days * _DAY_MS))
        most = limit
    elif scope == "saved":
        conditions.append("t.complete = 1")
    if model is not None:
        conditions.append("t.model = ?")
        parameters.append(model)
    rows = store.rows(
        "SELECT t.id, t.created, t.model, t.title, t.tokens, t.complete, t.max_drift, s.steps, s.zone_counts, "
        "s.fingerprint FROM traces t JOIN trace_summaries s ON s.trace_id = t.id "
        f"{'WHERE ' + ' AND '.join(conditions) if conditions else ''} ORDER BY t.created DESC, t.id DESC LIMIT ?",
        (*parameters, most),
    )
    blobs = b"".join(row["fingerprint"] for row in rows)
    fingerprints = np.frombuffer(blobs, dtype="<f4").reshape(-1, FINGERPRINT_SIZE).astype(np.float32)
    return TracePoints([_point(row) for row in rows], fingerprints)


def _point(row: dict[str, Any]) -> TracePoint:
    zones = msgspec.json.decode(row["zone_counts"], type=dict[str, int])
    return TracePoint(
        trace_id=row["id"],
        created=row["created"],
        model=row["model"],
        title=row["title"],
        tokens=row["tokens"],
        steps=row["steps"],
        complete=bool(row["complete"]),
        dominant_zone=min(zones, key=lambda zone: (-zones[zone], zone), default=UNKNOWN),
        zones=zones,
        max_drift=row["max_drift"],
    )


class FittedAxes(NamedTuple):
    """Principal components, and the models whose traces they were fitted on."""

    projection: Projection
    models: tuple[str, ...]


def fitted_axes(store: Store, models: Sequence[str]) -> FittedAxes | None:
    """Four principal components of the mean fingerprints of the newest stored traces of `models`.

    None with fewer than AXES_TRACES of them: a direction in 20 numbers needs more rows than that to mean anything.
    """
    points = {model: trace_points(store, "all", model=model).fingerprints[:_MOST_FITTED] for model in models}
    rows = np.concatenate([np.zeros((0, FINGERPRINT_SIZE)), *points.values()])
    if rows.shape[0] < AXES_TRACES:
        return None
    return FittedAxes(fit(rows, _AXES), tuple(model for model, found in points.items() if len(found)))


class ZoneStep(msgspec.Struct, frozen=True):
    """One token on the timeline; a field is None where its step does not have it."""

    index: int
    zone: str | None
    confidence: float | None
    drift: float | None
    compass: str | None
    think_phase: str | None


def zone_timeline(store: Store, trace_id: str) -> list[ZoneStep]:
    """The steps of a trace in order, one for each captured token; empty when there is no such trace."""
    rows = store.rows(
        "SELECT output_index, zone, confidence, drift, compass, think_phase FROM steps WHERE trace_id = ? "
        "ORDER BY output_index, layer",
        (trace_id,),
    )
    steps: dict[int, ZoneStep] = {}
    for row in rows:
        steps.setdefault(row["output_index"], ZoneStep(*row.values()))
    return list(steps.values())


def step_fingerprints(store: Store, trace_id: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Token indices [n] and fingerprints [n, 20] of a trace, in the order of the tokens."""
    rows = store.rows(
        "SELECT output_index, fingerprint FROM steps WHERE trace_id = ? AND fingerprint IS NOT NULL "
        "ORDER BY output_index, layer",
        (trace_id,),
    )
    indices = np.array([row["output_index"] for row in rows], dtype=np.int64)
    blobs = b"".join(row["fingerprint"] for row in rows)
    return indices, np.frombuffer(blobs, dtype="<f4").reshape(-1, FINGERPRINT_SIZE).astype(np.float32)


class TraceListing(msgspec.Struct, frozen=True):
    """One trace in a list. created: epoch ms; steps: those with a fingerprint, 0 where it cannot be compared."""

    trace_id: str
    created: int
    model: str
    title: str
    tokens: int | None
    steps: int
    complete: bool
    dominant_zone: str


def trace_list(store: Store, words: str = "", *, limit: int = 500) -> list[TraceListing]:
    """The newest traces that have every one of the words in their id, model, title or dominant zone."""
    conditions, parameters = [], []
    for word in words.split():
        conditions.append("(t.id || ' ' || t.model || ' ' || t.title || ' ' || ifnull(t.dominant_zone, '')) "
                          "LIKE ? ESCAPE '\\'")  # fmt: skip
        escaped = word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        parameters.append(f"%{escaped}%")
    rows = store.rows(
        "SELECT t.id, t.created, t.model, t.title, t.tokens, ifnull(s.steps, 0) AS steps, t.complete, t.dominant_zone "
        "FROM traces t LEFT JOIN trace_summaries s ON s.trace_id = t.id "
        f"{'WHERE ' + ' AND '.join(conditions) if conditions else ''} ORDER BY t.created DESC, t.id DESC LIMIT ?",
        (*parameters, limit),
    )
    return [
        TraceListing(
            row["id"], row["created"], row["model"], row["title"], row["tokens"], row["steps"], bool(row["complete"]),
            row["dominant_zone"] or UNKNOWN,
        )
        for row in rows
    ]  # fmt: skip
