"""Scheduler process: the tokens of a step that this process looks at itself, before SGLang takes them in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from geomcli.detectors.observations import HEADS, LINKS, LOGITS, Links, Observations
from geomcli.fingerprint import FINGERPRINT_SIZE, rounded_array
from geomcli.kernels import layout
from geomcli.kernels.records import decode
from geomcli.server_patch.entries import link_logits, published_fingerprints
from geomcli.server_patch.request_options import CaptureOptions
from geomcli.server_patch.scheduler_state import scheduler
from geomcli.server_patch.step_numbers import StepNumbers, numbers_of
from geomcli.server_patch.values import CAPTURED, LOGIT_STATISTICS, Token


class Row(NamedTuple):
    """One row of a step whose numbers are looked at: its place in the records, its request, that one's state."""

    at: int
    request: Any
    state: Any


class _Due(NamedTuple):
    """A step_numbers.Due."""

    options: CaptureOptions
    token: Token
    derotated: NDArray[np.float32] | None = None


HeadsOf = Callable[[Sequence[Row], Sequence[int]], "Sequence[NDArray[np.float32] | None]"]


class Observed:
    """Tokens [n] that come out of a step for `rows`, of those whose step was captured; `sound`: places of those whose
    numbers may be believed. heads: of rows and their numbers of keys the statistics [layers, 4, H] that their requests'
    entries would have; logits [rows, 3]: of LOGIT_STATISTICS.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        records: NDArray[np.int32],
        heads: HeadsOf = lambda rows, _lengths: [None] * len(rows),
        logits: NDArray[np.float32] | None = None,
    ) -> None:
        due = _tokens(rows, records) if rows else []
        self.rows = [row for row, _ in due]
        self.tokens = [token for _, token in due]
        self._heads, self._logits = heads, logits

    @cached_property
    def numbers(self) -> StepNumbers:
        asked = [_Due(_plain(row.state.options), token) for row, token in zip(self.rows, self.tokens, strict=True)]
        return numbers_of(asked, scheduler.layers)

    @cached_property
    def sound(self) -> list[int]:
        return np.flatnonzero(~self.numbers.failed).tolist() if self.rows else []

    @cached_property
    def _fingerprints(self) -> tuple[NDArray[np.float64], NDArray[np.float32], list[list[float]]]:
        return published_fingerprints(self.numbers)

    @property
    def histograms(self) -> NDArray[np.float64]:
        """[n, 16]: means over the layers and heads that a request wants."""
        return self._fingerprints[0]

    @property
    def fingerprints(self) -> NDArray[np.float32]:
        """[n, 20]"""
        return self._fingerprints[1]

    @property
    def published(self) -> NDArray[np.float64]:
        """[n, 20]: with the digits that leave the server."""
        return np.array(self._fingerprints[2], dtype=np.float64).reshape(-1, FINGERPRINT_SIZE)

    def seen(self, places: Sequence[int], needs: frozenset[str]) -> Observations:
        """What a detector sees of some of the tokens, with the digits of entries."""
        logits = np.full((len(places), len(LOGIT_STATISTICS)), np.nan)
        if LOGITS in needs and self._logits is not None:
            found = self._logits[[self.rows[n].at for n in places]].astype(np.float64)
            logits = np.round(np.where(np.isfinite(found).all(axis=1, keepdims=True), found, np.nan), 6)
        heads = None
        if HEADS in needs:
            keys = [self.tokens[n].query_position + 1 for n in places]
            every = self._heads([self.rows[n] for n in places], keys)
            shape = next((one.shape for one in every if one is not None), None)
            if shape is not None:
                filled = [np.full(shape, np.nan) if one is None else one for one in every]
                heads = rounded_array(np.array(filled, dtype=np.float32))
        links = self._links(places) if LINKS in needs else None
        return Observations(self.published[list(places)], logits[:, 0], logits[:, 1], logits[:, 2], heads, links)

    def _links(self, places: Sequence[int]) -> Links:
        """Of the last layer that a request wants: those that its entries have, and more where it asks for few."""
        tokens = [self.tokens[n] for n in places]
        primary = [scheduler.layers.index(self.rows[n].state.options.primary_layer) for n in places]
        found = decode(np.stack([token.records[at] for token, at in zip(tokens, primary, strict=True)])[None])  # type: ignore[index]
        there = np.arange(found.positions.shape[-1]) < found.links[0, :, None]
        lse, logits = link_logits(np.where(there, found.probabilities[0], 0.0), found.lse[0])
        return Links(
            np.where(there.any(axis=1), [token.query_position for token in tokens], -1),
            np.where(there, found.positions[0], -1),
            np.where(there, np.exp(np.minimum(logits - lse[:, None], 0.0)), 0.0),
        )


def _tokens(rows: Sequence[Row], records: NDArray[np.int32]) -> list[tuple[Row, Token]]:
    stamps, lengths = (records[..., word].T.tolist() for word in (layout.R_STAMP, layout.R_LENGTH))
    made = []
    for row in rows:
        request, state, at = row.request, row.state, row.at
        if at >= len(stamps) or request.finished() or getattr(request, "is_retracted", False):
            continue
        prompt = len(request.origin_input_ids)
        length = prompt + len(request.output_ids)
        places = [scheduler.layers.index(layer) for layer in state.options.layers]
        if all(stamps[at][place] == state.stamp and lengths[at][place] == length for place in places):
            token = Token(length - prompt + 1, 0, CAPTURED, state.stamp, prompt, (), records[:, at])
            made.append((row, token))
    return made


def _plain(options: CaptureOptions) -> CaptureOptions:
    """Without the de-rotated view, which is no part of what is looked at."""
    return msgspec.structs.replace(options, derotate=False) if options.derotate else options
