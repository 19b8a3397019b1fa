"""What the main process knows while it serves: options, the model's shape, counters. One instance a process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from geomcli.server_patch.request_options import ModelShape
from geomcli.server_patch.server_options import ServerOptions
from geomcli.server_patch.sidecar_push import Pusher
from geomcli.server_patch.values import Value
from geomcli.server_patch.worker_client import EntryWorker


@dataclass
class Counters:
    """Monotone counts since the server started."""

    requests: int = 0
    entries: int = 0
    errors: int = 0
    engine_bytes: int = 0  # left the device
    json_bytes: int = 0
    modes: Counter[str] = field(default_factory=Counter)  # requests by mode
    zones: Counter[str] = field(default_factory=Counter)  # entries by zone
    refused: Counter[str] = field(default_factory=Counter)  # requests by reason
    _lock: Lock = field(default_factory=Lock, repr=False)

    def add(self, *, requests: int = 0, errors: int = 0) -> None:
        with self._lock:
            self.requests += requests
            self.errors += errors

    def left(self, entries: Sequence[bytes], errors: int, values: Sequence[Value]) -> None:
        """Entries that leave the server, `errors` of which say so, and the values that came for them."""
        with self._lock:
            self.entries += len(entries)
            self.errors += errors
            for entry in entries:
                self.json_bytes += len(entry)
            for value in values:
                self.engine_bytes += value.size
                if value.zone:
                    self.zones[value.zone] += 1

    def ask(self, mode: str) -> None:
        with self._lock:
            self.requests += 1
            self.modes[mode] += 1

    def refuse(self, reason: str) -> None:
        with self._lock:
            self.refused[reason] += 1

    def as_dict(self) -> dict[str, int]:
        return {"requests": self.requests, "entries": self.entries, "errors": self.errors}


class MainState:
    def __init__(self) -> None:
        self.options = ServerOptions()
        self.shape = ModelShape(0, (), 0)
        self.info: dict[str, Any] = {}
        self.tokenizer: Any = None
        self.key = ""  # of --attention-api-key
        self.bearer_taken = False  # by SGLang's own --api-key
        self.counters = Counters()
        self.worker = EntryWorker()
        self.pusher: Pusher | None = None  # where there is a --attention-sidecar-url

    def configure(self, options: ServerOptions, info: dict[str, Any] | None, tokenizer_manager: Any) -> None:
        self.options = options
        self.info = info or {}
        self.tokenizer = getattr(tokenizer_manager, "tokenizer", None)
        if info:
            self.shape = ModelShape(
                info["layers_total"],
                tuple(info["layers_captured"]),
                info["heads_total"],
                info["not_derotated"],
                tuple(info["moe_layers"]),
                info["moe_missing"],
            )


main = MainState()
