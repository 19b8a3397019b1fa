"""What is learned from: fingerprints that the sidecar stored, or those of stored traces, of one model."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from geomcli.compass import DRIFT_WINDOW
from geomcli.errors import GeomError
from geomcli.fingerprint import FINGERPRINT_BYTES, FINGERPRINT_SIZE
from geomcli.store import Store
from geomcli.zones import UNKNOWN

Origin = Literal["auto", "traffic", "traces"]
Unit = Literal["token", "request"]
Floats = NDArray[np.float64]

_FETCHED = 500  # rows by their ids in one statement
_WINDOWS = 2000
_ROUNDING = 1e-3


class _Table(NamedTuple):
    """Where a kind of fingerprints is stored, and by which SQL it is read.

    step: the column of the token, counted from `first`; own: whether a row is of :request, of :model.
    """

    name: str
    request: str
    step: str
    first: int
    ripple: str
    model: str
    joined: str
    own: str

    @property
    def fields(self) -> str:
        step = f"{self.step} - {self.first} AS step"
        return f"{self.request} AS request, {step}, {self.ripple} AS ripple, zone, fingerprint"


_TABLES = {
    "traffic": _Table(
        "fingerprints", "request_id", "decode_step", 1, "ripple", "model", "fingerprints",
        "model = :model AND request_id = :request",
    ),
    "traces": _Table(
        "steps", "trace_id", "output_index", 0, "json_extract(extra, '$.ripple')", "traces.model",
        "steps JOIN traces ON traces.id = steps.trace_id", "trace_id = :request",
    ),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Points:
    """n fingerprints of one model, in the order in which they were stored.

    fingerprints [n, 20]; requests, zones: of each; steps [n]: token of its request, -1 where the point is a request's
    mean; ripples [n]: nan where there is none. origin: table they are from; stored: how many there were to choose from;
    unsound: rows that were read and left out, as they are no fingerprints; windows [w, DRIFT_WINDOW, 20]: consecutive
    tokens of one request each, as the compass looks at them.
    """

    model: str
    fingerprints: Floats
    requests: list[str]
    steps: NDArray[np.int64]
    zones: list[str]
    ripples: Floats
    origin: str
    stored: int
    unsound: int = 0
    unit: Unit = "token"
    windows: Floats = field(default_factory=lambda: np.zeros((0, DRIFT_WINDOW, FINGERPRINT_SIZE)))

    def __len__(self) -> int:
        return len(self.requests)

    @property
    def of_requests(self) -> bool:
        """Whether each is the mean of a request."""
        return self.unit == "request"


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
        raise _nothing(store, model, chosen, known)
    table, total = _TABLES[chosen], dict(known)[model]
    if unit == "request":
        points = _means(store, table, model, most)
    else:
        points = _sound(_rows(store, table, _ids(store, table, model, total, most)))
    windows = _windows(store, table, model, _ids(store, table, model, total, _WINDOWS))
    return replace(points, model=model, origin=chosen, stored=total, windows=windows)


def _nothing(store: Store, model: str, origin: str, known: Sequence[tuple[str, int]]) -> GeomError:
    """What there is instead of the fingerprints of a model."""
    if known:
        names = ", ".join(name for name, _ in known)
        what, mend = f"no fingerprint of {model!r}; there are some of: {names}", f"--model {shlex.quote(known[0][0])}"
    elif others := models_of(store, "traffic" if origin == "traces" else "traces"):
        other = "traffic" if origin == "traces" else "traces"
        what = f"no fingerprints of {origin}, but {sum(n for _, n in others)} of {other}"
        mend = f"--from {other}"
    else:
        what, mend = "no fingerprints", "geom serve --attention-sidecar-url tcp://127.0.0.1:9001, or geom run"
    return GeomError(f"{store.path} holds {what}.", mend)


def _chosen(store: Store, origin: Origin) -> str:
    if origin != "auto":
        return origin
    return "traffic" if store.rows("SELECT 1 FROM fingerprints LIMIT 1") else "traces"


def _spread(total: int, most: int) -> str:
    """At most `most` of the places 0 to total - 1, evenly, the first and the last among them; as JSON."""
    places = np.arange(total) if total <= most else np.linspace(0, total - 1, most).astype(np.int64)
    return msgspec.json.encode(places.tolist()).decode()


def _ids(store: Store, table: _Table, model: str, total: int, most: int) -> list[int]:
    """Ids of at most `most` of a model's `total` fingerprints, evenly; SQLite counts, so that no others are read."""
    rows = store.rows(
        f"SELECT id FROM (SELECT {table.name}.id AS id, row_number() OVER (ORDER BY {table.name}.id) - 1 AS place "
        f"FROM {table.joined} WHERE {table.model} = ? AND fingerprint IS NOT NULL) "
        "WHERE place IN (SELECT value FROM json_each(?)) ORDER BY id",
        (model, _spread(total, most)),
    )
    return [row["id"] for row in rows]


