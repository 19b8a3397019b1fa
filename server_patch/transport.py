"""Scheduler process: how a step's statistics get from the sampled logits to the processing of its result.

SGLang 0.5.20 has auxiliary outputs for this: copied to the host together with the tokens. Before that the plan rides on
the logits as an attribute, and a hook on the result's own copy does the same.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

ATTRIBUTE = "_geom_output"
COPY_TARGET = "sglang.srt.managers.utils.GenerationBatchResult.copy_to_cpu"


def has_auxiliary_outputs() -> bool:
    """Whether this SGLang carries auxiliary outputs itself."""
    return find_spec("sglang.srt.managers.auxiliary_output") is not None


def attach(logits_output: Any, step: Any) -> None:
    """Send `step` (an object with copy_to_host) along with its logits."""
    if not hasattr(logits_output, "auxiliary_device_output"):
        setattr(logits_output, ATTRIBUTE, step)
        return
    from sglang.srt.managers.auxiliary_output import append_auxiliary_output

    output = append_auxiliary_output(logits_output.auxiliary_device_output, step)
    logits_output.auxiliary_device_output = output


def before_copy_to_cpu(result: Any, *_: Any, **__: Any) -> None:
    """Before 0.5.20: start our copies in front of SGLang's, so that its copy_done covers them."""
    step = getattr(result.logits_output, ATTRIBUTE, None)
    if step is not None:
        from sglang.srt.managers.utils import _async_d2h

        setattr(result.logits_output, ATTRIBUTE, step.copy_to_host(_async_d2h))


def output_of(result: Any) -> Any:
    """What was attached, on the host; may be a composite of several outputs, or None."""
    found = getattr(result, "auxiliary_host_output", None)
    step = getattr(result.logits_output, ATTRIBUTE, None)
    if found is not None or step is None:
        return found
    # Without overlap SGLang copies nothing.
    return step if hasattr(step, "publish") else step.copy_to_host(lambda tensor: tensor.to("cpu"))


def forget(logits_output: Any) -> None:
    """Take off what an earlier step left on a logits object that its runner uses again."""
    getattr(logits_output, "__dict__", {}).pop(ATTRIBUTE, None)
