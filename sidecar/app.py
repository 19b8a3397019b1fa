"""The HTTP interface: what the sidecar knows, asked by routers, explorers and Prometheus."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

import numpy as np
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer

from geomcli import __version__
from geomcli.errors import GeomError, StoreError
from geomcli.sidecar import documents as d
from geomcli.sidecar import metrics
from geomcli.sidecar.grouping import UnknownModel
from geomcli.sidecar.guard import Guard
from geomcli.sidecar.regrouping import Regrouping
from geomcli.sidecar.service import Service
from geomcli.sidecar.traffic import Cluster, Grouped, Traffic
from geomcli.zones import ZONES_V1, classify

_bearer = HTTPBearer(auto_error=False)  # for /openapi.json: Guard asks for the key
_Model = Annotated[d.Model | None, Query()]
_RULES = {rule.zone: rule for rule in ZONES_V1.rules}
_PROBLEMS = 10  # of a body, that are named
_FLUSHES = 8  # that wait at once; each takes a thread
_REFUSALS: dict[int | str, dict[str, Any]] = {status: {"model": d.Refusal} for status in (400, 401, 404, 409, 413, 503)}


def application(service: Service, *, key: str = "") -> FastAPI:
    """The app; its end closes the service. `key`: a bearer token that all but /health ask for."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(title="geom sidecar", version=__version__, lifespan=lifespan)

    pages = (app.openapi_url, app.docs_url, app.redoc_url, app.swagger_ui_oauth2_redirect_url)
    app.add_middleware(Guard, key=key, open_paths=["/health", *filter(None, pages)])

    @app.exception_handler(RequestValidationError)
    async def refused(_request: Request, error: RequestValidationError) -> JSONResponse:
        """Where and why, without what was sent: that may be long, and no JSON."""
        problems = error.errors()
        said = [{"type": p["type"], "loc": _place(p["loc"]), "msg": p["msg"]} for p in problems[:_PROBLEMS]]
        if len(problems) > _PROBLEMS:
            left = len(problems) - _PROBLEMS
            said.append({"type": "more", "loc": ["body"], "msg": f"{left} more of the kind"})
        return JSONResponse({"detail": said}, 422)

    @app.exception_handler(UnknownModel)
    async def unknown(_request: Request, error: UnknownModel) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 404)

    router = APIRouter(dependencies=[Depends(_bearer)], responses=_REFUSALS)
    _add_traffic(router, service)
    _add_discovery(router, service)
    app.include_router(router)

    @app.get("/health", responses={413: _REFUSALS[413], 503: {"model": d.Health}})
    async def health(response: Response) -> d.Health:
        """Whether messages are read and stored."""
        problems = service.problems()
        response.status_code = 503 if problems else 200
        notices = [*service.storage.notices, *service.receiver.notices]
        return d.Health(status="failing" if problems else "ok", problems=problems, notices=notices)

    return app


