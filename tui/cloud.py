"""Points of the manifold: fingerprints of tokens or of whole traces, on the plane of their principal components.

Knows no widget and no store. Axes are fitted on the points themselves until `geom discover` has made artifacts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geomcli.fingerprint import BIN_ENTROPY, FINGERPRINT_SIZE
from geomcli.projection import Projection, fit
from geomcli.store_queries import Scope, TracePoint, TracePoints
from geomcli.tui.session import Place
from geomcli.tui.turn import Token, Turn
from geomcli.zones import UNKNOWN, ZONE_NAMES

SCOPES: tuple[Scope, ...] = ("session", "recent", "saved", "all")

# While tokens arrive, axes stay where they are until there are this many times as many points as they were fitted on:
# a plane that turns with every token cannot be read.
_REFIT = 1.25
_WAITS = 64  # newest tokens whose numbers may still come

Key = Place | str  # a token of the session, or a trace's id


@dataclass(frozen=True, eq=False)
class Cloud:
    """n points.

    keys: what each is; fingerprints [n, 20]; zones [n]: places in ZONE_NAMES; drifts [n], nan where unknown; xy [n, 2]:
    their coordinates; traces: one for each point, () where the points are tokens.
    """

    keys: Sequence[Key]
    fingerprints: NDArray[np.float64]
    zones: NDArray[np.int64]
    drifts: NDArray[np.float64]
    projection: Projection
    xy: NDArray[np.float64]
    traces: Sequence[TracePoint] = ()

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def of_traces(self) -> bool:
        return bool(self.traces)

    @property
    def entropies(self) -> NDArray[np.float64]:
        """[n], bin entropy 0..1."""
        return self.fingerprints[:, BIN_ENTROPY]

    def index(self, key: Key | None) -> int | None:
        """The point with this key."""
        try:
            return None if key is None else self.keys.index(key)
        except ValueError:
            return None

    def zone_counts(self) -> list[tuple[str, int]]:
        """(zone, points), the largest first, `unknown` last."""
        counts = np.bincount(self.zones, minlength=len(ZONE_NAMES)).tolist()
        found = [(zone, n) for zone, n in zip(ZONE_NAMES, counts, strict=True) if n]
        return sorted(found, key=lambda pair: (pair[0] == UNKNOWN, -pair[1]))


def empty() -> Cloud:
    """No points."""
    nothing = np.zeros((0, FINGERPRINT_SIZE))
    return Cloud([], nothing, np.zeros(0, np.int64), np.zeros(0), fit(nothing), np.zeros((0, 2)))


def of_traces(points: TracePoints) -> Cloud:
    """A point for each trace: its mean fingerprint, the zone that most of its tokens have."""
    fingerprints = points.fingerprints.astype(np.float64)
    projection = fit(fingerprints)
    return Cloud(
        keys=[point.trace_id for point in points.traces],
        fingerprints=fingerprints,
        zones=np.array([_zone_number(point.dominant_zone) for point in points.traces], dtype=np.int64),
        drifts=np.array([np.nan if p.max_drift is None else p.max_drift for p in points.traces], dtype=np.float64),
        projection=projection,
        xy=projection.project(fingerprints),
        traces=points.traces,
    )


def mean_fingerprint(turn: Turn) -> NDArray[np.float64] | None:
    """[20], over the tokens that have numbers; None where none has."""
    rows = [f for token in turn.tokens if (f := token.fingerprint) is not None]
    return np.mean(rows, axis=0) if rows else None


class TokenCloud:
    """Fingerprints of a session's tokens, each read once as it arrives."""

    def __init__(self) -> None:
        self._turns: list[Turn] = []
        self._rows: NDArray[np.float64] = np.zeros((256, FINGERPRINT_SIZE))
        self._clear()

    def update(self, turns: Sequence[Turn]) -> Cloud:
        """The points of these turns' tokens so far; tokens without numbers are none."""
        if len(turns) < len(self._turns) or any(a is not b for a, b in zip(self._turns, turns, strict=False)):
            self._clear()
        self._turns = list(turns)
        for number, turn in enumerate(turns):
            self._read(number, turn)
        n = len(self._keys)
        fingerprints = self._rows[:n]
        if self._is_due(n, all(turn.finished for turn in turns)):
            self._projection = fit(fingerprints)
            self._xy = self._projection.project(fingerprints)
        elif len(self._xy) < n:
            self._xy = np.concatenate([self._xy, self._projection.project(fingerprints[len(self._xy) :])])
        zones, drifts = np.array(self._zones, dtype=np.int64), np.array(self._drifts, dtype=np.float64)
        return Cloud(self._keys, fingerprints, zones, drifts, self._projection, self._xy)

    def _clear(self) -> None:
        self._done: dict[int, int] = {}
        self._keys: list[Key] = []
        self._zones: list[int] = []
        self._drifts: list[float] = []
        self._projection = fit(self._rows[:0])
        self._xy = np.zeros((0, 2))

    def _is_due(self, n: int, ended: bool) -> bool:
        fitted = self._projection.n
        return n > fitted and (ended or n >= _REFIT * fitted)

    def _read(self, number: int, turn: Turn) -> None:
        start = self._done.get(number, 0)
        done = start
        for token in turn.tokens[start:]:
            fingerprint = token.fingerprint
            if fingerprint is not None and np.isfinite(fingerprint).all():
                self._add(Place(number, token.index), token, fingerprint)
                done = token.index + 1
        self._done[number] = max(done, len(turn.tokens) - _WAITS)

    def _add(self, place: Place, token: Token, fingerprint: NDArray[np.float64]) -> None:
        n = len(self._keys)
        if n == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
        self._rows[n] = fingerprint
        self._keys.append(place)
        self._zones.append(_zone_number(token.zone))
        self._drifts.append(np.nan if token.drift is None else token.drift)


def _zone_number(zone: str) -> int:
    return ZONE_NAMES.index(zone if zone in ZONE_NAMES else UNKNOWN)
