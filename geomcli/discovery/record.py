"""A run's rows in the store: discovery_runs and clusters, for SQL and datasette."""

from __future__ import annotations

import msgspec

from geomcli.discovery.artifacts import Artifacts
from geomcli.fingerprint import pack
from geomcli.store import Store


def keep(store: Store, artifacts: Artifacts) -> None:
    """Both in one transaction; StoreError when the store cannot be written."""
    m = artifacts.manifest
    run = {
        "run_id": m.run_id, "created": m.created, "model": m.model, "origin": m.origin, "unit": m.unit, "n": m.n,
        "clusters": len(m.clusters), "noise": m.noise / m.n, "seconds": sum(m.seconds.values()),
        "parameters": msgspec.json.encode(m.parameters).decode(), "path": str(artifacts.path),
    }  # fmt: skip
    rows = [
        {
            "run_id": m.run_id, "cluster_id": c.cluster, "name": c.name, "size": c.size, "zone": c.zone.zone,
            "traits": msgspec.json.encode(c.traits).decode(), "radius": c.radius,
            "medoid": pack(artifacts.medoids[c.cluster]),
        }
        for c in m.clusters
    ]  # fmt: skip
    store.insert({"discovery_runs": [run], "clusters": rows})
