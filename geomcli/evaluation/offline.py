"""Whole answers: what each family is worth by itself, and what it adds to the logits, on groups not fitted on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from geomcli.evaluation.dataset import Bools, Dataset, Floats, Ints
from geomcli.evaluation.features import BASELINES, KIND, KINDS, LOGITS, RANDOM, SERIES, Family
from geomcli.evaluation.fitting import Choice, choose, fit, inner, platt
from geomcli.evaluation.metrics import (
    auroc,
    aurocs,
    average_precision,
    bootstrap_weights,
    calibration_error,
    interval,
    matched_auroc,
    recall_at,
    rejection_ratio,
    within,
)
from geomcli.evaluation.splits import FOLDS, Parts, folds

LEAST = 20  # answers of each class, below which nothing is said
ALONE = ""
_NOT_CARRIED_OVER = (RANDOM, KIND, KINDS)  # no kind is of two domains, and a left-out kind is in no fit
Tick = Callable[[str], None]


@dataclass
class Scores:
    """Log-odds [n] of each family alone (ALONE) and beside each baseline; nan where an answer was in no test part.
    fold [n]: whose fit scored it, -1 where none did.
    """

    fold: Ints
    by: dict[tuple[str, str], Floats] = field(default_factory=dict)
    choices: dict[tuple[str, str], list[Choice]] = field(default_factory=dict)


def cross_validated(data: Dataset, made: list[Family], parts: Parts, seed: int, tick: Tick) -> Scores:
    """Five folds of the development groups; choices inside the training part of each fold."""
    fold = np.full(len(data), -1)
    rows = np.flatnonzero(parts.development)
    fold[rows] = folds(data.group[rows], data.domain[rows], seed + 1)
    jobs = []
    for number in range(int(fold.max()) + 1):
        training = np.flatnonzero(parts.development & (fold != number) & data.stated)
        jobs.append((*inner(training, data.group, data.domain, seed + 2), np.flatnonzero(fold == number)))
    return _scored(data, made, jobs, tick)


def final(data: Dataset, made: list[Family], parts: Parts, tick: Tick) -> Scores:
    """Choices by fits on train judged on val, fitted on both, scored on test."""
    train, val = (np.flatnonzero(part & data.stated) for part in (parts.train, parts.val))
    return _scored(data, made, [(train, val, np.flatnonzero(parts.test))], tick)


def _scored(data: Dataset, made: list[Family], jobs: list[tuple[Ints, Ints, Ints]], tick: Tick) -> Scores:
    found = Scores(np.full(len(data), -1))
    for place, (_, _, test) in enumerate(jobs):
        found.fold[test] = place
    bases = {family.name: family for family in made if family.name in BASELINES}
    for family in made:
        tick(family.name)
        beside: dict[str, Family | None] = {ALONE: None}
        if family.name == SERIES:
            beside[LOGITS] = bases[LOGITS]
        elif family.text is None and family.name not in BASELINES:
            beside |= bases
        for base, other in beside.items():
            scores = np.full(len(data), np.nan)
            choices = []
            for place, (train, val, test) in enumerate(jobs):
                own = found.choices.get((family.name, ALONE))
                variant = own[place].variant if own else None
                choice = choose(family, train, val, data.wrong, other, variant)
                rows = np.concatenate([train, val])
                # Fitted with fewer wrong answers a fold tests more of them: the prior would rank folds the wrong way.
                share = np.clip(data.wrong[rows].mean(), 1e-3, 1 - 1e-3)
                scores[test] = fit(family, choice, rows, data.wrong, other)(test) - np.log(share / (1 - share))
                choices.append(choice)
            found.by[family.name, base] = scores
            found.choices[family.name, base] = choices
    return found


def table(data: Dataset, scores: Scores, seed: int, platt_from: Scores | None = None) -> list[dict[str, Any]]:
    """A row for each family, over the answers that are right or wrong. platt_from: scores of other answers, to
    calibrate on; without, of the other half of the groups.
    """
    rows = np.flatnonzero(data.stated & np.isfinite(scores.by[LOGITS, ALONE]))
    wrong = data.wrong[rows]
    weights = bootstrap_weights(data.group[rows], seed)
    drawn = {key: aurocs(values[rows], wrong, weights) for key, values in scores.by.items()}
    # Pairs that one fit scored: a kind's odds in a fold sink with the wrong answers that the fold has too many of.
    strata = np.unique(data.kind, return_inverse=True)[1][rows] * FOLDS + scores.fold[rows]
    made = []
    for (name, base), values in scores.by.items():
        if base != ALONE:
            continue
        own = values[rows]
        row: dict[str, Any] = {
            "family": name,
            "auroc": auroc(own, wrong),
            "auroc_interval": interval(drawn[name, base]),
            "within_kind_auroc": float(within(own, wrong, strata, np.ones((1, len(rows))))[0]),
            "within_kind_interval": interval(within(own, wrong, strata, weights)),
            "prr": rejection_ratio(own, wrong),
            "auprc": average_precision(own, wrong),
            "tpr_at_1": recall_at(own, wrong, 0.01),
            "tpr_at_5": recall_at(own, wrong, 0.05),
            "ece": _error_after_platt(data, rows, values, platt_from.by[name, ALONE] if platt_from else None),
            "length_matched_auroc": matched_auroc(own, wrong, data.length[rows]),
            "choices": sorted({f"{c.variant or '-'}, C {c.strength:g}" for c in scores.choices[name, ALONE]}),
            "increments": {},
        }
        for other in BASELINES:
            if (name, other) in scores.by:
                gain = drawn[name, other] - drawn[other, ALONE]
                row["increments"][other] = {
                    "auroc": auroc(scores.by[name, other][rows], wrong) - auroc(scores.by[other, ALONE][rows], wrong),
                    "interval": interval(gain),
                }
        made.append(row)
    return made


def _error_after_platt(data: Dataset, rows: Ints, values: Floats, others: Floats | None) -> float:
    wrong = data.wrong
    if others is not None:
        known = np.flatnonzero(data.stated & np.isfinite(others))
        return calibration_error(platt(others[known], wrong[known])(values[rows]), wrong[rows])
    half = folds(data.group[rows], data.domain[rows], 0, 2)
    probabilities = np.zeros(len(rows))
    for side in (0, 1):
        fitted = rows[half != side]
        if not 0 < wrong[fitted].sum() < len(fitted):
            return float("nan")
        probabilities[half == side] = platt(values[fitted], wrong[fitted])(values[rows[half == side]])
    return calibration_error(probabilities, wrong[rows])


def populations(data: Dataset) -> dict[str, Bools]:
    """Which answers are looked at, apart from all that are right or wrong."""
    made = {
        "committed": data.stated & data.committed,
        "off-form and refused count as wrong": np.ones(len(data), dtype=bool),
    }
    made |= {f"domain {name}": data.stated & (data.domain == name) for name in np.unique(data.domain)}
    made |= {f"temperature {t:g}": data.stated & (data.temperature == t) for t in np.unique(data.temperature)}
    return made


def of_populations(data: Dataset, scores: Scores, seed: int) -> list[dict[str, Any]]:
    """AUROC and gains in each population, of the same scores; none where it has not 20 of each class."""
    tested = np.isfinite(scores.by[LOGITS, ALONE])
    made = []
    for name, members in populations(data).items():
        rows = np.flatnonzero(members & tested)
        wrong = data.wrong[rows]
        entry: dict[str, Any] = {"population": name, "answers": len(rows), "wrong": int(wrong.sum()), "families": None}
        if min(wrong.sum(), (~wrong).sum()) >= LEAST:
            weights = bootstrap_weights(data.group[rows], seed)
            drawn = {key: aurocs(values[rows], wrong, weights) for key, values in scores.by.items()}
            entry["families"] = {
                family: {
                    "auroc": auroc(values[rows], wrong),
                    "interval": interval(drawn[family, base]),
                    "increments": {
                        other: {
                            "auroc": auroc(scores.by[family, other][rows], wrong)
                            - auroc(scores.by[other, ALONE][rows], wrong),
                            "interval": interval(drawn[family, other] - drawn[other, ALONE]),
                        }
                        for other in BASELINES
                        if (family, other) in scores.by
                    },
                }
                for (family, base), values in scores.by.items()
                if base == ALONE
            }
        made.append(entry)
    return made


def transfer(data: Dataset, made: list[Family], parts: Parts, seed: int, *, test: bool, tick: Tick) -> dict[str, Any]:
    """Trained on one domain, tested on another: AUROC [train][test] of each family; all that is chosen, in the first.

    On the diagonal the groups of a domain are halved. With `test`, trained on the development part and tested on the
    test part, which is left alone without it.
    """
    pool = trained_on = data.stated & parts.development
    names = [str(name) for name in np.unique(data.domain) if _enough(data, pool & (data.domain == name))]
    matrix: dict[str, dict[str, dict[str, float]]] = {}
    for family in made:
        if family.name in _NOT_CARRIED_OVER:
            continue
        tick(family.name)
        matrix[family.name] = {}
        for source in names:
            rows = np.flatnonzero(trained_on & (data.domain == source))
            half = folds(data.group[rows], data.domain[rows], seed + 3, 2)
            cells = {}
            for target in names:
                fitted = rows if test or source != target else rows[half == 0]
                if test:
                    there = np.flatnonzero(data.stated & parts.test & (data.domain == target))
                else:
                    there = np.flatnonzero(pool & (data.domain == target)) if source != target else rows[half == 1]
                choice = choose(family, *inner(fitted, data.group, data.domain, seed + 3), data.wrong)
                cells[target] = _auroc_of(family, choice, fitted, there, data)
            matrix[family.name][source] = cells
    return {"domains": names, "auroc": matrix}


def left_out_kinds(data: Dataset, made: list[Family], parts: Parts, seed: int, tick: Tick) -> dict[str, Any]:
    """Tested on one kind of question in the development part; chosen and trained on the others without groups it
    shares.
    """
    pool = data.stated & parts.development
    names = [str(kind) for kind in np.unique(data.kind) if _enough(data, pool & (data.kind == kind))]
    cells: dict[str, dict[str, float]] = {}
    for family in made:
        if family.name in _NOT_CARRIED_OVER:
            continue
        tick(family.name)
        cells[family.name] = {}
        for kind in names:
            there = np.flatnonzero(pool & (data.kind == kind))
            shared = np.isin(data.group, data.group[there])
            others = np.flatnonzero(pool & (data.kind != kind) & ~shared)
            choice = choose(family, *inner(others, data.group, data.domain, seed + 4), data.wrong)
            cells[family.name][kind] = _auroc_of(family, choice, others, there, data)
    return {"kinds": names, "auroc": cells}


def _auroc_of(family: Family, choice: Choice, fitted: Ints, there: Ints, data: Dataset) -> float:
    wrong = data.wrong
    if not 0 < wrong[fitted].sum() < len(fitted) or not len(there):
        return float("nan")
    return auroc(fit(family, choice, fitted, wrong)(there), wrong[there])


def _enough(data: Dataset, members: Bools) -> bool:
    wrong = data.wrong[members]
    return bool(min(wrong.sum(), (~wrong).sum()) >= LEAST)
