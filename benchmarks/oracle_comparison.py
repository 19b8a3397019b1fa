"""The oracle of gpu_oracle.py: transformers' eager attention, and every published number compared with it."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomcli import fingerprint
from geomcli.kernels.records import HEAD_STATISTICS

# Beside this script; `python -P` keeps its folder off the path.
sys.path.append(str(Path(__file__).parent))
import oracle_derotation

TOP_K = 64
STRONG = 0.01  # links of at least so much are compared relatively, too


@dataclass
class Answer:
    """One request: what was sent, and what came back."""

    name: str
    prompt: list[int]
    output: list[int]
    entries: list[dict[str, Any]]
    cached: int  # prompt tokens that the prefix cache had


def torch_beside_transformers() -> Any:
    """torch; with a CPU build, the stand-in for torchvision that lets transformers be imported beside it."""
    import torch

    import geomcli

    shim = str(Path(geomcli.__file__).parent / "server_patch" / "cpu_shim")
    if not torch.cuda.is_available() and shim not in sys.path:
        sys.path.insert(0, shim)
    return torch


class Oracle:
    """The model in transformers' eager attention, with the weights rounded as the engine's."""

    def __init__(self, folder: str, dtype: str, longest: int, overrides: dict[str, Any]) -> None:
        torch = self._torch = torch_beside_transformers()
        from transformers import AutoModelForCausalLM

        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation="eager", **overrides
        )
        self.parameters = sum(p.numel() for p in model.parameters())
        config = model.config
        rows = 2 * config.num_hidden_layers * config.num_attention_heads * longest**2
        if self.device == "cuda":
            free = torch.cuda.mem_get_info()[0]
        else:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        exact = 8 * (2 * self.parameters + rows) < free / 2
        self.dtype = "float64" if exact else "float32"
        self._model: Any = model.to(device=self.device, dtype=getattr(torch, self.dtype)).eval()

    def rows(self, ids: list[int], layers: list[int], first: int) -> tuple[dict[int, NDArray[np.float64]], list[int]]:
        """One causal pass: per layer the probabilities [rows, H, T] of the rows first .. T - 1, and the likeliest next
        token after each of them."""
        with self._torch.no_grad():
            out = self._model(self._torch.tensor([ids], device=self.device), output_attentions=True)
        found = {n: out.attentions[n][0, :, first:].transpose(0, 1).double().cpu().numpy() for n in layers}
        return found, out.logits[0, first:].argmax(-1).tolist()

    def derotated(self, ids: list[int], layers: list[int]) -> dict[int, dict[str, NDArray[np.float64]]]:
        return oracle_derotation.scores(self._model, ids, layers)


class Findings:
    """Absolute differences by measure, prompt and layer; what is wrong with single entries; the worst link."""

    def __init__(self) -> None:
        self.entries = 0
        self.faults: list[str] = []
        self.same_tokens = self.tokens = 0
        self.worst: dict[str, Any] = {"difference": -1.0}
        self._values: dict[tuple[str, str, int], list[NDArray[np.float64]]] = defaultdict(list)

    def add(self, measure: str, prompt: str, layer: int, difference: Any) -> None:
        self._values[measure, prompt, layer].append(np.abs(np.atleast_1d(difference)).astype(np.float64))

    def measures(self) -> list[str]:
        return list(dict.fromkeys(measure for measure, _, _ in self._values))

    def values(self, measure: str, *, prompt: str | None = None, layer: int | None = None) -> NDArray[np.float64]:
        chosen = [
            part
            for (m, p, n), parts in self._values.items()
            if m == measure and prompt in (None, p) and layer in (None, n)
            for part in parts
        ]
        return np.concatenate(chosen) if chosen else np.zeros(0)


def compare(oracle: Oracle, answers: list[Answer], layers: list[int], sinks: int) -> Findings:
    """Every entry of every answer against the oracle's rows."""
    found = Findings()
    for answer in answers:
        first = len(answer.prompt) - 1
        truth, greedy = oracle.rows(answer.prompt + answer.output[:-1], layers, first)
        found.tokens += len(greedy)
        found.same_tokens += sum(a == b for a, b in zip(answer.output, greedy, strict=True))
        by_step = {entry["decode_step"]: entry for entry in answer.entries}
        asked = any("derotated" in entry for entry in answer.entries)
        unrotated = oracle.derotated(answer.prompt + answer.output[:-1], layers) if asked else {}
        for step in range(len(answer.output)):
            found.entries += 1
            entry = by_step.get(step + 1)
            if (why := fault(entry, answer, step, layers)) is not None or entry is None:
                found.faults.append(f"{answer.name}, step {step + 1}: {why}")
                continue
            query = first + step
            check_request(found, answer.name, entry, [truth[n][step][:, : query + 1] for n in layers], query, sinks)
            for layer, published in of_layers(entry).items():
                rows = truth[layer][step][:, : query + 1]
                check_layer(found, answer.name, layer, published, rows, query, sinks)
                statistics = entry["head_stats"][str(layer)]
                if asked:
                    for name, value in oracle_derotation.differences(published, unrotated[layer], query).items():
                        found.add(name, answer.name, layer, value)
                for name, value in head_statistics(rows, len(answer.prompt), sinks):
                    found.add(f"head {name}", answer.name, layer, np.array(statistics[name]) - value)
    return found


