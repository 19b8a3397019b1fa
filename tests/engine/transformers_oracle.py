"""The same weights in transformers' eager attention, float32: what the engine's numbers are compared with."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import geomcli


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
    folder: str, ids: list[int], layers: list[int], first_row: int, depth: int | None = None, **configuration: Any
) -> tuple[dict[int, NDArray[np.float64]], list[int]]:
    """One causal pass over `ids`: per layer the probabilities [rows, H, T] of the rows first_row .. T - 1, and the
    likeliest next token after each of these rows."""
    import torch

    _, model = load(folder, depth, **configuration)
    with torch.no_grad():
        out = model(torch.tensor([ids]), output_attentions=True)
    found = {n: out.attentions[n][0, :, first_row:].transpose(0, 1).double().numpy() for n in layers}
    return found, out.logits[0, first_row:].argmax(-1).tolist()