def _add_traffic(router: APIRouter, service: Service) -> None:
    grouping = service.grouping
    mode = "online" if grouping.is_online else "batch"

    async def current(model: str | None) -> tuple[str | None, Grouped]:
        if not grouping.is_online:
            return _grouped(grouping.of(model))
        return _grouped(await run_in_threadpool(grouping.current, model))  # it may wait for fingerprints that come

    @router.get("/centroids")
    async def centroids(model: _Model = None) -> d.Centroids:
        """The clusters of a model's live traffic, by default of the one of the newest fingerprints."""
        name, now = await current(model)
        return d.Centroids(
            model=name, mode=mode, unit="radians" if grouping.is_online else "standard deviations", n=now.n,
            noise=now.noise, at=now.at, clusters=[_centroid(cluster) for cluster in now.clusters],
        )  # fmt: skip

    @router.post("/predict")
    async def predict(body: d.One) -> d.Prediction:
        """The live cluster of a fingerprint, with its traits and the sampling that its zone suggests."""
        name, now = await current(body.model)
        cluster, distance, radius = now.assign(np.array(body.vector))
        zone = classify(np.array(body.vector)).zone if cluster is None else cluster.zone
        return d.Prediction(
            model=name,
            cluster=None if cluster is None else cluster.cluster,
            name=None if cluster is None else cluster.name,
            distance=None if np.isnan(distance) else distance,
            radius=None if np.isnan(radius) else radius,
            on_manifold=cluster is not None,
            traits=[] if cluster is None else [trait.name for trait in cluster.traits],
            hint=_hint(zone),
        )

    regrouping = Regrouping(grouping)
    flushing = CapacityLimiter(_FLUSHES)

    @router.post("/recluster")
    async def recluster(model: _Model = None) -> d.Regrouped:
        """Group the newest fingerprints of a model now. Those who ask while one waits are answered by that one."""
        try:
            name, now = _grouped(await regrouping.of(model))
        except GeomError as error:
            raise HTTPException(503, f"the fingerprints could not be grouped: {error}") from None
        return d.Regrouped(model=name, clusters=len(now.clusters), n=now.n, noise=now.noise, seconds=now.seconds)

    @router.post("/storage/flush")
    async def flush() -> d.Flushed:
        """Return when everything that was received is in the store."""
        try:
            await to_thread.run_sync(service.storage.flush, limiter=flushing)
        except StoreError as error:
            raise HTTPException(503, str(error)) from None
        return d.Flushed(stored=service.counters.stored, waiting=len(service.storage))

    @router.get("/stats")
    async def stats() -> d.Stats:
        models = [_model_stats(traffic) for traffic in grouping.traffic]
        return d.Stats(
            counters=service.counters.as_dict(),
            waiting=len(service.storage),
            most_waiting=service.storage.most,
            waiting_bytes=service.storage.waiting_bytes,
            most_waiting_bytes=service.storage.most_bytes,
            database=str(service.storage.path),
            uptime_seconds=time.time() - service.counters.started,
            mode=mode,
            grouped=sum(one.grouped for one in models),
            clusters=sum(one.clusters for one in models),
            online_seen=sum(one.seen for one in models) if grouping.is_online else 0,
            micro_clusters=sum(one.micro_clusters for one in models),
            models=models,
            most_models=grouping.most_models,
            models_dropped=grouping.models_dropped,
            last_models_dropped=list(grouping.last_dropped),
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
            loaded=True, directory=root, run_id=m.run_id, model=m.model, unit=m.unit, n=m.n, clusters=len(m.clusters),
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
    async def classify_(body: d.OneOrSeveral) -> d.Classifications:
        """Fingerprints against the discovery: nearest medoid inside its radius, and how sure that is."""
        classifier = discoveries.classifier
        if classifier is None:
            raise HTTPException(409, f"no discovery is loaded: {discoveries.error}, then POST /discovery/reload")
        learned = classifier.artifacts.manifest
        if body.model not in (None, learned.model):
            raise HTTPException(
                409, f"the discovery {learned.run_id} is of the model {learned.model}, not of {body.model}. Try: "
                "geom discover --model MODEL, then POST /discovery/reload"
            )  # fmt: skip
        vectors = [body.vector] if isinstance(body, d.One) else body.vectors
        return d.Classifications(
            run_id=learned.run_id,
            model=learned.model,
            unit=learned.unit,
            results=classifier.classify(np.array(vectors)),
        )


def _place(where: Sequence[Any]) -> list[Any]:
    """Without the name of the form that a body was read as, which is nothing in the body."""
    return [part for at, part in enumerate(where) if not (at == 1 and part in (d.ONE, d.SEVERAL))]


def _grouped(traffic: Traffic | None) -> tuple[str | None, Grouped]:
    return (None, Grouped()) if traffic is None else (traffic.model, traffic.now)


def _model_stats(traffic: Traffic) -> d.ModelStats:
    now, online = traffic.now, traffic.online
    return d.ModelStats(
        model=traffic.model, seen=traffic.seen, grouped=now.n, noise=now.noise, clusters=len(now.clusters),
        micro_clusters=0 if online is None else online.count,
    )  # fmt: skip


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
