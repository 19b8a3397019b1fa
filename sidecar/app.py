"""The HTTP interface: what the sidecar knows, asked by routers, explorers and Prometheus."""

from __future__ import annotations

import hmac
import time
from collections.abc import AsyncIterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import asynccontextmanager
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from geomcli import __version__
from geomcli.errors import GeomError, StoreError
from geomcli.sidecar import documents as d
from geomcli.sidecar import metrics
from geomcli.sidecar.grouping import Cluster
from geomcli.sidecar.service import Service
from geomcli.zones import ZONES_V1, classify

# Annotations are read outside of the function that they stand in.
_bearer = HTTPBearer(auto_error=False)
_RULES = {rule.zone: rule for rule in ZONES_V1.rules}
_REFUSALS: dict[int | str, dict[str, Any]] = {status: {"model": d.Refusal} for status in (400, 401, 409, 503)}


def application(service: Service, *, key: str = "") -> FastAPI:
    """The app; its end closes the service. `key`: a bearer token that all but /health ask for."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(title="geom sidecar", version=__version__, lifespan=lifespan)

    async def allowed(given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> None:
        # Headers come as Latin-1.
        said = b"" if given is None else given.credentials.encode("latin-1", "replace")
        if key and not hmac.compare_digest(said, key.encode()):
            raise HTTPException(
                401, "this sidecar wants its key: Authorization: Bearer KEY.", {"WWW-Authenticate": "Bearer"}
            )

    @app.exception_handler(RequestValidationError)
    async def refused(_request: Request, error: RequestValidationError) -> JSONResponse:
        """Where and why, without what was sent: that may be long, and no JSON."""
        said = [{name: problem[name] for name in ("type", "loc", "msg")} for problem in error.errors()]
        return JSONResponse({"detail": said}, 422)

    router = APIRouter(dependencies=[Depends(allowed)], responses=_REFUSALS)
    _add_traffic(router, service)
    _add_discovery(router, service)
    app.include_router(router)

    @app.get("/health", responses={503: {"model": d.Health}})
    async def health(response: Response) -> d.Health:
        """Whether messages are read and stored."""
        problems = service.problems()
        response.status_code = 503 if problems else 200
        return d.Health(status="failing" if problems else "ok", problems=problems)

    return app


def _add_traffic(router: APIRouter, service: Service) -> None:
    grouping = service.grouping
    mode = "online" if grouping.is_online else "batch"

    @router.get("/centroids")
    async def centroids() -> d.Centroids:
        """The clusters of live traffic."""
        now = grouping.now
        return d.Centroids(
            mode=mode, unit="radians" if grouping.is_online else "standard deviations", n=now.n, noise=now.noise,
            at=now.at, clusters=[_centroid(cluster) for cluster in now.clusters],
        )  # fmt: skip

    @router.post("/predict")
    async def predict(body: d.One) -> d.Prediction:
        """The live cluster of a fingerprint, with its traits and the sampling that its zone suggests."""
        cluster, distance, radius = grouping.predict(np.array(body.vector))
        zone = classify(np.array(body.vector)).zone if cluster is None else cluster.zone
        return d.Prediction(
            cluster=None if cluster is None else cluster.cluster,
            name=None if cluster is None else cluster.name,
            distance=None if np.isnan(distance) else distance,
            radius=None if np.isnan(radius) else radius,
            on_manifold=cluster is not None,
            traits=[] if cluster is None else [trait.name for trait in cluster.traits],
            hint=_hint(zone),
        )

    @router.post("/recluster")
    def recluster() -> d.Regrouped:
        """Group the newest fingerprints now."""
        try:
            now = grouping.recluster()
        except (GeomError, BrokenProcessPool) as error:
            raise HTTPException(503, f"the fingerprints could not be grouped: {error}") from None
        return d.Regrouped(clusters=len(now.clusters), n=now.n, noise=now.noise, seconds=now.seconds)

    @router.post("/storage/flush")
    def flush() -> d.Flushed:
        """Return when everything that was received is in the store."""
        try:
            service.storage.flush()
        except StoreError as error:
            raise HTTPException(503, str(error)) from None
        return d.Flushed(stored=service.counters.stored, waiting=len(service.storage))

    @router.get("/stats")
    async def stats() -> d.Stats:
        return d.Stats(
            counters=service.counters.as_dict(),
            waiting=len(service.storage),
            database=str(service.storage.path),
            uptime_seconds=time.time() - service.counters.started,
            mode=mode,
            grouped=grouping.now.n,
            clusters=len(grouping.now.clusters),
            online_seen=grouping.online.seen,
            micro_clusters=grouping.online.count,
            last_malformed=list(service.receiver.reasons),
            errors=service.problems(),
        )

    @router.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """The same as Prometheus metrics."""
        return Response(metrics.text(service), media_type=metrics.CONTENT_TYPE)


def _add_discovery(router: APIRouter, service: Service) -> None:
    discoveries = service.discoveries

    def status() -> d.Status:
        classifier = discoveries.classifier
        root = None if discoveries.root is None else str(discoveries.root)
        if classifier is None:
            return d.Status(loaded=False, directory=root, error=discoveries.error)
        m = classifier.artifacts.manifest
        return d.Status(
            loaded=True, directory=root, run_id=m.run_id, model=m.model, n=m.n, clusters=len(m.clusters),
            created=m.created, error=discoveries.error,
        )  # fmt: skip

    @router.get("/discovery/status")
    async def discovery_status() -> d.Status:
        """The artifacts that /classify answers from."""
        return status()

    @router.post("/discovery/reload")
    def reload() -> d.Reloaded:
        """Take the newest artifacts; the ones in use stay when they are damaged."""
        return d.Reloaded(reloaded=discoveries.reload(), status=status())

    @router.post("/classify")
    async def classify_(body: d.One | d.Several) -> d.Classifications:
        """Fingerprints against the discovery: nearest medoid inside its radius, and how sure that is."""
        classifier = discoveries.classifier
        if classifier is None:
            raise HTTPException(
                409, f"no discovery is loaded: {discoveries.error} Try: geom discover, then POST /discovery/reload"
            )
        vectors = [body.vector] if isinstance(body, d.One) else body.vectors
        return d.Classifications(
            run_id=classifier.artifacts.manifest.run_id,
            results=classifier.classify(np.array(vectors)),
        )


def _centroid(cluster: Cluster) -> d.Centroid:
    return d.Centroid(
        cluster=cluster.cluster,
        name=cluster.name,
        size=cluster.size,
        zone=cluster.zone,
        radius=cluster.radius,
        centroid=[float(value) for value in cluster.centroid],
        traits=[
            d.Evidence(name=t.name, metric=t.metric, value=t.value, threshold=t.threshold, deviations=t.deviations)
            for t in cluster.traits
        ],
        hint=_hint(cluster.zone),
    )


def _hint(zone: str) -> d.Hint:
    rule = _RULES.get(zone)
    if rule is None:
        return d.Hint(zone=zone, temperature=None, top_p=None)
    return d.Hint(zone=zone, temperature=rule.temperature, top_p=rule.top_p)
