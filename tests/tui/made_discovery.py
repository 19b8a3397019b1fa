"""Discoveries beside a store, learned from planted fingerprints: real artifacts, as `geom discover` writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from geomcli.discovery import artifacts
from geomcli.discovery.pipeline import Discovery, Parameters, discover
from geomcli.discovery.points import Points
from geomcli.fingerprint import fingerprints_from_histograms
from geomcli.zones import classify_many
from tests.library.made_traces import histogram

# What tokens of the recording are mostly like, and other shapes.
NEAR = histogram(0.42, 0.18, 0.14, 0.12, 0.09, 0.04, 0.01)
MIDDLE = histogram(0.08, 0.04, 0.1, 0.2, 0.3, 0.2, 0.08)
FAR = histogram(0.05, 0.1, 0.3, 0.35, 0.15, 0.05, first=7)
FARTHEST = histogram(0.1, 0.4, 0.4, 0.1, first=11)
CENTRES = (NEAR, MIDDLE, FAR, FARTHEST)


def discovery(
    model: str = "smollm2",
    *,
    sizes: tuple[int, ...] = (240, 160, 120, 80),
    spread: float = 40,
    noise: int = 50,
    seed: int = 0,
) -> Discovery:
    """Of clusters around CENTRES, as close as `spread` is large, and of noise; the map is the first two components."""
    random = np.random.default_rng(seed)
    hists = [random.dirichlet(centre * spread + 0.05, size) for centre, size in zip(CENTRES, sizes, strict=False)]
    hists.append(random.dirichlet(np.full(16, 0.3), noise))
    fingerprints = random.permutation(fingerprints_from_histograms(np.concatenate(hists)))
    n = len(fingerprints)
    zones = [zone for zone, _ in classify_many(fingerprints, np.full(n, np.nan))]
    points = Points(
        model, fingerprints, [f"r{at // 10}" for at in range(n)], np.arange(n) % 10, zones, np.full(n, np.nan),
        "traffic", n,
    )  # fmt: skip
    return discover(points, Parameters(umap=False))


def learned(db: Path, model: str = "smollm2", **more: object) -> Path:
    """The folder of a run beside a store."""
    return artifacts.write(discovery(model, **more), db.parent / "discovery")  # type: ignore[arg-type]
