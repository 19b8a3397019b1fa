"""Stores of made traces, and waiting, for tests of the panes that read stores."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from geomcli.schema import Record
from geomcli.store import Store
from tests.library.made_traces import FLAT, LOCAL, LONG, MID, entry, records

SHAPES = (LOCAL, MID, LONG, FLAT)
WORDS = ("the", " sky", " is", " blue", " because", " light", " scatters")


def made(
    name: str,
    hists: Sequence[np.ndarray | None],
    *,
    texts: Sequence[str] | None = None,
    question: str = "Why is the sky blue?",
    **more: Any,
) -> list[Record]:
    """The records of a trace with this id and these histograms."""
    words = texts or [WORDS[n % len(WORDS)] for n in range(len(hists))]
    entries = [entry(n, text, hist) for n, (text, hist) in enumerate(zip(words, hists, strict=True), 1)]
    return records(entries, messages=[{"role": "user", "content": question}], trace_id=name, **more)


def noisy(shape: np.ndarray, seed: int, *, tokens: int = 6) -> list[np.ndarray]:
    """Histograms near a shape."""
    random = np.random.default_rng(seed)
    return [0.8 * shape + 0.2 * random.dirichlet(np.ones(16)) for _ in range(tokens)]


def filled(path: Path, count: int = 12) -> list[str]:
    """Ids of `count` traces in a new store, newest first: one of every shape in turn, the last one cut off."""
    now = int(time.time() * 1000)
    names = []
    with Store(path) as store:
        for n in range(count):
            trace = made(f"t{n:02d}", noisy(SHAPES[n % 4], n), question=f"Question {n}", end=n < count - 1)
            trace[0]["created"] = now - (count - n) * 60_000
            names.append(store.add(trace))
    return names[::-1]
