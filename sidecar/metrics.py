"""The sidecar's counts as Prometheus metrics, made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE

from geomcli.sidecar.service import Service
from geomcli.sidecar.traffic import Grouped

_COUNTED = {
    "received": "Messages that were taken.",
    "malformed": "Frames that were no message.",
    "oversized": "Frames that were too long.",
    "stored": "Fingerprints written to the store.",
    "duplicates": "Messages of fingerprints that were stored before.",
    "dropped": "Messages given up because the store could not be written.",
    "write_errors": "Batches that could not be written.",
}


class _Collector:
    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        service = self._service
        counted = service.counters.as_dict()
        for name, said in _COUNTED.items():
            yield CounterMetricFamily(f"geom_sidecar_{name}", said, value=counted[name])
        for name, said, value in (
            ("waiting", "Messages that are not in the store yet.", len(service.storage)),
            ("waiting_bytes", "Memory that they take.", service.storage.waiting_bytes),
            ("discovery_loaded", "1 where artifacts are loaded.", int(service.discoveries.classifier is not None)),
        ):
            yield GaugeMetricFamily(f"geom_sidecar_{name}", said, value=value)
        every = [(traffic.model, traffic.now) for traffic in service.grouping.traffic]
        of_models: tuple[tuple[str, str, Callable[[Grouped], float]], ...] = (
            ("clusters", "Clusters of live traffic.", lambda now: len(now.clusters)),
            ("grouped", "Fingerprints they were found among.", lambda now: now.n),
            ("noise", "Fingerprints in none of them.", lambda now: now.noise),
            ("grouping_seconds", "What finding them took.", lambda now: now.seconds),
        )
        for name, said, value_of in of_models:
            metric = GaugeMetricFamily(f"geom_sidecar_{name}", said, labels=["model"])
            for model, now in every:
                metric.add_metric([model], value_of(now))
            yield metric
        yield CounterMetricFamily(
            "geom_sidecar_models_dropped", "Models forgotten for others.", value=service.grouping.models_dropped
        )
        yield CounterMetricFamily("geom_sidecar_groupings", "How often they were found.", value=service.grouping.runs)


def text(service: Service) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(service))
    return generate_latest(registry)


__all__ = ["CONTENT_TYPE", "text"]
