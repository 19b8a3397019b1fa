"""Main process: our counts as Prometheus metrics, in the /metrics of a server started with --enable-metrics.

SGLang uses Prometheus' multiprocess mode: /metrics reads files that every process writes into. Ours are written when
/metrics is asked for, so that counting costs nothing else while tokens are served.
"""

from __future__ import annotations

from collections import Counter as Counts
from typing import Any

from geomcli.schema import CAPTURE_MODES
from geomcli.server_patch import arrivals, faults, guards, state
from geomcli.zones import ZONE_NAMES


class Metrics:
    """Registered once; `publish` brings them up to date."""

    def __init__(self) -> None:
        # Imported as late as this: the directory of the multiprocess mode must be set before.
        from prometheus_client import Counter, Gauge

        def gauge(name: str, text: str) -> Any:
            return Gauge(name, text, multiprocess_mode="mostrecent")

        self._requests = Counter("geom_requests", "Requests whose attention was captured.", ["mode"])
        self._zones = Counter("geom_zone_entries", "Entries with numbers, by zone.", ["zone"])
        self._refused = Counter("geom_refused_requests", "Requests that asked and were refused.", ["reason"])
        self._plain = {
            "entries": Counter("geom_entries", "Entries that left the server."),
            "errors": Counter("geom_entry_errors", "Tokens and answers whose capture failed."),
            "engine_bytes": Counter("geom_engine_bytes", "Bytes that left the engine for entries."),
            "json_bytes": Counter("geom_json_bytes", "Bytes of entries as JSON."),
            "faults": Counter("geom_faults", "Faults inside the plugin, in the main process."),
            "sent": Counter("geom_pushed", "Fingerprints handed over for the sidecar."),
            "dropped": Counter("geom_push_dropped", "Fingerprints dropped: no sidecar, or one that takes no more."),
        }
        self._active = gauge("geom_active_captures", "Sequences that are being captured.")
        self._limit = gauge("geom_max_concurrent_captures", "Limit of sequences captured at once, 0 = none.")
        self._waiting = gauge("geom_waiting_requests", "Requests of which values wait for their answer.")
        self._published: dict[tuple[str, str], int] = {}
        for metric, labels in (
            (self._requests, CAPTURE_MODES), (self._zones, ZONE_NAMES), (self._refused, guards.REASONS),
        ):  # fmt: skip
            for label in labels:
                metric.labels(label)

    def publish(self) -> None:
        counters, pusher = state.main.counters, state.main.pusher
        totals = {
            "faults": faults.total(),
            "sent": pusher.sent if pusher else 0,
            "dropped": pusher.dropped if pusher else 0,
        }
        for name, metric in self._plain.items():
            self._advance(metric, name, "", totals[name] if name in totals else getattr(counters, name))
        self._advance_all(self._requests, "modes", counters.modes)
        self._advance_all(self._zones, "zones", counters.zones)
        self._advance_all(self._refused, "refused", counters.refused)
        self._active.set(guards.active())
        self._limit.set(state.main.options.max_concurrent)
        self._waiting.set(arrivals.waiting())

    def _advance_all(self, metric: Any, name: str, totals: Counts[str]) -> None:
        for label, total in totals.copy().items():
            self._advance(metric.labels(label), name, label, total)

    def _advance(self, metric: Any, name: str, label: str, total: int) -> None:
        """Prometheus' counters can only be added to."""
        metric.inc(total - self._published.get((name, label), 0))
        self._published[name, label] = total
