"""Collected answers as arrays: labels, groups, and the numbers of all their tokens, one answer behind the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomcli.detectors.observations import Observations, Updated
from geomcli.errors import GeomError
from geomcli.evaluation.folder import Answer, Folder
from geomcli.evaluation.items import Item
from geomcli.evaluation.labels import RIGHT, WRONG, Label, label, onset_token
from geomcli.evaluation.recording import Recording

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Dataset:
    """n answers with T tokens in all; the tokens of answer i are starts[i] .. starts[i + 1] - 1.

    outcome, kind, domain, group [n]; committed [n]; temperature [n]; onset [n]: of the first token of a wrong answer
    that contradicts the right one, -1 where it is not known; logits [T, 3], fingerprint [T, 20], drift, sink_mass [T],
    heads [T, L, 4, H] and received [T, L, K] (recording.py), None where they were not captured; why [n]: of off-form.
    """

    outcome: NDArray[np.str_]
    kind: NDArray[np.str_]
    domain: NDArray[np.str_]
    group: NDArray[np.str_]
    committed: Bools
    temperature: Floats
    onset: Ints
    question: tuple[str, ...]
    text: tuple[str, ...]
    starts: Ints
    logits: Floats
    fingerprint: Floats
    drift: Floats
    sink_mass: Floats
    heads: Floats | None
    received: Floats | None
    layers: tuple[int, ...]
    why: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.outcome)

    @property
    def length(self) -> Ints:
        """[n] tokens"""
        return np.diff(self.starts)

    @property
    def wrong(self) -> Bools:
        """[n]; off-form answers and refusals count as wrong, where they are looked at."""
        made: Bools = self.outcome != RIGHT
        return made

    @property
    def stated(self) -> Bools:
        """[n] right or wrong: what the detectors learn from."""
        return np.isin(self.outcome, (RIGHT, WRONG))

    @property
    def tokens(self) -> Observations:
        """What a detector sees of all tokens; without links."""
        logprob, entropy, margin = self.logits.T
        return Observations(self.fingerprint, logprob, entropy, margin, self.heads)

    def seen(self, answer: int) -> Observations:
        """What it sees of this answer's."""
        return self.tokens.take(np.arange(self.starts[answer], self.starts[answer + 1]))

    def replayed(self, detector: Updated) -> Floats:
        """[T, ...]: what a detector's `update` gives for each token. All answers side by side, as in a server: one by
        one takes many times as long.
        """
        states, tokens = [detector.start() for _ in range(len(self))], self.tokens
        made = np.zeros(0)
        for step in range(int(self.length.max(initial=0))):
            going = np.flatnonzero(self.length > step)
            rows = self.starts[going] + step
            values = detector.update([states[answer] for answer in going.tolist()], tokens.take(rows))
            if not step:
                made = np.full((len(self.drift), *values.shape[1:]), np.nan)
            made[rows] = values
        return made


def load(folder: Folder) -> Dataset:
    """Every answer that has tokens, labelled; GeomError where there is none."""
    items = folder.items()
    kept = [(answer, recording) for answer, recording in folder.recordings() if len(recording)]
    if not kept:
        raise GeomError(f"{folder.path} has no answer with captured tokens.", "geom eval detect collect first")
    labels = [label(items[answer.item], answer.text, answer.finish_reason) for answer, _ in kept]
    return made(kept, labels, items, folder.header.layers)


def made(
    kept: Sequence[tuple[Answer, Recording]], labels: Sequence[Label], items: dict[str, Item], layers: Sequence[int]
) -> Dataset:
    own = [items[answer.item] for answer, _ in kept]
    recordings = [recording for _, recording in kept]
    onsets = [
        onset_token(each.onset, answer.tokens, answer.text) for each, (answer, _) in zip(labels, kept, strict=True)
    ]
    return Dataset(
        outcome=np.array([each.outcome for each in labels]),
        kind=np.array([item.kind for item in own]),
        domain=np.array([item.domain for item in own]),
        group=np.array([item.group for item in own]),
        committed=np.array([each.committed for each in labels]),
        temperature=np.array([answer.temperature for answer, _ in kept]),
        onset=np.array([-1 if at is None or at >= len(r) else at for at, r in zip(onsets, recordings, strict=True)]),
        question=tuple(item.question for item in own),
        text=tuple(answer.text for answer, _ in kept),
        starts=np.cumsum([0, *(len(recording) for recording in recordings)]),
        logits=_joined(recordings, "logits"),
        fingerprint=_joined(recordings, "fingerprint"),
        drift=_joined(recordings, "drift"),
        sink_mass=_joined(recordings, "sink_mass"),
        heads=_optional(recordings, "heads"),
        received=_optional(recordings, "received"),
        layers=tuple(layers),
        why=np.array([each.why for each in labels]),
    )


def _joined(recordings: Sequence[Recording], name: str) -> Floats:
    return np.concatenate([getattr(recording, name) for recording in recordings]).astype(np.float64)


def _optional(recordings: Sequence[Recording], name: str) -> Floats | None:
    """nan for the answers that have none, None when no answer has any."""
    arrays: list[NDArray[Any]] = [getattr(recording, name) for recording in recordings]
    if not any(map(len, arrays)):
        return None
    rows = [
        array if len(array) else np.full((len(recording), *array.shape[1:]), np.nan)
        for array, recording in zip(arrays, recordings, strict=True)
    ]
    return np.concatenate(rows).astype(np.float64)
