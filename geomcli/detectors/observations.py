"""What a detector sees: the captured numbers of one token of each of n answers, as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from geomcli.fingerprint import FINGERPRINT_SIZE, N_BINS

Floats = NDArray[np.float64]
State = TypeVar("State")

HEADS, LOGITS, LINKS = "heads", "logits", "links"  # what a detector may need beyond the fingerprint
HEAD_SCALARS = ("entropy", "sink", "prev", "lookback")


@dataclass(frozen=True)
class Links:
    """What the query tokens looked at: query [n], their positions, -1 where nothing is known; positions [n, k] of the
    keys, -1 behind the last; masses [n, k], probability (mean over heads), 0 there.
    """

    query: NDArray[np.int64]
    positions: NDArray[np.int64]
    masses: Floats

    def take(self, rows: NDArray[np.int64]) -> Links:
        return Links(self.query[rows], self.positions[rows], self.masses[rows])

    def strongest(self, most: int) -> Links:
        """With at most `most` links a row; of equal ones those that stand first."""
        if self.masses.shape[1] <= most:
            return self
        order = np.argsort(-self.masses, axis=1, kind="stable")[:, :most]
        positions = np.take_along_axis(self.positions, order, axis=1)
        return Links(self.query, positions, np.take_along_axis(self.masses, order, axis=1))


@dataclass(frozen=True)
class Observations:
    """fingerprint [n, 20] as published, zero where attention is empty, nan where it was not captured; logprob [n]: of
    the token, in nats, under the model's own distribution; logit_entropy [n]: of that distribution, in bits;
    margin [n]: between its two largest logits; nan where they were not captured. heads [n, layers, 4, H]: HEAD_SCALARS
    of each captured head, nan where they were not captured. links: of raw entries. Both None where nobody asked.
    """

    fingerprint: Floats
    logprob: Floats
    logit_entropy: Floats
    margin: Floats
    heads: Floats | None = None
    links: Links | None = None

    @classmethod
    def of_fingerprints(cls, fingerprint: Floats) -> Observations:
        """Where nothing else was captured."""
        nothing = np.full(len(fingerprint), np.nan)
        return cls(fingerprint, nothing, nothing, nothing)

    @property
    def histogram(self) -> Floats:
        """[n, 16]"""
        return self.fingerprint[:, -N_BINS:]

    def __len__(self) -> int:
        return len(self.fingerprint)

    def take(self, rows: NDArray[np.int64]) -> Observations:
        """The rows [m] of these."""
        return Observations(
            self.fingerprint[rows], self.logprob[rows], self.logit_entropy[rows], self.margin[rows],
            None if self.heads is None else self.heads[rows], None if self.links is None else self.links.take(rows),
        )  # fmt: skip


class Detector(Protocol[State]):
    """Scores of many answers at once; what an answer's score rests on is in its state.

    name: as it is chosen by; needs: of HEADS, LOGITS and LINKS.
    """

    name: str
    needs: frozenset[str]

    def start(self) -> State:
        """The state of an answer of which nothing was seen."""
        ...

    def update(self, states: Sequence[State], seen: Observations) -> Floats:
        """Take one token of each answer [n]: scores [n], nan where there is none yet."""
        ...


def of_entries(entries: Sequence[Mapping[str, Any]]) -> Observations:
    """One entry (docs/wire.md) of each of n answers, or n entries of one.

    ValueError where head statistics are of different layers or heads.
    """
    nothing = [np.nan] * FINGERPRINT_SIZE
    logits = [entry.get("logit_stats") or {} for entry in entries]
    logprob, entropy, margin = (
        np.array([one.get(name, np.nan) for one in logits], dtype=np.float64)
        for name in ("logprob", "entropy_bits", "margin")
    )
    fingerprints = np.array([entry.get("fingerprint") or nothing for entry in entries], dtype=np.float64)
    return Observations(
        fingerprints.reshape(-1, FINGERPRINT_SIZE), logprob, entropy, margin, _heads(entries), _links(entries)
    )


def _heads(entries: Sequence[Mapping[str, Any]]) -> Floats | None:
    found = [entry.get("head_stats") or {} for entry in entries]
    layers = next((sorted(one, key=int) for one in found if one), None)
    if layers is None:
        return None
    heads = len(next(one for one in found if one)[layers[0]][HEAD_SCALARS[0]])
    made = np.full((len(entries), len(layers), len(HEAD_SCALARS), heads), np.nan)
    for row, one in enumerate(found):
        if not one:
            continue
        if set(one) != set(layers):
            raise ValueError(f"head_stats of layers {', '.join(one)} beside {', '.join(layers)}")
        for at, layer in enumerate(layers):
            values = np.array([one[layer][name] for name in HEAD_SCALARS], dtype=np.float64)
            if values.shape != made.shape[2:]:
                raise ValueError(f"head_stats of layer {layer} have shape {values.shape}, not {made.shape[2:]}")
            made[row, at] = values
    return made


def _links(entries: Sequence[Mapping[str, Any]]) -> Links | None:
    rows = {
        row: entry
        for row, entry in enumerate(entries)
        if entry.get("token_positions")
        and entry.get("logsumexp_candidates") is not None
        and entry.get("query_position") is not None
    }
    if not rows:
        return None
    most = max(len(entry["token_positions"]) for entry in rows.values())
    query = np.full(len(entries), -1, dtype=np.int64)
    positions = np.full((len(entries), most), -1, dtype=np.int64)
    masses = np.zeros((len(entries), most))
    for row, entry in rows.items():
        k = len(entry["token_positions"])
        logits = np.array(entry["topk_logits"], dtype=np.float64)
        query[row] = entry["query_position"]
        positions[row, :k] = entry["token_positions"]
        masses[row, :k] = np.exp(np.minimum(logits - entry["logsumexp_candidates"], 0.0))
    return Links(query, positions, masses)


class Updated(Protocol):
    """A detector, or what gives several numbers [n, m] of each token."""

    def start(self) -> Any: ...
    def update(self, states: Sequence[Any], seen: Observations) -> Floats: ...


def replay(detector: Updated, answer: Observations) -> Floats:
    """What `update` gives for each token [T, ...] of an answer [T tokens] that was captured before."""
    state = detector.start()
    rows = [detector.update([state], answer.take(np.array([at]))) for at in range(len(answer))]
    return np.concatenate(rows) if rows else np.zeros(0)
