"""Received attention against a dense matrix: what each position gets from the rows behind it, and the Laplacian."""

from __future__ import annotations

import numpy as np

from geomcli.detectors.observations import replay
from geomcli.detectors.received import ReceivedFeatures
from tests.library.made_answers import PROMPT, observations


def test_the_largest_are_those_of_the_dense_matrix() -> None:
    tokens, top = 30, 4
    answer = observations(tokens, seed=1)
    assert answer.links is not None
    dense = np.zeros((tokens, PROMPT + tokens))
    np.put_along_axis(dense, answer.links.positions, answer.links.masses, axis=1)
    first = PROMPT - 1
    rows = replay(ReceivedFeatures(top), answer).reshape(tokens, 2, top)
    for step in (0, 5, 29):
        seen = first + step + 1  # positions that a row could look at
        since = np.minimum(step + 1, seen - np.arange(seen))
        mean = dense[: step + 1, :seen].sum(axis=0) / since
        own = np.array([0.0] * first + [dense[row, first + row] for row in range(step + 1)])
        looked_at = dense[: step + 1, :seen].sum(axis=0) > 0
        for at, values in enumerate((mean, mean - own)):
            expected = np.sort(values[looked_at])[::-1][:top]
            np.testing.assert_allclose(rows[step, at, : len(expected)], expected)
            assert (rows[step, at, len(expected) :] == 0).all()


def test_the_eigenvalues_of_the_laplacian_are_its_diagonal() -> None:
    """Of a square causal matrix, seen whole: L = D - A with D the mean that a position receives."""
    tokens = 12
    random = np.random.default_rng(2)
    attention = np.tril(random.uniform(0.1, 1, (tokens, tokens)))
    attention /= attention.sum(axis=1, keepdims=True)
    laplacian = np.diag(attention.sum(axis=0) / (tokens - np.arange(tokens))) - attention
    features = ReceivedFeatures(tokens)
    state = features.start()
    for row in range(tokens):
        state.take(row, list(range(row + 1)), attention[row, : row + 1].tolist())
    found = state.largest(tokens)[tokens:]
    np.testing.assert_allclose(found, np.sort(np.linalg.eigvals(laplacian).real)[::-1], atol=1e-9)
