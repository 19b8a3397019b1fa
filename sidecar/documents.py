"""Bodies of the HTTP interface, as they go in and out; docs/wire.md, "Sidecar"."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from geomcli.discovery.classification import Classification
from geomcli.fingerprint import FINGERPRINT_SIZE

MOST_VECTORS = 1000
Share = Annotated[float, Field(ge=-0.001, le=1.001, allow_inf_nan=False)]
Model = Annotated[str, Field(min_length=1, max_length=512)]
Vector = Annotated[list[Share], Field(min_length=FINGERPRINT_SIZE, max_length=FINGERPRINT_SIZE)]


class Document(BaseModel):
    model_config = ConfigDict(extra="forbid")


class One(Document):
    """A fingerprint of `model`: local, mid, long, bin entropy, and a histogram of 16 bins; each in [0, 1]."""

    vector: Vector
    model: Model | None = None


class Several(Document):
    """Up to 1,000 of them."""

    vectors: Annotated[list[Vector], Field(min_length=1, max_length=MOST_VECTORS)]
    model: Model | None = None


ONE, SEVERAL = "One", "Several"


def _form(body: object) -> str:
    return SEVERAL if isinstance(body, dict) and "vectors" in body else ONE


# Read as one of them, so that what is wrong with it is said once.
OneOrSeveral = Annotated[Annotated[One, Tag(ONE)] | Annotated[Several, Tag(SEVERAL)], Discriminator(_form)]


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
    """`model`: whose they are, null before any came; `n`: fingerprints that were grouped at `at` (epoch seconds; online
    those that have not faded), `noise` of them in no cluster; `unit` of radii.
    """

    model: str | None
    mode: str
    unit: str
    n: int
    noise: int
    at: float
    clusters: list[Centroid]


class Prediction(BaseModel):
    """cluster: null off the manifold; distance, radius: of the nearest cluster, online of its nearest micro-cluster."""

    model: str | None
    cluster: int | None
    name: str | None
    distance: float | None
    radius: float | None
    on_manifold: bool
    traits: list[str]
    hint: Hint


class Classifications(BaseModel):
    """`model`: the one that the discovery was learned from; `unit`: what one of its points was, token or request (the
    mean of its tokens): fingerprints of the other kind are not like them.
    """

    run_id: str
    model: str
    unit: str
    results: list[Classification]


class Status(BaseModel):
    """`loaded`: whether /classify can answer; `error`: why the newest artifacts could not be taken."""

    loaded: bool
    directory: str | None
    run_id: str | None = None
    model: str | None = None
    unit: str | None = None
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
    model: str | None
    clusters: int
    n: int
    noise: int
    seconds: float


class ModelStats(BaseModel):
    """`seen`: fingerprints that came; `grouped`: those that its clusters were found among."""

    model: str
    seen: int
    grouped: int
    noise: int
    clusters: int
    micro_clusters: int


class Stats(BaseModel):
    """`waiting`: messages that are not in the store, at most `most_waiting`, and `waiting_bytes` of memory, at most
    `most_waiting_bytes`; grouped, clusters, online_seen, micro_clusters: of all `models` together; `models`: the one of
    the newest fingerprints first; `models_dropped`: how often one was forgotten for the newest `most_models`.
    """

    counters: dict[str, int]
    waiting: int
    most_waiting: int
    waiting_bytes: int
    most_waiting_bytes: int
    database: str
    uptime_seconds: float
    mode: str
    grouped: int
    clusters: int
    online_seen: int
    micro_clusters: int
    models: list[ModelStats]
    most_models: int
    models_dropped: int
    last_models_dropped: list[str]
    last_malformed: list[str]
    errors: list[str]


class Health(BaseModel):
    """`problems`: what fails now; `notices`: of what went wrong and was mended."""

    status: str
    problems: list[str]
    notices: list[str]


class Refusal(BaseModel):
    detail: str
