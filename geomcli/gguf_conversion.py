"""A llama-architecture GGUF file to a Hugging Face folder: weights as float16 safetensors, config, tokenizer.

Needs the extra `models` (gguf, safetensors, tokenizers); no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from geomcli.errors import ModelError

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_NAMES = {
    "token_embd": "model.embed_tokens.weight",
    "output_norm": "model.norm.weight",
    "output": "lm_head.weight",
}
_CONTROL_TOKEN = 3  # gguf's token type of special tokens


def convert(source: Path, target: Path, progress: Callable[[int, int], None]) -> None:
    """Write model.safetensors, config.json, generation_config.json, tokenizer.json and tokenizer_config.json.

    `progress(done, total)` counts parameters. ModelError for an architecture or a tokenizer other than the known one.
    """
    reader = GGUFReader(source)
    values = {key: field.contents() for key, field in reader.fields.items()}
    architecture = values.get("general.architecture")
    if architecture != "llama":
        raise ModelError(f"{source.name} has architecture {architecture!r}; only llama can be converted.")
    if values.get("tokenizer.ggml.model") != "gpt2":
        raise ModelError(f"{source.name} has no byte-level BPE tokenizer.")
    target.mkdir(parents=True)
    tied = _write_weights(reader, values, target / "model.safetensors", progress)
    _write_configs(values, target, tied)
    _write_tokenizer(values, target)


def unpermute(weight: NDArray[Any], n_heads: int) -> NDArray[Any]:
    """Undo llama.cpp's interleaving of rotary pairs: rows [H, D/2, 2] back to [H, 2, D/2]."""
    rows, columns = weight.shape
    return weight.reshape(n_heads, rows // n_heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _write_weights(reader: Any, values: dict[str, Any], path: Path, progress: Callable[[int, int], None]) -> bool:
    n_heads, n_kv = values["llama.attention.head_count"], values["llama.attention.head_count_kv"]
    total = sum(int(t.n_elements) for t in reader.tensors)
    done, weights = 0, {}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type).reshape(*reversed(tensor.shape.tolist()))
        parts = tensor.name.split(".")
        if parts[0] == "blk":
            if parts[2] in ("attn_q", "attn_k"):
                weight = unpermute(weight, n_heads if parts[2] == "attn_q" else n_kv)
            name = f"model.layers.{parts[1]}.{_LAYER_NAMES[parts[2]]}.weight"
        else:
            name = _TOP_NAMES[parts[0]]
        # 4-bit weights are scale * n + offset with float16 scale and offset: float16 keeps more of them than bfloat16.
        weights[name] = np.ascontiguousarray(weight, dtype=np.float16)
        done += int(tensor.n_elements)
        progress(done, total)
    save_file(weights, str(path), {"format": "pt"})
    return "lm_head.weight" not in weights


def _write_configs(values: dict[str, Any], target: Path, tied: bool) -> None:
    def llama(key: str) -> Any:
        return values["llama." + key]

    hidden, heads = llama("embedding_length"), llama("attention.head_count")
    bos, eos, pad = (values[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "padding"))
    _write_json(
        target / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": hidden,
            "head_dim": hidden // heads,
            "intermediate_size": llama("feed_forward_length"),
            "num_hidden_layers": llama("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": llama("attention.head_count_kv"),
            "vocab_size": llama("vocab_size"),
            "max_position_embeddings": llama("context_length"),
            "rms_norm_eps": round(float(llama("attention.layer_norm_rms_epsilon")), 10),
            "rope_theta": float(llama("rope.freq_base")),
            "rope_scaling": None,
            "tie_word_embeddings": tied,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "pad_token_id": pad,
            "torch_dtype": "float16",
            "use_cache": True,
        },
    )
    _write_json(target / "generation_config.json", {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad})


def _write_tokenizer(values: dict[str, Any], target: Path) -> None:
    tokens, types = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in values["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, types, strict=True) if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.save(str(target / "tokenizer.json"))
    names = {name: tokens[values[f"tokenizer.ggml.{key}_token_id"]]
             for name, key in (("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"),
                               ("pad_token", "padding"))}  # fmt: skip
    _write_json(
        target / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **names,
            "model_max_length": values["llama.context_length"],
            "clean_up_tokenization_spaces": False,
            "add_prefix_space": False,
            "chat_template": values["tokenizer.chat_template"],
        },
    )


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
