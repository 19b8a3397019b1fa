"""Observations of made answers, and detectors with made weights, for tests of detectors."""

from __future__ import annotations

from typing import Any

import numpy as np

from geomcli.detectors import registry
from geomcli.detectors.calibration import About, Calibration, Stack
from geomcli.detectors.heads import HeadFeatures
from geomcli.detectors.observations import Detector, Links, Observations
from geomcli.detectors.received import ReceivedFeatures
from geomcli.detectors.summary import Summarised
from geomcli.fingerprint import fingerprints_from_histograms

LAYERS, HEADS, TOP_K, PROMPT = (3, 7), 3, 4, 6


def observations(tokens: int, seed: int = 0, *, surprise: float = 1.0, lost: float = 0.0) -> Observations:
    """An answer of which everything is captured but a share `lost`; surprise: mean of -logprob."""
    random = np.random.default_rng(seed)
    heads = random.uniform(0.05, 0.95, (tokens, len(LAYERS), 4, HEADS))
    heads[:1, :, 3] = 1.0
    logprob = -random.exponential(surprise, tokens)
    query = PROMPT - 1 + np.arange(tokens)
    positions = np.full((tokens, TOP_K), -1)
    masses = np.zeros((tokens, TOP_K))
    for row, last in enumerate(query.tolist()):
        positions[row] = random.choice(last + 1, TOP_K, replace=False)
        masses[row] = random.dirichlet(np.ones(TOP_K)) * 0.8
    fingerprint = fingerprints_from_histograms(random.dirichlet(np.ones(16), tokens)).astype(np.float64)
    gone = random.random(tokens) < lost
    for values in (logprob, heads, fingerprint):
        values[gone] = np.nan
    query[gone] = -1
    return Observations(
        fingerprint, logprob, random.uniform(0, 8, tokens), random.exponential(2, tokens), heads,
        Links(query, positions, masses),
    )  # fmt: skip


def made_calibration(name: str, seed: int = 0) -> Calibration:
    """With random weights where the detector has any."""
    random = np.random.default_rng(seed)
    about = About(
        model="m", detector=name, layers=LAYERS, heads=HEADS, threshold=2.5, false_alarms=0.01, n=120, created=1,
        trained_on="made answers",
    )  # fmt: skip
    if not registry.DETECTORS[name].trained:
        return Calibration(about)
    features = HeadFeatures(LAYERS, HEADS) if name == "heads" else ReceivedFeatures()
    names = Summarised(features).names
    size = len(names)
    return Calibration(
        about,
        Stack(names, random.normal(size=size), random.uniform(0.5, 2, size), random.normal(size=size) / size**0.5, 0.1,
              1.3, -0.2, 1e-3, 8),
    )  # fmt: skip


def made(name: str) -> Detector[Any]:
    return registry.create(name, {"window": 3} if name == "compass" else None, made_calibration(name))
