"""The records of captured tokens as arrays, what entries are built from.

Records are stamped with request and length, and believed only where both fit the token that they came with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from geomcli.kernels import layout, records
from geomcli.server_patch import faults
from geomcli.server_patch.answers import Answer
from geomcli.server_patch.request_options import CaptureOptions
from geomcli.server_patch.values import Token


class Due(Protocol):
    """A captured token, and what its request asked for."""

    @property
    def options(self) -> CaptureOptions: ...
    @property
    def token(self) -> Token: ...
    @property
    def derotated(self) -> NDArray[np.float32] | None: ...


class CapturedToken(NamedTuple):
    """One captured token and the answer that it belongs to."""

    answer: Answer
    token: Token

    @property
    def options(self) -> CaptureOptions:
        return self.answer.options

    @property
    def derotated(self) -> NDArray[np.float32] | None:
        """[wanted layers, 2, top_k]: content and position of each link; None where they are missing or not finite."""
        found = self.token.derotated
        return found if found is not None and np.isfinite(found).all() else None


@dataclass
class StepNumbers:
    """Statistics [L layers, n tokens, …]; a token that `failed` has none that may be published."""

    layers: tuple[int, ...]
    wanted: NDArray[np.bool_]  # [L, n]: the layer is one of the request's options
    failed: NDArray[np.bool_]  # [n]
    kept: NDArray[np.int64]  # [L, n]: keys that are there
    heads: NDArray[np.int64]  # [L, n]: averaged over
    lse: NDArray[np.float64]
    entropy_bits: NDArray[np.float64]
    sink_mass: NDArray[np.float64]
    histogram: NDArray[np.float64]  # [L, n, 16]: sums to 1 or is zero
    links: NDArray[np.int64]  # [L, n]: how many there are
    positions: NDArray[np.int64]  # [L, n, K]
    probabilities: NDArray[np.float64]  # [L, n, K]
    profile: NDArray[np.float32]  # [L, n, 256]

    def mean_profiles(self) -> NDArray[np.float32]:
        """[n, 256]: means over the layers that a request wants."""
        layers = np.maximum(self.wanted.sum(axis=0), 1)
        made: NDArray[np.float32] = np.where(self.wanted[..., None], self.profile, 0).sum(axis=0) / layers[:, None]
        return made

    def check(self) -> None:
        """Mark tokens with a number that is not finite as failed."""
        sums = self.lse + self.entropy_bits + self.sink_mass + self.histogram.sum(axis=-1)
        self.failed |= (~np.isfinite(sums) & self.wanted).any(axis=0)


def numbers_of(due: Sequence[Due], layers: tuple[int, ...]) -> StepNumbers:
    """Of the records that were written for exactly these tokens; the others' have failed."""
    wanted = _wanted_by(due, layers)
    found = _words(due, len(layers))
    stamps = np.array([one.token.stamp for one in due])
    lengths = np.array([one.token.query_position + 1 for one in due])
    heads = np.array([_heads_due(one.options) for one in due])
    fits = (found[..., layout.R_STAMP] == stamps) & (found[..., layout.R_LENGTH] == lengths)
    fits &= found[..., layout.R_HEADS] == heads
    if not (believed := wanted & fits).all():
        found = np.where(believed[..., None], found, 0)
    made = StepNumbers(
        layers=layers,
        wanted=wanted,
        failed=(wanted & ~fits).any(axis=0) | np.array([one.options.derotate and one.derotated is None for one in due]),
        **records.decode(_cut(found, due))._asdict(),
    )
    made.check()
    if made.failed.any():
        faults.note("a step has records that do not fit their tokens (stamp or value)")
    return made


def _cut(found: NDArray[np.int32], due: Sequence[Due]) -> NDArray[np.int32]:
    """Without the links that were captured beyond those that a request asked for."""
    if all(one.options.links <= one.options.top_k for one in due):
        return found
    made = found.copy()
    made[..., layout.R_LINKS] = np.minimum(made[..., layout.R_LINKS], [one.options.top_k for one in due])
    return made


def _words(due: Sequence[Due], n_layers: int) -> NDArray[np.int32]:
    """Their records [L, n, words], those that were cut filled up."""
    every = [one.token.records for one in due]
    words = max((found.shape[-1] for found in every if found is not None), default=0)
    if all(found is not None and found.shape[-1] == words for found in every):
        return np.stack(every, axis=1)  # type: ignore[arg-type]
    made = np.zeros((n_layers, len(due), words), dtype=np.int32)
    for n, found in enumerate(every):
        if found is not None:
            made[:, n, : found.shape[-1]] = found
    return made


def _wanted_by(due: Sequence[Due], layers: tuple[int, ...]) -> NDArray[np.bool_]:
    """[L, n]; KeyError for a token that wants a layer that is not captured."""
    wanted = np.zeros((len(layers), len(due)), dtype=np.bool_)
    place = {layer: i for i, layer in enumerate(layers)}
    for n, one in enumerate(due):
        for layer in one.options.layers:
            wanted[place[layer], n] = True
    return wanted


def _heads_due(options: CaptureOptions) -> int:
    return options.heads_total if options.heads is None else len(options.heads)
