"""Scheduler process: SGLang's attention modules by layer."""

from __future__ import annotations

from typing import Any


def attention_of(model: Any, layer: int, pool: Any) -> Any:
    """The attention module that decodes this layer: MLA has a second one for its prefill, of other widths."""
    found = [
        m for m in model.modules() if type(m).__name__ == "RadixAttention" and m.layer_id == layer
        and not m.is_cross_attention
    ]  # fmt: skip
    width = pool.get_key_buffer(layer).shape[-1]
    fitting = [m for m in found if m.qk_head_dim == width]
    if not fitting:
        raise ValueError(f"layer {layer} has no attention over the key pool (its keys are {width} wide)")
    return fitting[0]
