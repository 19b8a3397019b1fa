"""What the main process knows while it serves: options, the model's shape, counters. One instance a process."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from geomcli.server_patch.options import ModelShape, ServerOptions
from geomcli.server_patch.worker_client import EntryWorker


@dataclass
class Counters:
    """Monotone counts since the server started."""

    requests: int = 0
    entries: int = 0
    errors: int = 0
    _lock: Lock = field(default_factory=Lock, repr=False)

    def add(self, *, requests: int = 0, entries: int = 0, errors: int = 0) -> None:
        with self._lock:
            self.requests += requests
            self.entries += entries
            self.errors += errors

    def as_dict(self) -> dict[str, int]:
        return {"requests": self.requests, "entries": self.entries, "errors": self.errors}


class MainState:
    def __init__(self) -> None:
        self.options = ServerOptions()
        self.shape = ModelShape(0, (), 0)
        self.info: dict[str, Any] = {}
        self.tokenizer: Any = None
        self.requires_api_key = False
        self.counters = Counters()
        self.worker = EntryWorker()

    def configure(self, options: ServerOptions, info: dict[str, Any] | None, tokenizer_manager: Any) -> None:
        self.options = options
        self.info = info or {}
        self.tokenizer = getattr(tokenizer_manager, "tokenizer", None)
        if info:
            self.shape = ModelShape(
                info["layers_total"],
                tuple(info["layers_captured"]),
                info["heads_total"],
                tuple(info["moe_layers"]),
                info["moe_missing"],
            )


main = MainState()
