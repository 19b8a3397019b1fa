"""Entries of docs/wire.md from the numbers of one step. Pure: arrays in, plain dicts out, all rows in one pass.

Probabilities and masses carry 6 significant digits, logits 6 decimals: an absolute error of a logit is a relative
error of its probability, so significant digits would not be enough for logits above 10.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomcli.fingerprint import (
    FINGERPRINT_BYTES,
    fingerprints_from_histograms,
    mean_histogram,
    round_significant,
    rounded,
)
from geomcli.kernels.records import HEAD_STATISTICS
from geomcli.schema import SCHEMA_VERSION
from geomcli.server_patch.answers import trackers
from geomcli.server_patch.request_options import CaptureOptions
from geomcli.server_patch.step_numbers import CapturedToken, StepNumbers
from geomcli.server_patch.values import LOGIT_STATISTICS
from geomcli.zones import ZONES_V1, classify_many

_TINY = 1e-37  # log of a probability that underflowed
_BYTES_PER_LINK = 8  # int32 position, float32 probability


def build_entries(
    contexts: Sequence[Mapping[str, Any]], due: Sequence[CapturedToken], numbers: StepNumbers
) -> list[dict[str, Any]]:
    """The entry of each due token; compass and ripple of its request move by one step."""
    if not due:
        return []
    sound = np.flatnonzero(~numbers.failed).tolist()
    weights = numbers.heads * numbers.wanted
    histogram, fingerprint, published = published_fingerprints(numbers)
    profile = numbers.mean_profiles()
    sink = np.where(numbers.wanted, numbers.sink_mass * weights, 0).sum(axis=0) / np.maximum(weights.sum(axis=0), 1)
    drift, ripple = np.full(len(due), np.nan), np.full(len(due), np.nan)
    drift[sound], ripple[sound] = trackers.update(
        [due[i].answer.tracker for i in sound], histogram[sound], profile[sound]
    )
    zones = classify_many(fingerprint, ripple)
    shown = {"fingerprint": published, "sink": rounded(sink)}
    shown |= {"drift": rounded(drift), "ripple": rounded(ripple), "confidence": rounded([c for _, c in zones])}
    empty = (histogram.sum(axis=1) == 0).tolist()
    kept = np.where(numbers.wanted, numbers.kept, 0).max(axis=0)
    of_layers = _Layers(numbers, due)
    entries: list[dict[str, Any]] = []
    for i, (context, one) in enumerate(zip(contexts, due, strict=True)):
        options, compass = one.options, one.answer.compass
        if numbers.failed[i]:
            entries.append(error_entry(context, options))
            continue
        if not np.isnan(drift[i]):
            compass.judge(float(drift[i]))
        entry = {
            **context,
            "mode": options.mode,
            **_common(options),
            "flags": [*_flags(options, one.token.query_position, empty=empty[i]), *one.token.flags],
            "fingerprint": shown["fingerprint"][i],
            "manifold": zones[i][0],
            "zone": zones[i][0],
            "zone_confidence": shown["confidence"][i],
            "sink_mass": shown["sink"][i],
            "drift": None if np.isnan(drift[i]) else shown["drift"][i],
            "compass": compass.status,
            "ripple": None if np.isnan(ripple[i]) else shown["ripple"][i],
        }
        if options.guard is not None:
            entry["firewall"] = _firewall(one)
        if options.auto_sampling:
            entry["sampling"] = _sampling(one)
        if options.logit_stats:
            entry["logit_stats"] = _logits(one)
        if options.retention is not None:
            entry["kv"] = _held(one, int(kept[i]))
        of_layers.add_to(entry, i, one)
        if options.moe_layers:
            entry["moe"] = _routing(one)
            entry["bytes"] += 0 if one.token.routing is None else one.token.routing.nbytes
        entries.append(entry)
    return entries


def published_fingerprints(
    numbers: StepNumbers,
) -> tuple[NDArray[np.float64], NDArray[np.float32], list[list[float]]]:
    """Mean histograms [n, 16] of the wanted layers and heads, their fingerprints [n, 20], and the digits that leave."""
    histogram = mean_histogram(numbers.histogram, numbers.heads * numbers.wanted)
    fingerprint = fingerprints_from_histograms(histogram)
    return histogram, fingerprint, rounded(fingerprint)


def link_logits(
    probabilities: NDArray[np.float64], lse: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """lse [...] and logits [..., K] of links, with the digits that leave.

    The head-mean has no logit of its own: log p̄ + mean LSE is the one whose softmax over all keys is p̄.
    """
    shown = np.round(lse, 6)
    return shown, np.round(np.log(np.maximum(probabilities, _TINY)) + shown[..., None], 6)


def error_entry(context: Mapping[str, Any], options: CaptureOptions) -> dict[str, Any]:
    """The entry of a token whose capture failed: no number, the flag `error`."""
    return {**context, "mode": options.mode, **_common(options), "flags": ["error"], "bytes": 0}


def stopped_entry(context: Mapping[str, Any], options: CaptureOptions) -> dict[str, Any]:
    """The last entry of a request whose limit is reached: no number, the flag `capture_stopped`; text goes on."""
    return {**context, "mode": options.mode, **_common(options), "flags": ["capture_stopped"], "bytes": 0}


def _common(options: CaptureOptions) -> dict[str, Any]:
    total = options.heads_total
    return {
        "layer_id": options.primary_layer,
        "heads": {"seen": total if options.heads is None else len(options.heads), "total": total},
        "ruleset": ZONES_V1.name,
        "schema": SCHEMA_VERSION,
    }


def _flags(options: CaptureOptions, query_position: int, *, empty: bool) -> list[str]:
    first_in_window = query_position + 1 - options.window if options.window else 0
    flags = {
        "masked": options.mask_prefix > 0,
        "window": first_in_window > options.mask_prefix,
        "partial_heads": options.heads is not None and len(options.heads) < options.heads_total,
        "empty": empty,
    }
    return [name for name, raised in flags.items() if raised]


class _Layers:
    """What entries say of single layers, prepared for all rows at once, as far as any row's mode asks for it."""

    def __init__(self, numbers: StepNumbers, due: Sequence[CapturedToken]) -> None:
        self._numbers = numbers
        self._wanted = [np.flatnonzero(column).tolist() for column in numbers.wanted.T]
        modes = {one.options.mode for one in due}
        several = any(len(layers) > 1 for layers in self._wanted)
        self._fingerprints: Any = None
        if several and modes & {"raw", "fingerprint"}:
            self._fingerprints = rounded(fingerprints_from_histograms(numbers.histogram))
        self._links = numbers.links.tolist()
        if modes & {"raw", "sketch"}:
            self._prepare_links(numbers)
        if "sketch" in modes:
            self._histograms = rounded(numbers.histogram.astype(np.float32))

    def _prepare_links(self, numbers: StepNumbers) -> None:
        there = np.arange(numbers.positions.shape[-1]) < numbers.links[..., None]
        p: NDArray[np.float64] = np.where(there, numbers.probabilities, 0.0)
        mass = p.sum(axis=-1)
        lse, logits = link_logits(p, numbers.lse)
        self._lse = lse.tolist()
        self._mass = rounded(mass)
        self._logits = logits.tolist()
        self._scores = rounded(np.divide(p, mass[..., None], out=np.zeros_like(p), where=mass[..., None] > 0))
        self._probabilities = rounded(p)
        self._positions = numbers.positions.tolist()
        self._entropy = rounded(numbers.entropy_bits)
        self._sink = rounded(numbers.sink_mass)

    def add_to(self, entry: dict[str, Any], row: int, due: CapturedToken) -> None:
        """The mode's own fields and the bytes that left the device for this entry."""
        options, wanted, layers = due.options, self._wanted[row], self._numbers.layers
        size = FINGERPRINT_BYTES
        if options.mode == "fingerprint":
            if len(wanted) > 1:
                entry["layers"] = {str(layers[at]): {"fingerprint": self._fingerprints[at][row]} for at in wanted}
                size += FINGERPRINT_BYTES * (len(wanted) - 1)
        else:
            size += sum(_BYTES_PER_LINK * self._links[at][row] + 12 for at in wanted)
            if options.mode == "sketch":
                entry["layer_sketches"] = {str(layers[at]): self._sketch(at, row) for at in wanted}
            else:
                entry.update(self._raw(wanted[-1], row))
                if len(wanted) > 1:
                    entry["layers"] = {str(layers[at]): self._raw_layer(at, row) for at in wanted}
                if options.derotate:
                    size += _derotate(entry, due, [self._links[at][row] for at in wanted])
        if options.head_stats:
            entry["head_stats"] = _head_statistics(due)
            size += sum(16 * int(self._numbers.heads[at, row]) for at in wanted)
        if due.token.logits is not None:
            size += due.token.logits.nbytes
        entry["bytes"] = size

    def _raw(self, at: int, row: int) -> dict[str, Any]:
        k = self._links[at][row]
        return {
            "token_positions": self._positions[at][row][:k],
            "attention_scores": self._scores[at][row][:k] if self._mass[at][row] > 0 else [],
            "topk_logits": self._logits[at][row][:k],
            "logsumexp_candidates": self._lse[at][row],
            "topk_mass": self._mass[at][row],
            "entropy_bits": self._entropy[at][row],
        }

    def _raw_layer(self, at: int, row: int) -> dict[str, Any]:
        return {
            **self._raw(at, row),
            "sink_mass": self._sink[at][row],
            "fingerprint": self._fingerprints[at][row],
        }

    def _sketch(self, at: int, row: int) -> dict[str, Any]:
        k = self._links[at][row]
        hubs = zip(self._positions[at][row][:k], self._probabilities[at][row][:k], strict=True)
        return {
            "top_hubs": [list(hub) for hub in hubs],
            "dist_hist": self._histograms[at][row],
            "entropy": self._entropy[at][row],
            "mass_captured": self._mass[at][row],
            "sink_mass": self._sink[at][row],
        }


