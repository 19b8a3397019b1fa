"""Scheduler process: a step's records go to whoever builds entries, before SGLang sends the tokens they are of."""

from __future__ import annotations

from typing import Any

from geomcli.server_patch import faults, radix_policy, transport, watching, zone_sampling
from geomcli.server_patch.observed import Observed
from geomcli.server_patch.request_state import population
from geomcli.server_patch.scheduler_state import scheduler


def before_process(_processor: Any, _batch: Any, result: Any) -> None:
    """Never raises: what runs here runs in the scheduler's loop, where an exception ends the server."""
    if scheduler.publisher is None and not population.observed:
        return
    try:
        step = _step(transport.output_of(result))
        if step is None:
            return
        judged = _judged(step)
        if population.ranked:
            _rank(step)
        if scheduler.publisher is not None:
            step.publish(scheduler.publisher, judged)
    except Exception:
        faults.report("a step's records could not be sent; its tokens carry error entries")


def _judged(step: Any) -> tuple[Any, ...]:
    """What the firewalls decide, and the zones for the next tokens; a fault lets the answers go on."""
    if not population.observed:
        return ()
    try:
        rows = [row for row in step.watched_rows() if row.state.options.judged]
        observed = Observed(rows, step.watched_records(), step.watched_heads, step.watched_logits())
        zone_sampling.take(observed)
        return watching.judge(observed)
    except Exception:
        faults.report("a step could not be looked at by the firewall or for its zones; its answers go on")
        return ()


def _rank(step: Any) -> None:
    try:
        radix_policy.observe(step.watched_rows(), step.watched_records())
    except Exception:
        faults.report("a step could not be taken in for the prefix cache")


def _step(output: Any) -> Any:
    """Our own among the auxiliary outputs of a step."""
    if output is None or hasattr(output, "publish"):
        return output
    return next((found for part in getattr(output, "outputs", ()) if (found := _step(part)) is not None), None)
