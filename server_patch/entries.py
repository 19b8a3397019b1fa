"""Entries of docs/wire.md section 3 from the statistics of one output token. Pure: numbers in, a plain dict out.

Probabilities and masses carry 6 significant digits, logits 6 decimals: an absolute error of a logit is a relative
error of its probability, so significant digits would not be enough for logits above 10.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from geomcli.compass import PROFILE_SIZE
from geomcli.fingerprint import (
    FINGERPRINT_BYTES,
    fingerprint_from_histogram,
    mean_histogram,
    round_significant,
)
from geomcli.kernels.reference import HeadStatistics, RowStatistics
from geomcli.schema import SCHEMA_VERSION
from geomcli.server_patch.request_state import RequestState
from geomcli.zones import ZONES_V1, classify

_TINY = 1e-37  # log of a probability that underflowed
_BYTES_PER_LINK = 8  # int32 position, float32 probability


def build_entry(
    context: Mapping[str, Any], state: RequestState, statistics: Mapping[int, RowStatistics]
) -> dict[str, Any]:
    """The entry of one token. `statistics`: one row for every layer of the request's options; KeyError otherwise."""
    options = state.options
    rows = {layer: statistics[layer] for layer in options.layers}
    primary = rows[options.primary_layer]
    histograms = np.stack([row.histogram.cpu().numpy() for row in rows.values()])
    weights = np.array([row.heads for row in rows.values()])
    histogram = mean_histogram(histograms, weights)
    fingerprint = fingerprint_from_histogram(histogram)
    drift = state.compass.update(histogram)
    ripple = state.ripple.update(np.mean([_padded(row.profile) for row in rows.values()], axis=0))
    decision = classify(fingerprint, ripple)
    entry: dict[str, Any] = {
        **context,
        "mode": options.mode,
        **_common(state),
        "flags": _flags(state, context["query_position"], empty=histogram.sum() == 0, heads=primary.heads),
        "fingerprint": _floats(fingerprint),
        "manifold": decision.zone,
        "zone": decision.zone,
        "zone_confidence": round_significant(decision.confidence),
        "sink_mass": round_significant(float(np.average([r.sink_mass for r in rows.values()], weights=weights))),
        "drift": None if drift is None else round_significant(drift),
        "compass": state.compass.status,
        "ripple": None if ripple is None else round_significant(ripple),
    }
    size = FINGERPRINT_BYTES
    if options.mode == "raw":
        entry.update(_raw(primary))
        if len(rows) > 1:
            entry["layers"] = {str(layer): _raw_layer(row) for layer, row in rows.items()}
        size += sum(_BYTES_PER_LINK * len(row.positions) + 12 for row in rows.values())
    elif options.mode == "sketch":
        entry["layer_sketches"] = {str(layer): _sketch(row) for layer, row in rows.items()}
        size += sum(_BYTES_PER_LINK * len(row.positions) + 12 for row in rows.values())
    elif len(rows) > 1:
        entry["layers"] = {
            str(layer): {"fingerprint": _floats(fingerprint_from_histogram(row.histogram.cpu().numpy()))}
            for layer, row in rows.items()
        }
        size += FINGERPRINT_BYTES * (len(rows) - 1)
    if options.head_stats:
        entry["head_stats"] = {
            str(layer): _heads(row.head_statistics) for layer, row in rows.items() if row.head_statistics
        }
        size += sum(16 * row.heads for row in rows.values())
    entry["bytes"] = size
    return entry


def error_entry(context: Mapping[str, Any], state: RequestState) -> dict[str, Any]:
    """The entry of a token whose capture failed: no number, the flag `error`."""
    return {**context, "mode": state.options.mode, **_common(state), "flags": ["error"], "bytes": 0}


def stopped_entry(context: Mapping[str, Any], state: RequestState) -> dict[str, Any]:
    """The last entry of a request whose limit is reached: no number, the flag `capture_stopped`; text goes on."""
    return {**context, "mode": state.options.mode, **_common(state), "flags": ["capture_stopped"], "bytes": 0}


def _common(state: RequestState) -> dict[str, Any]:
    heads = state.options.heads
    total = state.options.heads_total
    return {
        "layer_id": state.options.primary_layer,
        "heads": {"seen": total if heads is None else len(heads), "total": total},
        "ruleset": ZONES_V1.name,
        "schema": SCHEMA_VERSION,
    }


def _flags(state: RequestState, query_position: int, *, empty: bool, heads: int) -> list[str]:
    options = state.options
    first_in_window = query_position + 1 - options.window if options.window else 0
    flags = {
        "masked": options.mask_prefix > 0,
        "window": first_in_window > options.mask_prefix,
        "partial_heads": heads < state.options.heads_total,
        "empty": empty,
    }
    return [name for name, raised in flags.items() if raised]


def _raw(row: RowStatistics) -> dict[str, Any]:
    probabilities = row.probabilities.double().cpu().numpy()
    mass = float(probabilities.sum())
    # The head-mean has no logit of its own: log p̄ + mean LSE is the one whose softmax over all keys is p̄.
    lse = round(row.lse, 6)
    return {
        "token_positions": row.positions.tolist(),
        "attention_scores": _floats(probabilities / mass) if mass > 0 else [],
        "topk_logits": [round(math.log(max(p, _TINY)) + lse, 6) for p in probabilities.tolist()],
        "logsumexp_candidates": lse,
        "topk_mass": round_significant(mass),
        "entropy_bits": round_significant(row.entropy_bits),
    }


def _raw_layer(row: RowStatistics) -> dict[str, Any]:
    return {
        **_raw(row),
        "sink_mass": round_significant(row.sink_mass),
        "fingerprint": _floats(fingerprint_from_histogram(row.histogram.cpu().numpy())),
    }


def _sketch(row: RowStatistics) -> dict[str, Any]:
    probabilities = row.probabilities.tolist()
    hubs = [[n, round_significant(p)] for n, p in zip(row.positions.tolist(), probabilities, strict=True)]
    return {
        "top_hubs": hubs,
        "dist_hist": _floats(row.histogram.cpu().numpy()),
        "entropy": round_significant(row.entropy_bits),
        "mass_captured": round_significant(sum(probabilities)),
        "sink_mass": round_significant(row.sink_mass),
    }


def _heads(statistics: HeadStatistics) -> dict[str, list[float]]:
    return {name: _floats(getattr(statistics, name).cpu().numpy()) for name in ("entropy", "sink", "prev", "lookback")}


def _floats(values: Any) -> list[float]:
    return [round_significant(v) for v in np.asarray(values).tolist()]


def _padded(profile: Any) -> np.ndarray[Any, Any]:
    row = np.zeros(PROFILE_SIZE)
    values = profile.cpu().numpy()
    row[: values.shape[0]] = values
    return row
