"""Scheduler process: the rotary embedding of each captured layer, if what it did can be undone.

Wrong numbers would look like right ones. So only those embeddings are undone that turn a token by one row of their
table, that of its position, and only in attention modules known to turn queries and keys in every layer: many models
leave layers as they are, or turn them by a table that lies elsewhere, and no attribute says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from geomcli.kernels.derotation import Rope

# SGLang's embeddings by class. Left out: those that turn by other positions than the token's own (mrope), by a table
# chosen for a whole batch (longrope), by tables of each head (Fourier), or several times (dual chunk).
EMBEDDINGS = (
    "RotaryEmbedding",
    "LinearScalingRotaryEmbedding",
    "DynamicNTKScalingRotaryEmbedding",
    "DynamicNTKAlphaRotaryEmbedding",
    "YaRNScalingRotaryEmbedding",
    "Llama3RotaryEmbedding",
)
# SGLang's attention modules by class, with the file below sglang.srt.models; a test reads them in every release.
ATTENTION = {
    "DeepseekAttention": "deepseek",
    "GLMAttention": "chatglm",
    "GPTJAttention": "gpt_j",
    "Gemma2Attention": "gemma2",
    "GemmaAttention": "gemma",
    "Glm4Attention": "glm4",
    "GptOssAttention": "gpt_oss",
    "GraniteAttention": "granite",
    "GraniteMoeAttention": "granitemoe",
    "InternLM2Attention": "internlm2",
    "LlamaAttention": "llama",
    "MixtralAttention": "mixtral",
    "Olmo2Attention": "olmo2",
    "OlmoAttention": "olmo",
    "OlmoeAttention": "olmoe",
    "OrionAttention": "orion",
    "PersimmonAttention": "persimmon",
    "PhiAttention": "phi",
    "PhiMoEAttention": "phimoe",
    "QWenAttention": "qwen",
    "Qwen2Attention": "qwen2",
    "Qwen2MoeAttention": "qwen2_moe",
    "Qwen3Attention": "qwen3",
    "Qwen3MoeAttention": "qwen3_moe",
    "SolarAttention": "solar",
    "StablelmAttention": "stablelm",
    "Starcoder2Attention": "starcoder2",
    "XverseAttention": "xverse",
}


class NotUndone(Exception):
    """Why a model has no de-rotated view, in half a sentence."""


def embeddings_of(model: Any, layers: Sequence[int]) -> list[Any]:
    """The rotary embedding modules of these layers; NotUndone when one of them cannot be undone."""
    found = {
        child.layer_id: _embedding_of(parent, child)
        for parent in model.modules()
        for child in parent.children()
        if type(child).__name__ == "RadixAttention" and child.layer_id in layers and not child.is_cross_attention
    }
    if missing := [layer for layer in layers if layer not in found]:
        raise NotUndone(f"the attention of layer {missing[0]} is none that geom can undo a rotation in")
    return [found[layer] for layer in layers]


def _embedding_of(attention: Any, core: Any) -> Any:
    kind, embedding = type(attention).__name__, getattr(attention, "rotary_emb", None)
    if kind not in ATTENTION:
        raise NotUndone(f"{kind} is no attention that geom can undo a rotation in")
    if embedding is None:
        raise NotUndone(f"layer {core.layer_id} has no rotary embedding")
    name = type(embedding).__name__
    if name not in EMBEDDINGS or len(getattr(embedding, "scaling_factors", (1.0,))) != 1:
        raise NotUndone(f"the rotation of {name} cannot be undone")
    if embedding.head_size != core.qk_head_dim:
        raise NotUndone(f"{name} turns another width than that of a head")
    return embedding


def rope_of(embedding: Any) -> Rope:
    """As it is at this moment: SGLang may replace the table by a longer one."""
    return Rope(embedding.cos_sin_cache, not embedding.is_neox_style)
