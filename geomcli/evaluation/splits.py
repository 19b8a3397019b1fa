"""Splits by group: what is about one fact, and each answer to one question, is on one side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
SHARES = (0.5, 0.2, 0.3)
FOLDS = 5


@dataclass(frozen=True)
class Parts:
    """train, val, test [n]; no group is in two of them."""

    train: Bools
    val: Bools
    test: Bools

    @property
    def development(self) -> Bools:
        return self.train | self.val


def parts(groups: Sequence[str] | NDArray[np.str_], domains: Sequence[str] | NDArray[np.str_], seed: int) -> Parts:
    """Half of the groups to train on, a fifth to choose on, three tenths for the test, in each domain."""
    places = _places(groups, domains, seed)
    first, second = SHARES[0], SHARES[0] + SHARES[1]
    return Parts(places < first, (places >= first) & (places < second), places >= second)


def folds(
    groups: Sequence[str] | NDArray[np.str_], domains: Sequence[str] | NDArray[np.str_], seed: int, k: int = FOLDS
) -> Ints:
    """[n] in 0 .. k-1, even in each domain."""
    made: Ints = np.minimum((_places(groups, domains, seed) * k).astype(np.int64), k - 1)
    return made


def _places(
    groups: Sequence[str] | NDArray[np.str_], domains: Sequence[str] | NDArray[np.str_], seed: int
) -> NDArray[np.float64]:
    """[n] in [0, 1): the rank of each one's group in a random order of the groups of its domain.

    A group of several domains belongs to the first of them in the alphabet.
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    home = np.full(len(names), "", dtype=object)
    for group, domain in sorted(zip(index.tolist(), map(str, domains), strict=True), key=lambda pair: pair[1]):
        if not home[group]:
            home[group] = domain
    place = np.zeros(len(names))
    generator = np.random.default_rng(seed)
    for domain in sorted(set(home)):
        members = np.flatnonzero(home == domain)
        place[generator.permutation(members)] = np.arange(len(members)) / len(members)
    made: NDArray[np.float64] = place[index]
    return made
