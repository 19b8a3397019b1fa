"""What it costs an answer that tokens have left: the skeleton score, its parts, and others, on one small model.

    python benchmarks/eviction_quality.py [--texts 8] [--needles 16] [--out FILE]

Texts are this repository's own documents. A context of CONTEXT tokens is read whole; what a score keeps of it is all
that the tokens after it attend to, in every layer and head alike. Two numbers: the mean divergence (KL, nats) of the
next token's distribution from that of the whole cache over the next FOLLOWING tokens of the text; and for a five-digit
number in the middle of the context, asked for afterwards, by how many nats its digits become less likely, and how often
they are still the likeliest. Needs transformers and the model smollm2; a GPU is not needed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geomcli import models
from geomcli.eviction import scores
from geomcli.eviction.retention import WINDOW, Retention, choose
from geomcli.kernels.derotation import Rope

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
CONTEXT, FOLLOWING = 640, 64
RATIOS = (0.5, 0.3)
DOCUMENTS = ("docs/explorer.md", "docs/geometry.md", "docs/discovery.md", "docs/traces.md", "docs/wire.md", "LICENSE")
PLACES = ("harbour", "library", "station", "museum", "garden", "bakery", "theatre", "market")


class Model:
    def __init__(self) -> None:
        from tests.engine.transformers_oracle import load

        self.tokenizer, self.model = load(str(models.resolve("smollm2").path))
        config = self.model.config
        depth = config.num_hidden_layers
        self.layers = sorted({depth // 4, depth // 2, 3 * depth // 4, depth - 1})
        self.kept: dict[str, Any] = {}
        for n in self.layers:
            attention = self.model.model.layers[n].self_attn
            for name in ("q_proj", "k_proj", "v_proj"):
                getattr(attention, name).register_forward_hook(self._keep(f"{n}.{name}"))
        frequencies = self.model.model.rotary_emb.inv_freq.float()
        angles = torch.outer(torch.arange(4096.0), frequencies)
        self.rope = Rope(torch.cat([angles.cos(), angles.sin()], dim=1), False)

    def _keep(self, name: str) -> Any:
        return lambda _module, _inputs, output: self.kept.__setitem__(name, output)

    def read(self, context: list[int]) -> None:
        """The context whole; what it leaves in the cache is what `following` attends to."""
        with torch.inference_mode():
            self.cache = self.model(torch.tensor([context]), use_cache=True).past_key_values

    def following(self, ids: list[int], stay: np.ndarray[Any, Any] | None = None) -> torch.Tensor:
        """Log probabilities [n, V] behind each of the ids that follow the context, of which only `stay` is there."""
        n = len(ids)
        mask = torch.full((1, 1, n, CONTEXT + n), float("-inf")).triu(CONTEXT + 1)
        if stay is not None:
            mask[..., np.setdiff1d(np.arange(CONTEXT), stay)] = float("-inf")
        at = torch.arange(CONTEXT, CONTEXT + n)
        kept, self.kept = self.kept, {}
        with torch.inference_mode():
            out = self.model(
                torch.tensor([ids]),
                attention_mask=mask,
                past_key_values=self.cache,
                position_ids=at[None],
                use_cache=True,
            )
        self.kept = kept
        self.cache.crop(CONTEXT)
        return torch.log_softmax(out.logits[0].float(), dim=-1)

    def parts(self) -> np.ndarray[Any, Any]:
        """[3, CONTEXT] by the last rows of the context of the pass before."""
        made = []
        at = torch.arange(CONTEXT)
        for n in self.layers:
            attention = self.model.model.layers[n].self_attn
            q, k, v = (
                self.kept[f"{n}.{name}"][0, :CONTEXT].view(CONTEXT, -1, attention.head_dim)
                for name in ("q_proj", "k_proj", "v_proj")
            )
            q, k = _rotated(q, self.rope), _rotated(k, self.rope)
            seen = scores.Seen(q[-WINDOW:], at[-WINDOW:], k, v, at, self.rope, attention.scaling)
            made.append(scores.parts(seen))
        return torch.stack(made).mean(dim=0).numpy()


def _rotated(x: torch.Tensor, rope: Rope) -> torch.Tensor:
    cos, sin = (part[:, None] for part in rope.table[: x.shape[0]].chunk(2, dim=-1))
    one, two = x.chunk(2, dim=-1)
    return torch.cat([one * cos - two * sin, two * cos + one * sin], dim=-1)


def candidates(parts: np.ndarray[Any, Any], dice: np.random.Generator) -> dict[str, np.ndarray[Any, Any]]:
    def blend(*weights: float) -> np.ndarray[Any, Any]:
        ranked = [scores.ranks(torch.from_numpy(part)).numpy() ** 6 for part in parts]
        return np.asarray(sum(w * part for w, part in zip(weights, ranked, strict=True)))

    return {
        "skeleton (.4, .3, .3)": blend(0.4, 0.3, 0.3),
        "received and expected (.5, .5, 0)": blend(0.5, 0.5, 0.0),
        "received": parts[0],
        "expected": parts[1],
        "leverage": parts[2],
        "recent": np.arange(CONTEXT, dtype=np.float64),
        "random": dice.random(CONTEXT),
    }


def documents(tokenizer: Any, count: int) -> list[list[int]]:
    length, every = CONTEXT + FOLLOWING, []
    for name in DOCUMENTS:
        ids = tokenizer((ROOT / name).read_text())["input_ids"]
        every += [ids[start : start + length] for start in range(0, len(ids) - length, length)]
    order = np.random.default_rng(1).permutation(len(every))
    return [every[n] for n in order[:count]]


def mean_and_interval(values: list[float]) -> list[float]:
    """Mean, and the bounds of its 95 % interval by 2,000 draws."""
    found, dice = np.array(values), np.random.default_rng(0)
    draws = found[dice.integers(0, len(found), (2000, len(found)))].mean(axis=1)
    return [round(float(x), 4) for x in (found.mean(), *np.quantile(draws, (0.025, 0.975)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--needles", type=int, default=16)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model, dice = Model(), np.random.default_rng(2)
    found: dict[str, dict[str, dict[str, list[float]]]] = {}

    def note(name: str, ratio: float, what: str, value: float) -> None:
        found.setdefault(name, {}).setdefault(str(ratio), {}).setdefault(what, []).append(value)

    texts = documents(model.tokenizer, options.texts + options.needles)

    def each(measure: Any) -> None:
        for name, values in candidates(model.parts(), dice).items():
            for ratio in RATIOS:
                measure(name, ratio, choose(values, Retention(ratio).budget(CONTEXT)))

    for ids in texts[: options.texts]:
        model.read(ids[:CONTEXT])
        whole = model.following(ids[CONTEXT:])

        def compare(name: str, ratio: float, stay: Any, ids: Any = ids, whole: Any = whole) -> None:
            cut = model.following(ids[CONTEXT:], stay)
            note(name, ratio, "kl", float((whole.exp() * (whole - cut)).sum(dim=-1).mean()))

        each(compare)
    for n, text in enumerate(texts[options.texts :]):
        place, number = PLACES[n % len(PLACES)], f"{dice.integers(10_000, 100_000)}"
        needle = model.tokenizer(f" The pass code of the {place} is {number}.")["input_ids"]
        at = int(dice.integers(CONTEXT // 8, CONTEXT - CONTEXT // 4))
        question = model.tokenizer(f"\nThe pass code of the {place} is")["input_ids"]
        digits = model.tokenizer(f" {number}")["input_ids"]
        model.read([*text[:at], *needle, *text[at:]][:CONTEXT])
        asked = [*question, *digits]
        rows = slice(len(question) - 1, len(asked) - 1)
        whole = model.following(asked)[rows]
        nll = -float(whole[range(len(digits)), digits].mean())
        note("whole cache", 1.0, "right", float(whole.argmax(dim=-1).tolist() == digits))

        def recall(
            name: str, ratio: float, stay: Any, a: Any = asked, r: Any = rows, d: Any = digits, b: Any = nll
        ) -> None:
            cut = model.following(a, stay)[r]
            note(name, ratio, "needle", -float(cut[range(len(d)), d].mean()) - b)
            note(name, ratio, "right", float(cut.argmax(dim=-1).tolist() == d))

        each(recall)
    table = {
        name: {ratio: {what: mean_and_interval(v) for what, v in of.items()} for ratio, of in by.items()}
        for name, by in found.items()
    }
    made = {
        "model": "SmolLM2-135M-Instruct", "context": CONTEXT, "following": FOLLOWING,
        "texts": len(texts[: options.texts]),
        "needles": len(texts[options.texts :]), "layers": model.layers, "queries": WINDOW, "scores": table,
    }  # fmt: skip
    print(json.dumps(made, indent=1))
    if options.out:
        options.out.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
