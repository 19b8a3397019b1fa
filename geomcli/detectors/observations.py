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

HEADS, LOGITS = "heads", "logits"  # what a detector may need beyond the fingerprint
HEAD_SCALARS = ("entropy", "sink", "prev", "lookback")


@dataclass(frozen=True)
class Observations:
    """fingerprint [n, 20] as published, zero where attention is empty, nan where it was not captured; logprob [n]: of
    the token, in nats, under the model's own distribution; logit_entropy [n]: of that distribution, in bits;
    margin [n]: between its two largest logits; nan where they were not captured. heads [n, layers, 4, H]: HEAD_SCALARS
    of each captured head, None where nobody asked.
    """

    fingerprint: Floats
    logprob: Floats
    logit_entropy: Floats
    margin: Floats
    heads: Floats | None = None

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


class Detector(Protocol[State]):
    """Scores of many answers at once; what an answer's score rests on is in its state.

    name: as it is chosen by; needs: of HEADS and LOGITS.
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
    """One entry (docs/wire.md) of each of n answers."""
    nothing = [np.nan] * FINGERPRINT_SIZE
    logits = [entry.get("logit_stats") or {} for entry in entries]
    logprob, entropy, margin = (
        np.array([one.get(name, np.nan) for one in logits], dtype=np.float64)
        for name in ("logprob", "entropy_bits", "margin")
    )
    fingerprints = np.array([entry.get("fingerprint") or nothing for entry in entries], dtype=np.float64)
    return Observations(fingerprints.reshape(-1, FINGERPRINT_SIZE), logprob, entropy, margin, _heads(entries))


def _heads(entries: Sequence[Mapping[str, Any]]) -> Floats | None:
    found = [entry.get("head_stats") for entry in entries]
    if not found or not all(found):
        return None
    rows = [
        [
            [of_layer[name] for name in HEAD_SCALARS]
            for _, of_layer in sorted(one.items(), key=lambda item: int(item[0]))
        ]
        for one in found
        if one is not None
    ]
    return np.array(rows, dtype=np.float64)
