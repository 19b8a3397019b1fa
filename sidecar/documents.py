"""Bodies of the HTTP interface, as they go in and out; docs/wire.md, "Sidecar"."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from geomcli.discovery.classification import Classification
from geomcli.fingerprint import FINGERPRINT_SIZE

MOST_VECTORS = 1000
Share = Annotated[float, Field(ge=-0.001, le=1.001, allow_inf_nan=False)]
Vector = Annotated[list[Share], Field(min_length=FINGERPRINT_SIZE, max_length=FINGERPRINT_SIZE)]


class Document(BaseModel):
    model_config = ConfigDict(extra="forbid")


class One(Document):
    """A fingerprint: local, mid, long, bin entropy, and a histogram of 16 bins; each in [0, 1]."""

    vector: Vector


class Several(Document):
    """Up to 1,000 of them."""

    vectors: Annotated[list[Vector], Field(min_length=1, max_length=MOST_VECTORS)]


class Evidence(BaseModel):
    name: str
    metric: str
    value: float
    threshold: float
    deviations: float


class Hint(BaseModel):
    """Sampling that the zone's rule suggests; null where it leaves the request's own."""

    zone: str
    temperature: float | None
    top_p: float | None


class Centroid(BaseModel):
    cluster: int
    name: str
    size: int
    zone: str
    radius: float
    centroid: list[float]
    traits: list[Evidence]
    hint: Hint


class Centroids(BaseModel):
    """`n`: fingerprints that were grouped at `at` (epoch seconds), `noise` of them in no cluster; `unit` of radii."""

    mode: str
    unit: str
    n: int
    noise: int
    at: float
    clusters: list[Centroid]


class Prediction(BaseModel):
    """cluster: null off the manifold; distance, radius: of the nearest cluster."""

    cluster: int | None
    name: str | None
    distance: float | None
    radius: float | None
    on_manifold: bool
    traits: list[str]
    hint: Hint


class Classifications(BaseModel):
    run_id: str
    results: list[Classification]


class Status(BaseModel):
    """`loaded`: whether /classify can answer; `error`: why the newest artifacts could not be taken."""

    loaded: bool
    directory: str | None
    run_id: str | None = None
    model: str | None = None
    n: int | None = None
    clusters: int | None = None
    created: int | None = None
    error: str


class Reloaded(BaseModel):
    reloaded: bool
    status: Status


class Flushed(BaseModel):
    stored: int
    waiting: int


class Regrouped(BaseModel):
    clusters: int
    n: int
    noise: int
    seconds: float


class Stats(BaseModel):
    counters: dict[str, int]
    waiting: int
    database: str
    uptime_seconds: float
    mode: str
    grouped: int
    clusters: int
    online_seen: int
    micro_clusters: int
    last_malformed: list[str]
    errors: list[str]


class Health(BaseModel):
    status: str
    problems: list[str]


class Refusal(BaseModel):
    detail: str
