"""Which tiny model is run on which attention backend, and what the engine is known to do differently from the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.engine.families.tiny_models import FAMILIES, WINDOW


@dataclass(frozen=True)
class Case:
    """`configuration` and `windows` (keys seen in prefill and in decode) turn the oracle into the engine's model."""

    family: str
    backend: str
    configuration: dict[str, Any] = field(default_factory=dict)
    windows: tuple[int, int] | None = None
    deviation: str = ""

    @property
    def windowed(self) -> bool:
        return "sliding_window" in FAMILIES[self.family][1]


_NO_WINDOW = f"SGLang leaves out this model's sliding window of {WINDOW}: every key is attended to"
_NO_CAP = "torch_native leaves out this model's soft-cap of attention scores (2)"
_ONE_LESS = "decode of the triton backend sees one key less than the sliding window has"

CASES = (
    Case("Llama", "torch_native"),
    Case("Llama", "triton"),
    Case("Qwen2", "torch_native"),
    Case("Qwen3", "torch_native"),
    Case("Mistral", "torch_native", configuration={"sliding_window": None}, deviation=_NO_WINDOW),
    Case("Phi-3", "torch_native", configuration={"sliding_window": None}, deviation=_NO_WINDOW),
    Case("Gemma2", "torch_native", configuration={"attn_logit_softcapping": None}, deviation=_NO_CAP),
    Case("Gemma2", "triton", windows=(WINDOW, WINDOW - 1), deviation=_ONE_LESS),
    Case("DeepSeek-V3", "triton"),
    Case("Qwen3-MoE", "torch_native"),
    Case("Qwen3-MoE", "triton"),
)
