"""Collected answers as arrays: labels, groups, and the numbers of all their tokens, one answer behind the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomcli.detectors.observations import Observations, Updated, replay
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
    heads [T, L, 4, H] and received [T, L, K] (recording.py), None where they were not captured.
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
    why: dict[str, int]

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

    def seen(self, answer: int) -> Observations:
        """What a detector sees of this answer's tokens; without links."""
        tokens = slice(self.starts[answer], self.starts[answer + 1])
        heads = None if self.heads is None else self.heads[tokens]
        logprob, entropy, margin = self.logits[tokens].T
        return Observations(self.fingerprint[tokens], logprob, entropy, margin, heads)

    def replayed(self, detector: Updated) -> Floats:
        """[T, ...]: what a detector's `update` gives for each token."""
        return np.concatenate([replay(detector, self.seen(answer)) for answer in range(len(self))])


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
        why=dict(Counter(each.why for each in labels if each.why)),
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
