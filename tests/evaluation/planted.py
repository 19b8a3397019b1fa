"""Collected answers with a signal that is known: one head's entropy, from the onset on, and log-probabilities."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from geomcli.evaluation.dataset import Dataset
from geomcli.evaluation.folder import Answer, Folder, Header, digest
from geomcli.evaluation.items import Item
from geomcli.evaluation.recording import Recording

LAYERS, HEADS = (4, 9), 3


def planted(
    path: Path, n: int = 600, *, head: float = 1.5, logit: float = 0.7, seed: int = 0, tokens: int = 12
) -> Folder:
    """n answers, two to a group, half of each of two domains, half wrong. head: by how many standard deviations one
    head of layer 9 differs in the tokens from a wrong answer's onset on; logit: the same for log-probabilities.
    """
    generator = np.random.default_rng(seed)
    items, answers, recordings = [], [], []
    for number in range(n):
        domain = ("context", "arithmetic")[number // 2 % 2]
        wrong, length = bool(generator.random() < 0.5), int(generator.integers(tokens - 4, tokens + 5))
        items.append(
            Item(id=f"{number}", kind=f"{domain} {number // 4 % 2}", domain=domain, group=f"{domain}:{number // 2}",
                 prompt="?", question="How many?", answer=("10",), match="number", stated=True)
        )  # fmt: skip
        onset = length // 2
        words = [f" w{place}" for place in range(length)]
        words[onset - 1 : onset + 1] = " is", " 77" if wrong else " 10"
        answers.append(Answer(number=number, item=f"{number}", temperature=0.0, text="".join(words),
                              tokens=tuple(words), finish_reason="stop"))  # fmt: skip
        heads = generator.normal(size=(length, len(LAYERS), 4, HEADS))
        logits = generator.normal(size=(length, 3)) * [0.5, 0.5, 0.5] + [-1.5, 2.0, 2.0]
        if wrong:
            heads[onset:, 1, 0, 2] += head
            logits[onset:, 0] -= logit * 0.5
        fingerprint = np.abs(generator.normal(size=(length, 20)))
        fingerprint[:, 4:] /= fingerprint[:, 4:].sum(axis=1, keepdims=True)
        recordings.append(
            Recording(
                fingerprint=fingerprint.astype(np.float32), drift=np.full(length, 0.05, np.float32),
                sink_mass=generator.random(length).astype(np.float32), logits=logits.astype(np.float32),
                heads=heads.astype(np.float32),
                received=generator.random((length, len(LAYERS), 10)).astype(np.float32),
            )
        )  # fmt: skip
    header = Header(model="m", layers=LAYERS, heads=HEADS, mode="raw", head_stats=True, logits="logit_stats",
                    temperatures=(0.0,), max_tokens=32, seed=seed, items=digest(items))  # fmt: skip
    folder = Folder.create(path, header, items)
    for answer, recording in zip(answers, recordings, strict=True):
        folder.add(answer, recording)
    return folder


def small(heads: np.ndarray, logprobs: list[float], starts: list[int]) -> Dataset:
    """Answers with these numbers and nothing else."""
    tokens, n = len(logprobs), len(starts) - 1
    names = np.array(["a"] * n)
    logits = np.column_stack([logprobs, np.arange(tokens), np.ones(tokens)]).astype(float)
    return Dataset(
        outcome=np.array(["right"] * n), kind=names, domain=names, group=names, committed=np.ones(n, dtype=bool),
        temperature=np.zeros(n), onset=np.full(n, -1), question=("q",) * n, text=("t",) * n, starts=np.array(starts),
        logits=logits, fingerprint=np.tile(np.eye(20)[4], (tokens, 1)), drift=np.full(tokens, np.nan),
        sink_mass=np.zeros(tokens), heads=heads, received=None, layers=LAYERS, why=np.array([""] * n),
    )  # fmt: skip
