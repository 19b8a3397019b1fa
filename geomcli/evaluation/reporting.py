"""The whole evaluation of a folder as one document, and the configuration that its test part is locked with."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from geomcli.errors import GeomError
from geomcli.evaluation import locking, offline, online
from geomcli.evaluation.dataset import Dataset, load
from geomcli.evaluation.features import families
from geomcli.evaluation.fitting import STRENGTHS
from geomcli.evaluation.folder import Folder
from geomcli.evaluation.metrics import REPLICATES
from geomcli.evaluation.splits import FOLDS, SHARES, Parts, folds, parts

VERSION = 1  # of families, choices and splits: another one is another configuration
_LEAST = 40  # right and wrong answers in the development part


def report(folder: Folder, *, seed: int, final: bool, tick: Callable[[str], None]) -> dict[str, Any]:
    """Tables over the development part by cross-validation; with `final`, the test part's beside them."""
    from threadpoolctl import threadpool_limits  # scikit-learn brings it

    # The matrices are small: threads that wait for each other cost a hundred times what they save on a busy machine.
    with threadpool_limits(limits=1, user_api="blas"):
        return _report(folder, seed=seed, final=final, tick=tick)


def _report(folder: Folder, *, seed: int, final: bool, tick: Callable[[str], None]) -> dict[str, Any]:
    started = time.monotonic()
    data = load(folder)
    split = parts(data.group, data.domain, seed)
    _refuse_too_few(data, split)
    made = families(data, seed)
    configuration = {
        "version": VERSION, "seed": seed, "answers": folder.digest(), "families": [family.name for family in made],
        "shares": list(SHARES), "folds": FOLDS, "strengths": list(STRENGTHS), "replicates": REPLICATES,
    }  # fmt: skip
    lock = locking.acquire(folder.path, configuration) if final else locking.read(folder.path)
    document: dict[str, Any] = {
        "collection": {**_header(folder), **_counts(data, split)},
        "configuration": configuration,
        "hash": locking.digest(configuration),
        "lock": None if lock is None else {"hash": lock.hash, "created": lock.created},
    }
    scores = offline.cross_validated(data, made, split, seed, lambda name: tick(f"folds: {name}"))
    document["development"] = {
        "families": offline.table(data, scores, seed),
        "populations": offline.of_populations(data, scores, seed),
        "transfer": offline.transfer(data, made, split, seed, test=False, tick=lambda n: tick(f"transfer: {n}")),
        "left_out_kinds": offline.left_out_kinds(data, made, split, seed, lambda n: tick(f"kinds: {n}")),
        "online": online.evaluate(data, _jobs(data, split, seed), seed),
    }
    document["test"] = None
    if final:
        of_test = offline.final(data, made, split, lambda name: tick(f"test: {name}"))
        document["test"] = {
            "families": offline.table(data, of_test, seed, scores),
            "populations": offline.of_populations(data, of_test, seed),
            "transfer": offline.transfer(data, made, split, seed, test=True, tick=lambda n: tick(f"transfer: {n}")),
            "online": online.evaluate(data, [(np.flatnonzero(split.development), np.flatnonzero(split.test))], seed),
        }
    document["seconds"] = round(time.monotonic() - started, 1)
    return document


def _jobs(data: Dataset, split: Parts, seed: int) -> list[tuple[Any, Any]]:
    rows = np.flatnonzero(split.development)
    fold = folds(data.group[rows], data.domain[rows], seed + 1)
    return [(rows[fold != number], rows[fold == number]) for number in range(FOLDS)]


def _refuse_too_few(data: Dataset, split: Parts) -> None:
    wrong = data.wrong[data.stated & split.development]
    least = min(int(wrong.sum()), int((~wrong).sum()))
    if least < _LEAST:
        raise GeomError(
            f"the development part has {int((~wrong).sum())} right and {int(wrong.sum())} wrong answers, and needs "
            f"{_LEAST} of each.",
            "geom eval detect collect with more --cards and --closed, or questions of another difficulty",
        )


def _header(folder: Folder) -> dict[str, Any]:
    header = folder.header
    return {"model": header.model, "layers": list(header.layers), "heads": header.heads, "mode": header.mode,
            "logits": header.logits, "temperatures": list(header.temperatures),
            "max_tokens": header.max_tokens}  # fmt: skip


def _counts(data: Dataset, split: Parts) -> dict[str, Any]:
    kinds: dict[str, dict[str, int]] = {}
    for kind in np.unique(data.kind):
        members = data.kind == kind
        outcomes = Counter(str(outcome) for outcome in data.outcome[members])
        kinds[str(kind)] = {"answers": int(members.sum()), **outcomes, "committed": int(data.committed[members].sum()),
                            "with_onset": int((data.onset[members] >= 0).sum())}  # fmt: skip
    return {
        "answers": len(data),
        "tokens": int(data.starts[-1]),
        "groups": len(np.unique(data.group)),
        "parts": {"train": int(split.train.sum()), "val": int(split.val.sum()), "test": int(split.test.sum())},
        "off_form": data.why,
        "kinds": kinds,
    }
