"""What is learned from: fingerprints that the sidecar stored, or those of stored traces, of one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geomcli.errors import GeomError
from geomcli.fingerprint import FINGERPRINT_BYTES, FINGERPRINT_SIZE
from geomcli.store import Store
from geomcli.zones import UNKNOWN

Origin = Literal["auto", "traffic", "traces"]
Unit = Literal["token", "request"]
Floats = NDArray[np.float64]

_FETCHED = 500  # rows by their ids in one statement


class _Table(NamedTuple):
    """Where a kind of fingerprints is stored, and by which SQL its fields are read."""

    name: str
    request: str
    step: str
    ripple: str
    model: str
    joined: str


_TABLES = {
    "traffic": _Table("fingerprints", "request_id", "decode_step - 1", "ripple", "model", "fingerprints"),
    "traces": _Table(
        "steps", "trace_id", "output_index", "json_extract(extra, '$.ripple')", "traces.model",
        "steps JOIN traces ON traces.id = steps.trace_id",
    ),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Points:
    """n fingerprints of one model, in the order in which they were stored.

    fingerprints [n, 20]; requests, zones: of each; steps [n]: token of its request, -1 where the point is a request's
    mean; ripples [n]: nan where there is none. origin: table they are from; stored: how many there were to choose from.
    """

    model: str
    fingerprints: Floats
    requests: list[str]
    steps: NDArray[np.int64]
    zones: list[str]
    ripples: Floats
    origin: str
    stored: int

    def __len__(self) -> int:
        return len(self.requests)


def models_of(store: Store, origin: Origin = "auto") -> list[tuple[str, int]]:
    """(model, its stored fingerprints), the one with the most first."""
    table = _TABLES[_chosen(store, origin)]
    rows = store.rows(
        f"SELECT {table.model} AS model, count(*) AS n FROM {table.joined} WHERE fingerprint IS NOT NULL GROUP BY 1"
    )
    return sorted(((row["model"], row["n"]) for row in rows), key=lambda pair: (-pair[1], pair[0]))


def stored(
    store: Store, model: str | None = None, *, origin: Origin = "auto", unit: Unit = "token", most: int = 20_000
) -> Points:
    """Fingerprints of a model (of that with the most, if None), spread evenly over what is stored, at most `most`.

    origin "auto": the sidecar's where there are any, else those of traces. unit "request": one point a request, the
    mean of its fingerprints. GeomError when there is nothing.
    """
    known = models_of(store, origin)
    chosen = _chosen(store, origin)
    if model is None:
        model = known[0][0] if known else ""
    if model not in dict(known):
        names = ", ".join(name for name, _ in known)
        what = f"no fingerprint of {model!r}; there are some of: {names}" if known else "no fingerprints"
        mend = (
            f"--model {known[0][0]}"
            if known
            else "geom serve --attention-sidecar-url tcp://127.0.0.1:9001, or geom run"
        )
        raise GeomError(f"{store.path} holds {what}.", mend)
    table = _TABLES[chosen]
    every = store.rows(
        f"SELECT {table.name}.id AS id FROM {table.joined} "
        f"WHERE {table.model} = ? AND fingerprint IS NOT NULL ORDER BY 1",
        (model,),
    )
    ids = [row["id"] for row in every]
    total = len(ids)
    if unit == "token" and total > most:
        ids = [ids[place] for place in np.linspace(0, total - 1, most).astype(np.int64).tolist()]
    rows = _rows(store, table, ids)
    sound = [row for row in rows if len(row["fingerprint"]) == FINGERPRINT_BYTES]
    values = np.frombuffer(b"".join(row["fingerprint"] for row in sound), dtype="<f4").astype(np.float64)
    values = values.reshape(-1, FINGERPRINT_SIZE)
    there = np.isfinite(values).all(axis=1) & (values != 0).any(axis=1)
    kept = [row for row, good in zip(sound, there.tolist(), strict=True) if good]
    points = Points(
        model,
        values[there],
        [row["request"] for row in kept],
        np.array([row["step"] for row in kept], dtype=np.int64),
        [row["zone"] or UNKNOWN for row in kept],
        np.array([np.nan if row["ripple"] is None else row["ripple"] for row in kept], dtype=np.float64),
        chosen,
        total,
    )
    return _means(points, most) if unit == "request" else points


def _chosen(store: Store, origin: Origin) -> str:
    if origin != "auto":
        return origin
    return "traffic" if store.rows("SELECT 1 FROM fingerprints LIMIT 1") else "traces"


def _rows(store: Store, table: _Table, ids: Sequence[int]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for at in range(0, len(ids), _FETCHED):
        some = tuple(ids[at : at + _FETCHED])
        marks = ",".join("?" * len(some))
        found += store.rows(
            f"SELECT {table.request} AS request, {table.step} AS step, {table.ripple} AS ripple, zone, fingerprint "
            f"FROM {table.name} WHERE id IN ({marks}) ORDER BY id",
            some,
        )
    return found


def _means(points: Points, most: int) -> Points:
    """One point a request: the mean of its fingerprints, the zone that most of them are in."""
    order: dict[str, list[int]] = {}
    for place, request in enumerate(points.requests):
        order.setdefault(request, []).append(place)
    chosen = list(order)
    if len(chosen) > most:
        chosen = [chosen[place] for place in np.linspace(0, len(chosen) - 1, most).astype(np.int64).tolist()]
    means = np.array([points.fingerprints[order[request]].mean(axis=0) for request in chosen])
    zones, ripples = [], []
    for request in chosen:
        seen = [points.zones[place] for place in order[request]]
        zones.append(max(sorted(set(seen)), key=seen.count))
        finite = points.ripples[order[request]][np.isfinite(points.ripples[order[request]])]
        ripples.append(float(finite.mean()) if finite.size else np.nan)
    return Points(
        points.model,
        means.reshape(-1, FINGERPRINT_SIZE),
        chosen,
        np.full(len(chosen), -1, dtype=np.int64),
        zones,
        np.array(ripples, dtype=np.float64),
        points.origin,
        points.stored,
    )
