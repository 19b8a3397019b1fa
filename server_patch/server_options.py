"""The server's flags as checked values: what may be captured of any request, and what is done with it.

Pure: no SGLang, no torch. A value out of range is a ValueError whose text names the flag and its range.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from geomcli.eviction.radix_value import DEFAULT_WEIGHT
from geomcli.server_patch import eviction_options, firewall_options, radix_options
from geomcli.server_patch.firewall_options import Guard, Known

Mode = Literal["raw", "sketch", "fingerprint"]
MAX_TOP_K = 64
SKETCH_HUBS = 32
SOURCES = ("auto", "tap", "probe")
MIN_CHUNK, MAX_CHUNK = 256, 16384
RANKED_STRIDE = 8  # of requests that did not ask, where the prefix cache is ranked by attention
MAX_INT = 2**31 - 1
# Flag -> its attribute of ServerOptions, the least and the greatest value.
RANGES: dict[str, tuple[str, int, int]] = {
    "--attention-tokens-top-k": ("top_k", 1, MAX_TOP_K),
    "--attention-tokens-max": ("max_entries", 0, MAX_INT),
    "--attention-tokens-stride": ("stride", 1, MAX_INT),
    "--attention-tokens-window": ("window", 0, MAX_INT),
    "--attention-fingerprint-max-steps": ("max_steps", 0, MAX_INT),
    "--attention-sink-tokens": ("sink_tokens", 0, 1024),
    "--attention-chunk-size": ("chunk_size", MIN_CHUNK, MAX_CHUNK),
    "--attention-max-concurrent-capture": ("max_concurrent", 0, MAX_INT),
}
_ZMQ_URL = re.compile(r"tcp://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})|ipc://\S+")
_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


class ServerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The server's flags; each is a ceiling that a request can only tighten (`top_k` is a default)."""

    enabled: bool = False
    fingerprint_mode: bool = False
    fingerprint_only: bool = False
    sketch_mode: bool = False
    top_k: int = 16
    max_entries: int = 4096
    stride: int = 1
    window: int = 0
    layers: str = "last"
    source: str = "auto"
    max_steps: int = 256
    sink_tokens: int = 4
    chunk_size: int = 2048
    mask_system_prompt: bool = False
    derotate: bool = False
    api_key: str = ""
    cors_origins: str = "*"
    max_concurrent: int = 0
    disable_in_production: bool = False
    sidecar_url: str = ""
    guard: Guard | None = None  # watches every answer
    calibrations: tuple[Known, ...] = ()  # of detectors
    auto_sampling: bool = False  # of requests that set neither temperature nor top_p
    retention: float | None = None  # share of its KV that a running request keeps, None: all
    spectral_radix: bool = False  # the prefix cache is ranked by received attention
    spectral_weight: float = DEFAULT_WEIGHT

    @property
    def ranks(self) -> bool:
        """Whether every request's attention is taken in for the prefix cache."""
        return self.enabled and self.spectral_radix and self.spectral_weight > 0

    @property
    def observes(self) -> bool:
        """Whether answers are captured that nobody asked to be."""
        return self.guard is not None or self.auto_sampling or self.ranks

    @property
    def observer(self) -> str:
        """The flag that captures such answers, and what it does; "" without one."""
        if self.guard is not None:
            return f"{firewall_options.FLAG} {self.guard.action} watches"
        if self.auto_sampling:
            return "--attention-auto-sampling watches"
        if self.spectral_radix and self.spectral_weight > 0:
            return f"{radix_options.POLICY_FLAG} {radix_options.POLICY} ranks by"
        if self.retention is not None:
            return f"{eviction_options.FLAG} scores by"
        return ""

    @property
    def default_mode(self) -> Mode:
        if self.fingerprint_only or self.fingerprint_mode:
            return "fingerprint"
        return "sketch" if self.sketch_mode else "raw"

    def check(self) -> None:
        """ValueError naming the flag, if a value or a combination cannot work."""
        if self.sketch_mode and (self.fingerprint_mode or self.fingerprint_only):
            raise ValueError("--attention-sketch-mode and --attention-fingerprint-mode/-only exclude each other")
        if self.derotate and self.fingerprint_only:
            raise ValueError("--attention-derotate and --attention-fingerprint-only exclude each other")
        for flag, (name, low, high) in RANGES.items():
            if not low <= (value := getattr(self, name)) <= high:
                raise ValueError(f"{flag} must be {low}..{high}, got {value}")
        if not 0 <= self.spectral_weight <= 1:
            raise ValueError(f"--spectral-weight must be 0..1, got {self.spectral_weight}")
        parse_layers(self.layers, None)
        parse_origins(self.cors_origins)
        found = _ZMQ_URL.fullmatch(self.sidecar_url)
        if self.sidecar_url and (found is None or int(found["port"] or 1) not in range(1, 65536)):
            raise ValueError(
                "--attention-sidecar-url must be tcp://HOST:PORT, as in tcp://localhost:9001, or ipc://PATH, got "
                f"{self.sidecar_url!r:.40}"
            )
        if any(not 32 < ord(letter) < 127 for letter in self.api_key):
            raise ValueError("--attention-api-key must be printable ASCII without spaces, as a header can carry it")


def parse_origins(spec: str) -> frozenset[str] | None:
    """The origins that `--attention-cors-origins` allows, as browsers send them; None: every one (`*`)."""
    parts = [part.strip() for part in spec.split(",")]
    if parts == ["*"]:
        return None
    for part in parts:
        if not _ORIGIN.fullmatch(part):
            raise ValueError(
                "--attention-cors-origins must be * or origins like https://example.com:8080, with commas between "
                f"them, got {part!r}"
            )
    return frozenset(part.lower() for part in parts)


def parse_layers(spec: str, total: int | None) -> tuple[int, ...]:
    """Layer ids of `last`, `mid`, `auto` or a comma-separated list; `total` None checks the form only."""
    spec = spec.strip().lower()
    if spec in ("last", "mid", "auto"):
        if total is None:
            return ()
        if spec == "last":
            return (total - 1,)
        if spec == "mid":
            return (total // 2,)
        return tuple(sorted({total // 4, total // 2, 3 * total // 4, total - 1}))
    try:
        layers = sorted({int(part) for part in spec.split(",")})
    except ValueError:
        raise ValueError(
            f"--attention-capture-layers must be last, auto, mid or layer ids like 0,10,20, got {spec!r}"
        ) from None
    if layers[0] < 0 or (total is not None and layers[-1] >= total):
        limit = "" if total is None else f"..{total - 1}"
        wrong = layers[0] if layers[0] < 0 else layers[-1]
        raise ValueError(f"--attention-capture-layers: layer ids must be 0{limit}, got {wrong}")
    return tuple(layers)


def silent_stride(server: ServerOptions) -> int:
    """Of requests that did not ask: a firewall sees what it would see of those that do."""
    return server.stride if server.guard else max(server.stride, RANKED_STRIDE)
