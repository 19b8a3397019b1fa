"""One answer's entries (docs/wire.md) as arrays, a row for each generated token; nan where there is no number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomcli.detectors.observations import HEAD_SCALARS
from geomcli.detectors.received import STRONGEST, TOP, Received
from geomcli.fingerprint import FINGERPRINT_SIZE
from geomcli.links import links_of

Floats32 = NDArray[np.float32]

LOGITS = ("logprob", "entropy_bits", "margin")
TOP_RECEIVED = TOP
TOP_LOGPROBS = 20


@dataclass(frozen=True)
class Recording:
    """fingerprint [T, 20]; drift, sink_mass [T]; logits [T, 3]: LOGITS; heads [T, L, 4, H]: HEAD_SCALARS, without rows
    where nobody asked; received [T, L, 2 TOP_RECEIVED]: of the positions that received most so far, c_i / s_i and
    c_i / s_i - p_ii, each descending, without rows where entries have no links.
    """

    fingerprint: Floats32
    drift: Floats32
    sink_mass: Floats32
    logits: Floats32
    heads: Floats32
    received: Floats32

    def __len__(self) -> int:
        return len(self.fingerprint)

    def arrays(self) -> dict[str, Floats32]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def recording_of(
    entries: Sequence[Mapping[str, Any]],
    layers: Sequence[int],
    heads: int,
    logprobs: Sequence[Mapping[str, Any]] = (),
    *,
    linked: bool = False,
) -> Recording:
    """layers, heads: as captured; logprobs: OpenAI's, one a token, where entries have no `logit_stats`; linked: entries
    are raw.
    """
    rows = [entry for entry in entries if "capture_stopped" not in entry.get("flags", ())]
    nothing = [math.nan] * FINGERPRINT_SIZE
    fingerprint = np.array([entry.get("fingerprint") or nothing for entry in rows], dtype=np.float32)
    return Recording(
        fingerprint=fingerprint.reshape(-1, FINGERPRINT_SIZE),
        drift=_column(rows, "drift"),
        sink_mass=_column(rows, "sink_mass"),
        logits=_logits(rows, logprobs),
        heads=_heads(rows, layers, heads),
        received=_received(rows, layers) if linked else np.zeros((0, len(layers), 2 * TOP_RECEIVED), np.float32),
    )


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> Floats32:
    return np.array([_number(entry.get(name)) for entry in rows], dtype=np.float32)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _logits(rows: Sequence[Mapping[str, Any]], logprobs: Sequence[Mapping[str, Any]]) -> Floats32:
    made = np.full((len(rows), len(LOGITS)), np.nan, dtype=np.float32)
    for at, entry in enumerate(rows):
        stats = entry.get("logit_stats")
        if stats:
            made[at] = [_number(stats.get(name)) for name in LOGITS]
        elif at < len(logprobs):
            made[at] = of_logprobs(logprobs[at])
    return made


def of_logprobs(token: Mapping[str, Any]) -> tuple[float, float, float]:
    """LOGITS of OpenAI's object of one token. The entropy is of the listed tokens and of all others as one, a lower
    bound; the margin of two logits is that of their log-probabilities.
    """
    listed = sorted((_number(one.get("logprob")) for one in token.get("top_logprobs") or ()), reverse=True)
    own = _number(token.get("logprob"))
    if not listed:
        return own, math.nan, math.nan
    p = np.exp(np.array(listed))
    rest = max(0.0, 1.0 - float(p.sum()))
    parts = np.append(p, rest)
    parts = parts[parts > 0]
    entropy = float(-(parts * np.log2(parts)).sum())
    return own, max(entropy, 0.0), listed[0] - listed[1] if len(listed) > 1 else math.nan


def _heads(rows: Sequence[Mapping[str, Any]], layers: Sequence[int], heads: int) -> Floats32:
    if not any(entry.get("head_stats") for entry in rows):
        return np.zeros((0, len(layers), len(HEAD_SCALARS), heads), dtype=np.float32)
    made = np.full((len(rows), len(layers), len(HEAD_SCALARS), heads), np.nan, dtype=np.float32)
    for at, entry in enumerate(rows):
        stats = entry.get("head_stats") or {}
        for place, layer in enumerate(layers):
            of_layer = stats.get(str(layer)) or {}
            for scalar, name in enumerate(HEAD_SCALARS):
                values = of_layer.get(name) or []
                if len(values) == heads:
                    made[at, place, scalar] = [_number(value) for value in values]
    return made


def _received(rows: Sequence[Mapping[str, Any]], layers: Sequence[int]) -> Floats32:
    """What the detector `received` sees, for each layer (geomcli/detectors/received.py)."""
    made = np.full((len(rows), len(layers), 2 * TOP_RECEIVED), np.nan, dtype=np.float32)
    for place, layer in enumerate(layers):
        state = Received()
        for at, entry in enumerate(rows):
            query = entry.get("query_position")
            if query is None and entry.get("prompt_len") is not None:
                query = entry["prompt_len"] + entry.get("decode_step", 1) - 2
            found = links_of({"attention": entry, "layer_id": entry.get("layer_id")}, layer)[:STRONGEST]
            if found and query is not None:
                state.take(query, [link.position for link in found], [link.probability for link in found])
                made[at, place] = state.largest(TOP_RECEIVED)
    return made
