"""Tiny models with random weights, one for each family: saved as any published model is, so that the engine and
transformers read the same folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.engine.transformers_oracle import importable

VOCABULARY = 260
LAYERS = 3
WINDOW = 18
# Wide enough that scores differ, and near enough to the caps that soft-capping shows.
_SPREAD = 0.15

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": _SPREAD,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "dtype": "float32",
}
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    # The widths of published models: SGLang's kernels split keys of 576 into 512 and 64, and of few others.
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 64,
    "v_head_dim": 16,
    "head_dim": 64,
    # SGLang's CPU engine knows this kind of scaling only.
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "beta_fast": 32,
        "beta_slow": 1,
    },
    "first_k_dense_replace": LAYERS,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_layer_freq": 1,
}
# Model type of transformers, and what its configuration has beside the common part.
FAMILIES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", {}),
    "Qwen2": ("qwen2", {}),
    "Qwen3": ("qwen3", {}),
    "Mistral": ("mistral", {"sliding_window": WINDOW}),
    "Phi-3": ("phi3", {"sliding_window": WINDOW}),
    "Gemma2": (
        "gemma2",
        {"sliding_window": WINDOW, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0,
         "final_logit_softcapping": 10.0, "hidden_activation": "gelu_pytorch_tanh",
         "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True},
    ),
    "DeepSeek-V3": ("deepseek_v3", _LATENT),
    "Qwen3-MoE": (
        "qwen3_moe",
        {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "norm_topk_prob": True,
         "decoder_sparse_step": 1},
    ),
}  # fmt: skip


def make(family: str, folder: Path) -> Path:
    """Write the family's model and a tokenizer of single bytes into `folder`; always the same weights."""
    importable()
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, own = FAMILIES[family]
    config = AutoConfig.for_model(model_type, **{**_COMMON, **own})
    torch.manual_seed(len(family))
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        # Norms and biases, which start at one and zero, would hide a mistake in either.
        if parameter.dim() == 1:
            parameter.data += _SPREAD * torch.randn_like(parameter)
        elif "embed" in name:
            parameter.data.normal_(std=1.0)
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template="{% for message in messages %}{{ message.content }}\n{% endfor %}",
    )