def _rows(store: Store, table: _Table, ids: Sequence[int]) -> Iterator[dict[str, Any]]:
    for at in range(0, len(ids), _FETCHED):
        some = tuple(ids[at : at + _FETCHED])
        marks = ",".join("?" * len(some))
        yield from store.rows(f"SELECT {table.fields} FROM {table.name} WHERE id IN ({marks}) ORDER BY id", some)


def _requests(store: Store, table: _Table, model: str, most: int) -> Iterator[Points]:
    """The sound fingerprints of each of at most `most` requests of a model, one request in memory at a time."""
    grouped = (
        f"SELECT {table.request} AS request, min({table.name}.id) AS first FROM {table.joined} "
        f"WHERE {table.model} = ? AND fingerprint IS NOT NULL GROUP BY 1"
    )
    (counted,) = store.rows(f"SELECT count(*) AS n FROM ({grouped})", (model,))
    chosen = store.rows(
        f"SELECT request FROM (SELECT request, row_number() OVER (ORDER BY first) - 1 AS place FROM ({grouped})) "
        "WHERE place IN (SELECT value FROM json_each(?)) ORDER BY place",
        (model, _spread(counted["n"], most)),
    )
    for row in chosen:
        yield _sound(
            store.rows(
                f"SELECT {table.fields} FROM {table.name} WHERE {table.own} AND fingerprint IS NOT NULL ORDER BY id",
                {"model": model, "request": row["request"]},
            )
        )


def _sound(rows: Iterable[dict[str, Any]]) -> Points:
    """Those of the rows whose fingerprints are numbers in [0, 1], and not empty."""
    every = list(rows)
    whole = [
        row
        for row in every
        if isinstance(row["fingerprint"], bytes)
        and len(row["fingerprint"]) == FINGERPRINT_BYTES
        and isinstance(row["request"], str)
        and isinstance(row["step"], int)
    ]
    values = np.frombuffer(b"".join(row["fingerprint"] for row in whole), dtype="<f4").astype(np.float64)
    values = values.reshape(-1, FINGERPRINT_SIZE)
    # Compared so that what is no number is none of them.
    there = (np.abs(values - 0.5) <= 0.5 + _ROUNDING).all(axis=1) & (values != 0).any(axis=1)
    kept = [row for row, good in zip(whole, there.tolist(), strict=True) if good]
    return Points(
        "",
        values[there],
        [row["request"] for row in kept],
        np.array([row["step"] for row in kept], dtype=np.int64),
        [row["zone"] if isinstance(row["zone"], str) and row["zone"] else UNKNOWN for row in kept],
        np.array([_share(row["ripple"]) for row in kept], dtype=np.float64),
        "",
        len(kept),
        len(every) - len(kept),
    )


def _share(value: object) -> float:
    return float(value) if isinstance(value, int | float) and 0 <= value <= 1 + _ROUNDING else np.nan


def _means(store: Store, table: _Table, model: str, most: int) -> Points:
    """One point a request: the mean of its fingerprints, the zone that most of them are in."""
    means, requests, zones, ripples = [], [], [], []
    unsound = 0
    for one in _requests(store, table, model, most):
        unsound += one.unsound
        if not len(one):
            continue
        means.append(one.fingerprints.mean(axis=0))
        requests.append(one.requests[0])
        zones.append(max(sorted(set(one.zones)), key=one.zones.count))
        finite = one.ripples[np.isfinite(one.ripples)]
        ripples.append(float(finite.mean()) if finite.size else np.nan)
    return Points(
        model,
        np.array(means, dtype=np.float64).reshape(-1, FINGERPRINT_SIZE),
        requests,
        np.full(len(requests), -1, dtype=np.int64),
        zones,
        np.array(ripples, dtype=np.float64),
        "",
        len(requests),
        unsound,
        "request",
    )


def _windows(store: Store, table: _Table, model: str, ids: Sequence[int]) -> Floats:
    """[w, DRIFT_WINDOW, 20]: the tokens up to each of these fingerprints, where its request has as many before it."""
    made = []
    for last in _rows(store, table, ids):
        if not isinstance(last["step"], int):
            continue
        # The first layer of a token, as readings of traces take it; some more, as some may not be sound.
        rows = store.rows(
            f"SELECT {table.fields}, min(id) FROM {table.name} WHERE {table.own} AND {table.step} <= :step "
            f"AND fingerprint IS NOT NULL GROUP BY {table.step} ORDER BY {table.step} DESC LIMIT {2 * DRIFT_WINDOW}",
            {"model": model, "request": last["request"], "step": last["step"] + table.first},
        )
        values = _sound(rows).fingerprints[:DRIFT_WINDOW]
        if len(values) == DRIFT_WINDOW:
            made.append(values[::-1])
    return np.array(made, dtype=np.float64).reshape(-1, DRIFT_WINDOW, FINGERPRINT_SIZE)
