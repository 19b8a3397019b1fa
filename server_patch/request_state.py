"""Scheduler process: what one asking request carries from step to step."""

from __future__ import annotations

from typing import Any

import msgspec

from geomcli.server_patch import faults
from geomcli.server_patch.options import CaptureOptions
from geomcli.server_patch.values import PARAMS_KEY

_ATTRIBUTE = "_geom_state"


class _Population:
    """How many states there are in this process: while there are none, no step needs a look at its requests."""

    count = 0


population = _Population()


class RequestState:
    """The request's options, and the name that the device knows it by.

    Lives on SGLang's Req, so it survives a retraction.
    """

    def __init__(self, options: CaptureOptions, encoded: str = "") -> None:
        population.count += 1
        self.options = options
        self.encoded = encoded
        self._always = options.stride == 1 and options.limit == 0
        self.stamp = 0  # 0 until it was written to the device

    def __del__(self) -> None:
        population.count -= 1

    def captures(self, output_index: int) -> bool:
        """Whether this output token's step is captured (stride and limit)."""
        if self._always:
            return True
        number, offset = divmod(output_index, self.options.stride)
        return offset == 0 and (self.options.limit == 0 or number < self.options.limit)

    def stops_at(self, output_index: int) -> bool:
        """Whether this token is the first one that would have been captured had the limit not been reached."""
        number, offset = divmod(output_index, self.options.stride)
        return offset == 0 and self.options.limit > 0 and number == self.options.limit


def state_of(request: Any) -> RequestState | None:
    """The state of a request that asked, else None; decoded once and kept on the request."""
    try:
        known: RequestState | None = getattr(request, _ATTRIBUTE)
        return known
    except AttributeError:
        pass
    state = None
    try:
        encoded = (getattr(request.sampling_params, "custom_params", None) or {}).get(PARAMS_KEY)
        if encoded is not None:
            state = RequestState(msgspec.json.decode(encoded, type=CaptureOptions), encoded)
    except Exception:
        faults.report("a request has unreadable capture options; it is not captured")
    setattr(request, _ATTRIBUTE, state)
    return state
