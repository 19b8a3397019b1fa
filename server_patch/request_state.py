"""Scheduler process: what one asking request carries from step to step."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec

from geomcli.eviction.radix_value import Received
from geomcli.server_patch import faults, watching
from geomcli.server_patch.request_options import CaptureOptions
from geomcli.server_patch.scheduler_state import scheduler
from geomcli.server_patch.values import PARAMS_KEY, key_and_options
from geomcli.server_patch.zone_sampling import Steered

_ATTRIBUTE = "_geom_state"
_STAMP_LIMIT = 1 << 31
_stamps = itertools.count()


class _Population:
    """The states of this process: while there are none, no step needs a look at its requests."""

    count = 0
    linked = 0  # those that ask for links
    headed = 0  # those that ask for head statistics
    derotated = 0  # those that ask for the de-rotated view
    routed = 0  # those that ask for the routing of experts
    observed = 0  # those whose numbers this process looks at itself
    logits = 0  # those of which logit statistics are taken
    steered = 0  # those whose zone chooses what they are sampled with
    ranked = 0  # those that rank the prefix cache
    read = 0  # those of which anything leaves the server


population = _Population()


class RequestState:
    """The request's options, and the stamp that the device knows it by.

    Lives on SGLang's Req, so it survives a retraction.
    """

    _counted = False  # not where making it failed

    def __init__(self, options: CaptureOptions) -> None:
        self.options = options
        self.stamp = 1 + next(_stamps) % (_STAMP_LIMIT - 1)
        self.always = options.stride == 1 and (options.limit == 0 or options.observed)
        self.firewall = None if options.guard is None else watching.firewall_of(options.guard)
        self.watched = None if self.firewall is None else self.firewall.watch()
        self.steered = Steered() if options.auto_sampling else None
        self.received = Received() if options.ranked else None
        self._announced = False
        population.count += 1
        population.linked += options.links > 0
        population.headed += options.headed
        population.derotated += options.derotate
        population.routed += bool(options.moe_layers)
        population.observed += options.observed
        population.steered += options.auto_sampling
        population.logits += options.logits
        population.ranked += options.ranked
        population.read += options.entries
        self._counted = True

    def __del__(self) -> None:
        if not self._counted:
            return
        population.count -= 1
        population.linked -= self.options.links > 0
        population.headed -= self.options.headed
        population.derotated -= self.options.derotate
        population.routed -= bool(self.options.moe_layers)
        population.observed -= self.options.observed
        population.steered -= self.options.auto_sampling
        population.logits -= self.options.logits
        population.ranked -= self.options.ranked
        population.read -= self.options.entries
        if self._announced and scheduler.publisher is not None:
            scheduler.publisher.forget(self.stamp)

    def announce(self, request: Any, key: str, options: str) -> None:
        """Tell whoever builds entries what the stamp stands for."""
        if scheduler.publisher is None or not self.options.entries:
            return
        scheduler.publisher.announce(self.stamp, (key, options, len(request.origin_input_ids)))
        self._announced = True

    def captures(self, output_index: int) -> bool:
        """Whether this output token's step is captured."""
        return self.always or self.options.captures(output_index) or self.options.watches(output_index)


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
            key, options = key_and_options(encoded, request.rid)
            state = RequestState(msgspec.json.decode(options, type=CaptureOptions))
            state.announce(request, key, options)
    except Exception:
        faults.report("a request has unreadable capture options; it is not captured")
        state = None
    setattr(request, _ATTRIBUTE, state)
    return state
