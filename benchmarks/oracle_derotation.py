"""The de-rotated view of gpu_oracle.py: content and position scores against queries and keys before their rotation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_PROJECTIONS = ("q_proj", "k_proj")


def scores(model: Any, ids: list[int], layers: list[int]) -> dict[int, dict[str, NDArray[np.float64]]]:
    """Per layer, each [H, T, T]: the logits `s`, the logits `content` of queries and keys as their projections left
    them, and the model's own probabilities `p`. For models whose attention is transformers' LlamaAttention."""
    import torch
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    seen: dict[str, Any] = {}

    def keep(name: str) -> Any:
        return lambda _module, _inputs, output: seen.__setitem__(name, output)

    parts = {f"{n}.{part}": getattr(model.model.layers[n].self_attn, part) for n in layers for part in _PROJECTIONS}
    handles = [module.register_forward_hook(keep(name)) for name, module in parts.items()]
    handles.append(model.model.rotary_emb.register_forward_hook(keep("angles")))
    try:
        with torch.no_grad():
            out = model(torch.tensor([ids], device=model.device), output_attentions=True)
    finally:
        for handle in handles:
            handle.remove()
    found = {}
    for n in layers:
        attention = model.model.layers[n].self_attn
        q, k = (seen[f"{n}.{part}"].view(1, len(ids), -1, attention.head_dim).transpose(1, 2) for part in _PROJECTIONS)
        turned = apply_rotary_pos_emb(q, k, *seen["angles"])
        logits, content = (
            (a.double() @ b.double().repeat_interleave(q.shape[1] // k.shape[1], dim=1).mT)[0] * attention.scaling
            for a, b in (turned, (q, k))
        )
        of_layer = {"s": logits, "content": content, "p": out.attentions[n][0].double()}
        found[n] = {name: values.cpu().numpy() for name, values in of_layer.items()}
    return found


def differences(published: dict[str, Any], truth: dict[str, Any], query: int) -> dict[str, NDArray[np.float64]]:
    """Of one layer of one entry: published minus true content and position score of each link [k]."""
    positions = published["token_positions"]
    s, content, p = (truth[name][:, query, positions] for name in ("s", "content", "p"))
    share = p / p.sum(axis=0)
    true = {"content": (share * content).sum(axis=0), "position": (share * (s - content)).sum(axis=0)}
    return {name: np.array(published["derotated"][name]) - values for name, values in true.items()}
