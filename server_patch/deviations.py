"""Where SGLang's own attention is not the model's: entries say what the engine computed, so that has to be said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def deviations(model: Any, config: Any, backends: Sequence[str], context_length: int) -> list[str]:
    """One sentence for each; `config` is the Hugging Face text configuration, `backends` those of decode and prefill.

    Looks at what the model's attention modules ask for and what SGLang's backends are known to do with it
    (tests/engine/families compares both with the model, tests/canary with SGLang's sources).
    """
    attentions = [m for m in model.modules() if type(m).__name__ == "RadixAttention" and not m.is_cross_attention]
    windowed = [m for m in attentions if (m.sliding_window_size or -1) > -1]
    found = []
    window = _window(config)
    if window is not None and window < context_length and not windowed:
        found.append(f"SGLang leaves out this model's sliding window of {window}: every key is attended to")
    caps = {m.logit_cap for m in attentions if (m.logit_cap or 0) > 0}
    if caps and "torch_native" in backends:
        found.append(f"torch_native leaves out this model's soft-cap of attention scores ({max(caps):g})")
    if windowed and backends[0] == "triton":
        found.append("decode of the triton backend sees one key less than the sliding window has")
    return found


def _window(config: Any) -> int | None:
    """Keys that a layer of the published model sees, if some of its layers have a sliding window."""
    window = getattr(config, "sliding_window", None)
    if not isinstance(window, int) or getattr(config, "use_sliding_window", True) is False:
        return None
    kinds = getattr(config, "layer_types", None)
    return window if kinds is None or "sliding_attention" in kinds else None
