"""Means of eviction_peers.py's lines with their intervals, and differences to the skeleton on the same contexts."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from eviction_tasks import NEEDLES, RETRIEVAL

DRAWS = 4000
OWN = ("skeleton", "union")
MEASURES = {
    "retrieval": ("right", RETRIEVAL), "needle nats": ("needle_nll", NEEDLES), "variables": ("right", ("variables",)),
    "common words": ("right", ("common words",)),
    "empty": ("empty", None), "kl": ("kl", ("text",)), "top1": ("top1", ("text",)), "nll": ("nll", ("text",)),
    "loops": ("loops", ("text",)),
}  # fmt: skip

Context = tuple[str, int, int, int]


def mean_and_interval(values: np.ndarray[Any, Any]) -> list[float]:
    """Mean over contexts and the bounds of its 95 % interval."""
    dice = np.random.default_rng(0)
    draws = values[dice.integers(0, len(values), (DRAWS, len(values)))].mean(axis=1)
    return [round(float(x), 4) for x in (values.mean(), *np.quantile(draws, (0.025, 0.975)))]


def numbers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each length (0: all), share evicted and score: each measure's mean, and its difference to ours."""
    by: dict[tuple[float, str, str], dict[Context, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        context = (row["kind"], row["length"], row["item"], row["seed"])
        by[row["evicted"], row["score"], row["scope"]][context] = row
    made = []
    for length in (0, *sorted({row["length"] for row in rows})):
        for (evicted, score, scope), found in by.items():
            one: dict[str, Any] = {"length": length, "evicted": evicted, "score": score, "scope": scope}
            for name, (field, kinds) in MEASURES.items():
                at = [
                    c for c, row in found.items()
                    if field in row and (kinds is None or c[0] in kinds) and length in (0, c[1])
                ]  # fmt: skip
                if not at:
                    continue
                one[name] = mean_and_interval(np.array([float(found[c][field]) for c in at]))
                own = by.get((evicted, *OWN), {})
                if own and (score, scope) != OWN:
                    both = [float(found[c][field]) - float(own[c][field]) for c in at if c in own]
                    one[f"{name} to skeleton"] = mean_and_interval(np.array(both))
            one["contexts"] = sum(length in (0, c[1]) for c in found)
            made.append(one)
    return made


def write(rows: list[dict[str, Any]], to: Path | None) -> None:
    found = numbers(rows)
    print("| evicted | score | scope | " + " | ".join(MEASURES) + " |")
    print("|---" * (3 + len(MEASURES)) + "|")
    order = sorted(
        (one for one in found if one["length"] == 0), key=lambda one: (one["evicted"], one["scope"] != "union")
    )
    for one in order:
        cells = []
        for name in MEASURES:
            value, less, more = one.get(name, (float("nan"),) * 3)
            differs = one.get(f"{name} to skeleton")
            star = "*" if differs and differs[1] * differs[2] > 0 else ""
            cells.append(f"{value:.3f} [{less:.3f}, {more:.3f}]{star}")
        print(f"| {one['evicted']:.0%} | {one['score']} | {one['scope']} | " + " | ".join(cells) + " |")
    if to:
        to.write_text(json.dumps(found, indent=1) + "\n")
