"""What the next question is asked with: sampling and capture."""

from __future__ import annotations

from typing import Any

import msgspec

from geomcli.recommendation import Advice


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """Sampling, capture and firewall of the next request. None: as the server likes it. `capture`: raw, sketch,
    fingerprint; `firewall`: one of geomcli.request.FIREWALL_ACTIONS.
    """

    temperature: float = 0.0
    top_p: float | None = None
    max_tokens: int = 512
    capture: str | None = None
    top_k: int | None = None
    layers: tuple[int, ...] | None = None
    firewall: str | None = None
    system: str = ""

    @property
    def sampling(self) -> dict[str, Any]:
        """Request fields of sampling."""
        fields = {"max_tokens": self.max_tokens, "temperature": self.temperature, "top_p": self.top_p}
        return {name: value for name, value in fields.items() if value is not None}

    def changed(self, **values: Any) -> Ask:
        """A copy with other values."""
        return msgspec.structs.replace(self, **values)

    def advised(self, advice: Advice) -> Ask:
        """A copy that follows advice; what the advice leaves open stays."""
        given = {"temperature": advice.temperature, "top_p": advice.top_p, "capture": advice.capture}
        values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        # A server refuses a number of links beside a mode that has none.
        return self.changed(**values, top_k=self.top_k if advice.capture == "raw" else None)

    def described(self) -> str:
        """One short phrase, like "temp 0.6  top_p 0.95"."""
        parts = [f"temp {self.temperature:g}"]
        parts += [f"top_p {self.top_p:g}"] if self.top_p is not None else []
        parts += [self.capture] if self.capture else []
        parts += [f"firewall {self.firewall}"] if self.firewall else []
        return "  ".join(parts)
