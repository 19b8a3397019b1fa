"""Means of eviction_peers.py's lines with their intervals, and differences to the skeleton on the same contexts."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from eviction_tasks import NEEDLES, RETRIEVAL

DRAWS = 4000
FEWEST = 5  # contexts of which an interval means something
OWN = ("skeleton", "union")
MEASURES = {
    "retrieval": ("right", RETRIEVAL), "needle nats": ("needle_nll", NEEDLES), "variables": ("right", ("variables",)),
    "common words": ("right", ("common words",)), "pass phrases": ("right", ("words",)),
    "empty": ("empty", None), "kl": ("kl", ("text",)), "top1": ("top1", ("text",)), "nll": ("nll", ("text",)),
    "loops": ("loops", ("text",)),
}  # fmt: skip

MORE_IS_BETTER = ("retrieval", "variables", "common words", "pass phrases", "top1")

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
                if own and (score, scope) != OWN and len(at) >= FEWEST:
                    both = [float(found[c][field]) - float(own[c][field]) for c in at if c in own]
                    one[f"{name} to skeleton"] = mean_and_interval(np.array(both))
            one["contexts"] = sum(length in (0, c[1]) for c in found)
            made.append(one)
    return made


def write(rows: list[dict[str, Any]], to: Path | None) -> None:
    """Print a table: of each measure its means at every share evicted, with a mark where the interval of the difference
    to the skeleton is clear of 0: + better than it, - worse."""
    found = numbers(rows)
    shares = sorted({one["evicted"] for one in found} - {0.0})
    whole = {(one["score"], one["scope"]): one for one in found if one["length"] == 0 and one["evicted"] == 0}
    print(f"| score | scope | {' | '.join(MEASURES)} |")
    print("|---" * (2 + len(MEASURES)) + "|")
    for (score, scope), one in whole.items():
        print(f"| {score} | {scope} | {' | '.join(_cell(one, name) for name in MEASURES)} |")
    by: dict[tuple[str, str], dict[float, dict[str, Any]]] = defaultdict(dict)
    for one in found:
        if one["length"] == 0 and one["evicted"]:
            by[one["score"], one["scope"]][one["evicted"]] = one
    for (score, scope), at in sorted(by.items(), key=lambda item: item[0][1] != "union"):
        cells = [" / ".join(_cell(at[share], name) for share in shares) for name in MEASURES]
        print(f"| {score} | {scope} | {' | '.join(cells)} |")
    if to:
        to.write_text(json.dumps(found, indent=1) + "\n")


def _cell(one: dict[str, Any], name: str) -> str:
    if name not in one:
        return ""
    said = f"{one[name][0]:.3f}".removeprefix("0")
    _, less, more = one.get(f"{name} to skeleton", (0.0, 0.0, 0.0))
    if less * more <= 0:
        return said
    return f"{said} {'+' if (less > 0) == (name in MORE_IS_BETTER) else '-'}"
