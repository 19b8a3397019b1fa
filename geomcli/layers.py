"""What each captured layer of a step is like: fingerprint, zone, sinks; what its single heads do; and how sure the
model was of the step's token.

Reads the step records of traces that come from files and servers: what cannot be read is left out, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from geomcli.fingerprint import FINGERPRINT_SIZE, N_BINS, fingerprint_from_histogram
from geomcli.links import layers_named, layers_of
from geomcli.measured import measured
from geomcli.schema import has_numbers
from geomcli.zones import ZoneDecision, classify


class LayerView(msgspec.Struct, frozen=True):
    """One row of the layers' map.

    layer: the id, None where the fingerprint is the request's and it is not said which layers made it.
    fingerprint: [20], None where the layer has no histogram. decision: its zone, without the ripple, which belongs to
    the request. sink_mass: share of the first positions. entropy_bits: over positions, mean of the heads.
    """

    layer: int | None
    fingerprint: NDArray[np.float64] | None
    sink_mass: float | None = None
    entropy_bits: float | None = None

    @property
    def histogram(self) -> NDArray[np.float64] | None:
        """[16], mass by log distance, sum 1."""
        return None if self.fingerprint is None else self.fingerprint[FINGERPRINT_SIZE - N_BINS :]

    @property
    def decision(self) -> ZoneDecision | None:
        return None if self.fingerprint is None else classify(self.fingerprint)


class HeadStats(msgspec.Struct, frozen=True):
    """Statistics of a layer's captured heads, one value for each: entropy (bits), sink mass, mass of the token before,
    lookback ratio.
    """

    entropy: list[float] = []
    sink: list[float] = []
    prev: list[float] = []
    lookback: list[float] = []


class LogitStats(msgspec.Struct, frozen=True):
    """How sure the model was of a token before sampling: ln of its probability, entropy of the distribution in bits,
    the two largest logits apart.
    """

    logprob: float
    entropy_bits: float
    margin: float


class _Layer(msgspec.Struct):
    fingerprint: list[float] | None = None
    dist_hist: list[float] | None = None
    sink_mass: float | None = None
    entropy_bits: float | None = None
    entropy: float | None = None


def layer_views(step: Mapping[str, Any]) -> list[LayerView]:
    """The captured layers of a step, ascending; empty where the step has no numbers.

    Several layers have a histogram each; one captured layer has the step's own.
    """
    if not has_numbers(step):  # type: ignore[arg-type]
        return []
    if named := layers_named(step):
        return [_view(layer, named.get(str(layer))) for layer in layers_of(step)]
    return [_request_view(step, step.get("layer_id"))]


def request_view(step: Mapping[str, Any]) -> LayerView | None:
    """The request's fingerprint: the head-weighted mean of the captured layers; None without numbers."""
    return _request_view(step, None) if has_numbers(step) else None  # type: ignore[arg-type]


def head_stats(step: Mapping[str, Any], layer: int | None = None) -> HeadStats | None:
    """Statistics of the heads of a layer (the step's own if left out); None where the step has none."""
    found = (step.get("attention") or {}).get("head_stats") or {}
    wanted = step.get("layer_id") if layer is None else layer
    try:
        stats = msgspec.convert(found.get(str(wanted)), HeadStats | None)
    except (msgspec.ValidationError, AttributeError):
        return None
    return stats if stats is not None and stats.entropy else None


def logit_stats(step: Mapping[str, Any]) -> LogitStats | None:
    """The step's own; None where it has none."""
    try:
        return msgspec.convert(step.get("logit_stats"), LogitStats | None)
    except msgspec.ValidationError:
        return None


def _request_view(step: Mapping[str, Any], layer: int | None) -> LayerView:
    fingerprint = measured(step["fingerprint"])
    right = fingerprint.shape == (FINGERPRINT_SIZE,) and not np.isnan(fingerprint).any()
    return LayerView(layer, fingerprint if right else None, step.get("sink_mass"), step.get("entropy_bits"))


def _view(layer: int, found: Any) -> LayerView:
    try:
        row = msgspec.convert(found, _Layer)
    except msgspec.ValidationError:
        return LayerView(layer, None)
    fingerprint: NDArray[np.float64] | None = None
    if row.fingerprint is not None and len(row.fingerprint) == FINGERPRINT_SIZE:
        fingerprint = measured(row.fingerprint)
    elif row.dist_hist is not None and len(row.dist_hist) == N_BINS:
        masses = measured(row.dist_hist)
        fingerprint = fingerprint_from_histogram(masses / (masses.sum() or 1.0)).astype(np.float64)
    if fingerprint is not None and (np.isnan(fingerprint).any() or not fingerprint[FINGERPRINT_SIZE - N_BINS :].any()):
        fingerprint = None
    return LayerView(layer, fingerprint, row.sink_mass, row.entropy_bits if row.entropy is None else row.entropy)
