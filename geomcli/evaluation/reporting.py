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
from geomcli.evaluation.features import RANDOM, Family, families
from geomcli.evaluation.fitting import STRENGTHS
from geomcli.evaluation.folder import Folder
from geomcli.evaluation.metrics import REPLICATES
from geomcli.evaluation.splits import FOLDS, SHARES, Parts, folds, parts

VERSION = 2  # of families, choices and splits: another one is another configuration
_LEAST = 40  # right and wrong answers in the development part


def report(folder: Folder, *, seed: int, final: bool, tick: Callable[[str], None]) -> dict[str, Any]:
    """Tables over the development part by cross-validation; with `final`, the test part's beside them.

    seed: of folds, random features and the bootstrap; which part is the test's is the folder's alone.
    """
    from threadpoolctl import threadpool_limits  # scikit-learn brings it

    # The matrices are small: threads that wait for each other cost a hundred times what they save on a busy machine.
    with threadpool_limits(limits=1, user_api="blas"):
        return _report(folder, seed=seed, final=final, tick=tick)


def _report(folder: Folder, *, seed: int, final: bool, tick: Callable[[str], None]) -> dict[str, Any]:
    started = time.monotonic()
    data = load(folder)
    split = split_of(folder, data)
    _refuse_too_few(data, split)
    made = families(data, seed)
    configuration = {
        "version": VERSION, "seed": seed, "answers": folder.digest(), "families": [family.name for family in made],
        "shares": list(SHARES), "folds": FOLDS, "strengths": list(STRENGTHS), "replicates": REPLICATES,
        **_hashes(data, made),
    }  # fmt: skip
    lock = locking.acquire(folder.path, configuration) if final else locking.read(folder.path)
    document: dict[str, Any] = {
        "collection": {**_header(folder), **_counts(data, split, final=final)},
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


def split_of(folder: Folder, data: Dataset) -> Parts:
    """By the folder's own seed, over all its questions: neither another --seed nor more answers move a group."""
    items = list(folder.items().values())
    groups = np.array([item.group for item in items])
    whole = parts(groups, np.array([item.domain for item in items]), folder.header.seed)
    return Parts(*(np.isin(data.group, groups[part]) for part in (whole.train, whole.val, whole.test)))


def _hashes(data: Dataset, made: list[Family]) -> dict[str, str]:
    """Of the labels, and of all numbers that are looked at but the random ones, which are the seed's."""
    arrays = {"logits": data.logits, "fingerprint": data.fingerprint, "drift": data.drift, "sink_mass": data.sink_mass,
              "heads": data.heads, "received": data.received}  # fmt: skip
    variants = {
        f"{family.name}, {variant}": x
        for family in made
        if family.name != RANDOM
        for variant, x in family.variants.items()
    }
    return {
        "labels": locking.of_texts(data.outcome.tolist(), map(str, data.onset), map(str, data.committed)),
        "questions": locking.of_texts(data.kind.tolist(), data.domain.tolist(), data.group.tolist(), data.text),
        "arrays": locking.of_arrays({name: array for name, array in arrays.items() if array is not None}),
        "features": locking.of_arrays(variants),
    }


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


def _counts(data: Dataset, split: Parts, *, final: bool) -> dict[str, Any]:
    """Of the development part alone without `final`; `parts` are sizes, which say nothing of labels."""
    shown = split.development | (split.test & final)
    kinds: dict[str, dict[str, int]] = {}
    for kind in np.unique(data.kind):
        members = shown & (data.kind == kind)
        outcomes = Counter(str(outcome) for outcome in data.outcome[members])
        kinds[str(kind)] = {"answers": int(members.sum()), **outcomes, "committed": int(data.committed[members].sum()),
                            "with_onset": int((data.onset[members] >= 0).sum())}  # fmt: skip
    return {
        "counted": "all" if final else "development",
        "answers": int(shown.sum()),
        "tokens": int(data.length[shown].sum()),
        "groups": len(np.unique(data.group[shown])),
        "parts": {"train": int(split.train.sum()), "val": int(split.val.sum()), "test": int(split.test.sum())},
        "off_form": dict(Counter(str(why) for why in data.why[shown] if why)),
        "kinds": kinds,
    }
