"""Scheduler process: the zones of an answer's tokens choose what its next ones are sampled with.

A choice is put into each step's own copy of SGLang's sampling values, so a batch that is merged, filtered or retracted
carries nothing of it. Without overlap it holds from the next token on; with overlap the next step has been launched
before a token is looked at, and it holds from the one after.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from geomcli.server_patch import faults
from geomcli.server_patch.observed import Observed
from geomcli.trackers import Trackers
from geomcli.zone_sampling import Chosen, ZoneSampler
from geomcli.zones import classify_many

_GREEDY = 1  # top_k of a request that asked for temperature 0, whose temperature SGLang then takes for 1

_trackers = Trackers()


class Steered:
    """What one request's next tokens are sampled with, and its place among the trackers."""

    def __init__(self) -> None:
        self.sampler = ZoneSampler()
        self.slot = _trackers.open()

    def __del__(self) -> None:
        _trackers.close(self.slot)


class Sampled(NamedTuple):
    """What a row of a step is sampled with; travels with the step. temperature: 0 where it is greedy."""

    row: int
    zone: str
    temperature: float
    top_p: float


class _Values(NamedTuple):
    temperature: float
    top_p: float
    top_k: int


def take(observed: Observed) -> None:
    """The tokens that SGLang is about to take in, those of steered answers."""
    places = [n for n in observed.sound if observed.rows[n].state.steered is not None]
    if not places:
        return
    steered = [observed.rows[n].state.steered for n in places]
    profiles = observed.numbers.mean_profiles()[places]
    moved = _trackers.update([one.slot for one in steered], observed.histograms[places], profiles)
    zones = classify_many(observed.fingerprints[places], moved.ripple)
    for one, (zone, _) in zip(steered, zones, strict=True):
        one.sampler.update(zone)


def apply(forward_batch: Any, requests: Sequence[Any], steered: Sequence[tuple[int, Steered]]) -> tuple[Sampled, ...]:
    """Give the rows (row, its request's) of a step that is being made their values; what each is sampled with.

    A fault leaves all rows their own.
    """
    info = getattr(forward_batch, "sampling_info", None)
    if info is None or not steered:
        return ()
    values = [_own(request) for request in requests]
    chosen = {row: one.sampler.chosen for row, one in steered}
    changed = False
    for row, choice in chosen.items():
        wanted = _chosen(choice, values[row])
        changed |= wanted != values[row]
        values[row] = wanted
    if changed:
        try:
            forward_batch.sampling_info = _with(info, values)
        except Exception:
            faults.report("a step could not be sampled by zone; its rows keep their own values")
            return ()
    return tuple(
        Sampled(row, choice.zone, 0.0 if values[row].top_k == _GREEDY else values[row].temperature, values[row].top_p)
        for row, choice in chosen.items()
    )


def _own(request: Any) -> _Values:
    params = request.sampling_params
    return _Values(float(params.temperature), float(params.top_p), int(params.top_k))


def _chosen(choice: Chosen, own: _Values) -> _Values:
    from sglang.srt.sampling.sampling_params import TOP_K_ALL

    if choice.temperature is None or choice.top_p is None:
        return own
    return _Values(choice.temperature, choice.top_p, TOP_K_ALL if own.top_k <= _GREEDY else own.top_k)


def _with(info: Any, values: Sequence[_Values]) -> Any:
    """A copy of SGLang's sampling values of a batch with those of its rows; the batch's own stay."""
    from sglang.srt.sampling.sampling_params import TOP_K_ALL

    made = copy.copy(info)
    device = info.temperatures.device
    pinned = device.type == "cuda"
    floats = torch.tensor([[v.temperature for v in values], [v.top_p for v in values]], dtype=torch.float32)
    top_ks = torch.tensor([v.top_k for v in values], dtype=info.top_ks.dtype)
    if pinned:
        floats, top_ks = floats.pin_memory(), top_ks.pin_memory()
    floats = floats.to(device, non_blocking=True)
    made.temperatures, made.top_ps = floats[0].view(-1, 1), floats[1]
    made.top_ks = top_ks.to(device, non_blocking=True)
    greedy = [v.top_k <= _GREEDY for v in values]
    flags = {
        "is_all_greedy": all(greedy),
        "is_any_greedy": any(greedy),
        "need_top_p_sampling": any(v.top_p != 1.0 for v in values),
        "need_top_k_sampling": any(v.top_k != TOP_K_ALL for v in values),
    }
    for name, value in flags.items():
        if hasattr(info, name):
            setattr(made, name, value)
    return made