def _firewall(due: CapturedToken) -> dict[str, Any] | None:
    """What the scheduler decided; None where it could not judge."""
    judged, guard = due.token.judged, due.options.guard
    if judged is None or guard is None:
        return None
    status, score, halted = judged
    shown = None if score is None else round_significant(score)
    return {
        "detector": guard.detector, "action": guard.action, "calibrated": guard.calibrated, "status": status,
        "score": shown, "halted": halted,
    }  # fmt: skip


def _logits(due: CapturedToken) -> dict[str, float] | None:
    """How sure the model was; None where that is not known."""
    found = due.token.logits
    if found is None or not np.isfinite(found).all():
        return None
    return dict(zip(LOGIT_STATISTICS, np.round(found.astype(np.float64), 6).tolist(), strict=True))


def _sampling(due: CapturedToken) -> dict[str, Any] | None:
    """What the token was sampled with; None where that is not known."""
    if due.token.sampled is None:
        return None
    zone, temperature, top_p = due.token.sampled
    return {"zone": zone, "temperature": round_significant(temperature), "top_p": round_significant(top_p)}


def _held(due: CapturedToken, kept: int) -> dict[str, Any]:
    """How many tokens of the text the step attended to, how many had left before it, and which."""
    length = due.token.query_position + 1
    made = {"kept": kept, "freed": length - kept, "share": float(f"{kept / length:.6g}")}
    return made | due.answer.presence.tell(length, kept) if due.options.names_kept else made