def of_layers(entry: dict[str, Any]) -> dict[int, dict[str, Any]]:
    return {int(n): layer for n, layer in entry.get("layers", {entry["layer_id"]: entry}).items()}


def fault(entry: dict[str, Any] | None, answer: Answer, step: int, layers: list[int]) -> str | None:
    """Why an entry cannot be compared at all; None when it is sound."""
    if entry is None:
        return "missing"
    if "topk_logits" not in entry:
        return ", ".join(entry["flags"]) or "no links"
    query = len(answer.prompt) - 1 + step
    if (entry["query_position"], entry["token_id"]) != (query, answer.output[step]):
        return f"speaks of position {entry['query_position']} and token {entry['token_id']}"
    if sorted(of_layers(entry)) != layers:
        return f"speaks of layers {sorted(of_layers(entry))}"
    for layer, published in of_layers(entry).items():
        positions = published["token_positions"]
        if len(set(positions)) != len(positions) or len(positions) != min(TOP_K, query + 1) or max(positions) > query:
            return f"layer {layer} has {len(positions)} links to {len(set(positions))} positions"
    return None


def check_layer(
    found: Findings, prompt: str, layer: int, published: dict[str, Any], rows: Any, query: int, sinks: int
) -> None:
    """The numbers of one layer of one entry; `rows` [H, query + 1] are the oracle's probabilities."""
    mean = rows.mean(axis=0)
    positions = np.array(published["token_positions"])
    p = np.exp(np.array(published["topk_logits"]) - published["logsumexp_candidates"])
    true, left_out = mean[positions], np.delete(mean, positions)
    missed = max(0.0, left_out.max() - true.min()) if left_out.size else 0.0
    for measure, difference in (
        ("probability", p - true),
        ("relative probability of strong links", ((p - true) / true)[true >= STRONG]),
        ("in top k", true >= np.sort(mean)[-len(positions)]),
        # By how much the strongest key that is not among the links is stronger than the weakest link: ties give 0.
        ("missed", missed),
        ("topk_mass", published["topk_mass"] - true.sum()),
        ("entropy_bits", published["entropy_bits"] - entropies(rows).mean()),
        # With one captured layer these two are the entry's own fields.
        ("sink_mass", published["sink_mass"] - mean[:sinks].sum()),
        ("fingerprint", published["fingerprint"] - expected_fingerprint([rows], query, sinks)),
    ):
        found.add(measure, prompt, layer, difference)
    at = int(np.abs(p - true).argmax())
    if abs(p[at] - true[at]) > found.worst["difference"]:
        found.worst = {
            "difference": float(abs(p[at] - true[at])), "published": float(p[at]), "oracle": float(true[at]),
            "prompt": prompt, "layer": layer, "query": query, "key": int(positions[at]),
        }  # fmt: skip


def check_request(
    found: Findings, prompt: str, entry: dict[str, Any], layers: list[Any], query: int, sinks: int
) -> None:
    """The entry's own fingerprint and sink mass: means over the layers."""
    expected = expected_fingerprint(layers, query, sinks)
    sink = np.mean([rows[:, :sinks].sum(axis=1).mean() for rows in layers])
    found.add("request fingerprint", prompt, entry["layer_id"], entry["fingerprint"] - expected)
    found.add("request sink_mass", prompt, entry["layer_id"], entry["sink_mass"] - sink)


def expected_fingerprint(layers: list[Any], query: int, sinks: int) -> NDArray[np.float64]:
    """Fingerprint [20] of the oracle's rows [H, query + 1] of one layer, or of the mean of several."""
    histograms = [fingerprint.distance_histogram(rows.mean(axis=0), query, sink_tokens=sinks) for rows in layers]
    mean = fingerprint.mean_histogram(np.array(histograms), np.array([len(rows) for rows in layers]))
    return fingerprint.fingerprint_from_histogram(mean).astype(np.float64)


def entropies(rows: Any) -> NDArray[np.float64]:
    """Entropy in bits of each head's row."""
    logs = np.log2(rows, out=np.zeros_like(rows), where=rows > 0)
    made: NDArray[np.float64] = -(rows * logs).sum(axis=1)
    return made


def head_statistics(rows: Any, prompt_len: int, sinks: int) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """What docs/geometry.md calls head statistics, each [H]."""
    heads, keys = rows.shape
    prompt = rows[:, :prompt_len].mean(axis=1)
    generated = rows[:, prompt_len:].mean(axis=1) if keys > prompt_len else np.zeros(heads)
    values = (
        entropies(rows),
        rows[:, :sinks].sum(axis=1),
        rows[:, -2] if keys > 1 else np.zeros(heads),
        prompt / (prompt + generated),
    )
    yield from zip(HEAD_STATISTICS, values, strict=True)
