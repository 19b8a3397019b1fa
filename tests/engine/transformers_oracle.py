"""The same weights in transformers' eager attention, float32: what the engine's numbers are compared with."""

from __future__ import annotations

import math
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import geomcli

_PROJECTIONS = ("q_proj", "k_proj")


def importable() -> None:
    """Let transformers be imported beside a CPU build of torch."""
    shim = str(Path(geomcli.__file__).parent / "server_patch" / "cpu_shim")
    if shim not in sys.path:
        sys.path.insert(0, shim)


@cache
def load(folder: str, depth: int | None = None, **configuration: Any) -> tuple[Any, Any]:
    """Tokenizer and model; `depth` cuts it to its first layers, as --json-model-override-args does in the engine, and
    `configuration` replaces values of the model's own."""
    importable()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = configuration if depth is None else {**configuration, "num_hidden_layers": depth}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **options)
    return AutoTokenizer.from_pretrained(folder), model.eval()


def forward(
    folder: str,
    ids: list[int],
    layers: list[int],
    first_row: int,
    depth: int | None = None,
    masks: Any = None,
    **configuration: Any,
) -> tuple[dict[int, NDArray[np.float64]], list[int]]:
    """One causal pass over `ids`: per layer the probabilities [rows, H, T] of the rows first_row .. T - 1, and the
    likeliest next token after each of these rows. `masks` takes the place of the model's own attention mask."""
    import torch

    model = load(folder, depth, **configuration)[1]
    with torch.no_grad():
        out = model(torch.tensor([ids]), attention_mask=masks, output_attentions=True)
    found = {n: out.attentions[n][0, :, first_row:].transpose(0, 1).double().numpy() for n in layers}
    return found, out.logits[0, first_row:].argmax(-1).tolist()


def logit_statistics(folder: str, ids: list[int], first_row: int, depth: int | None = None) -> list[dict[str, float]]:
    """What an entry's `logit_stats` says of each of ids[first_row + 1:], in float64."""
    import torch

    with torch.no_grad():
        logits = load(folder, depth)[1](torch.tensor([ids[:-1]])).logits[0, first_row:].double()
    logprobs, top = logits.log_softmax(dim=-1), logits.topk(2).values
    entropy = -(logprobs.exp() * logprobs).sum(dim=-1) / math.log(2)
    of_tokens = logprobs.gather(1, torch.tensor(ids[first_row + 1 :])[:, None])[:, 0]
    rows = zip(of_tokens.tolist(), entropy.tolist(), (top[:, 0] - top[:, 1]).tolist(), strict=True)
    return [{"logprob": p, "entropy_bits": bits, "margin": margin} for p, bits, margin in rows]


def with_and_without_rope(
    folder: str, ids: list[int], layers: list[int], depth: int | None = None
) -> dict[int, dict[str, NDArray[np.float64]]]:
    """Per layer, each [H, T, T]: the logits `s`, the logits `content` of queries and keys as their projections left
    them, before any rotation, and the model's own probabilities `p`."""
    import torch
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    _, model = load(folder, depth)
    seen: dict[str, Any] = {}

    def keep(name: str) -> Any:
        return lambda _module, _inputs, output: seen.__setitem__(name, output)

    parts = {f"{n}.{part}": getattr(model.model.layers[n].self_attn, part) for n in layers for part in _PROJECTIONS}
    handles = [module.register_forward_hook(keep(name)) for name, module in parts.items()]
    handles.append(model.model.rotary_emb.register_forward_hook(keep("angles")))
    try:
        with torch.no_grad():
            out = model(torch.tensor([ids]), output_attentions=True)
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
        found[n] = {name: values.numpy() for name, values in of_layer.items()}
    return found


def routing(folder: str, ids: list[int], first_row: int, top_k: int) -> list[list[tuple[list[int], list[float]]]]:
    """By layer with experts and row from first_row on: the experts that the model's router chooses, the heaviest
    first, and their renormalised weights. For routers of softmax alone."""
    import torch

    model = load(folder)[1]
    with torch.no_grad():
        out = model(torch.tensor([ids]), output_router_logits=True)
    found = []
    for logits in out.router_logits:
        weights, experts = logits[first_row:].double().softmax(-1).topk(top_k, dim=-1)
        weights /= weights.sum(-1, keepdim=True)
        found.append(list(zip(experts.tolist(), weights.tolist(), strict=True)))
    return found