def _derotate(entry: dict[str, Any], due: CapturedToken, links: Sequence[int]) -> int:
    """Add the scores of the links of each wanted layer; the bytes that they came in."""
    scores = due.derotated
    assert scores is not None  # else the token has failed
    for of_layer, count, layer in zip(np.round(scores.astype(np.float64), 6), links, due.options.layers, strict=True):
        content, position = of_layer[:, :count].tolist()
        # The last layer's are the entry's own.
        entry["derotated"] = made = {"content": content, "position": position}
        if len(links) > 1:
            entry["layers"][str(layer)]["derotated"] = made
    return _BYTES_PER_LINK * sum(links)


def _routing(due: CapturedToken) -> dict[str, dict[str, list[Any]]] | None:
    """Experts and weights by layer, the heaviest first; None where the token came without them."""
    words = due.token.routing
    if words is None:
        return None
    layers = due.options.moe_layers
    weights = words[:, 1].copy().view(np.float32)
    order = np.argsort(-weights, axis=1, kind="stable")
    experts = np.take_along_axis(words[:, 0], order, axis=1).tolist()
    pairs = zip(layers, experts, rounded(np.take_along_axis(weights, order, axis=1)), strict=True)
    return {str(layer): {"experts": of_layer, "weights": shares} for layer, of_layer, shares in pairs}


def _head_statistics(due: CapturedToken) -> dict[str, dict[str, list[float]]]:
    """By layer; empty where the token came without them."""
    every = due.token.heads
    if every is None:
        return {}
    layers = due.options.layers
    return {
        str(layer): {name: rounded(values) for name, values in zip(HEAD_STATISTICS, of_layer, strict=True)}
        for layer, of_layer in zip(layers, every, strict=True)
    }
