"""What evicting tokens costs answers: the skeleton score beside kvpress' presses, on one model, in one run.

    pip install kvpress msgspec; pip install --no-deps .   # in an environment of its own: it wants transformers < 5.3
    python benchmarks/eviction_peers.py --model DIR --text FILE... --out FILE.jsonl [--lengths 1024 2048] [--items 8]
    python benchmarks/eviction_peers.py --table FILE.jsonl [--json FILE]

A context is read whole, once, and every score is taken from that pass; then 30, 50 and 70 % of it leave and what comes
behind the context sees what is left only. *per head*: kvpress' own choice, each head of each layer for itself.
*union*: the same tokens for all heads and layers, as in a server with one table of tokens a request; sinks and the last
32 stay with every score. Layers with a sliding window (Gemma 3) keep their window and are not scored. Nobody knows the
question when tokens leave. Measured:

- tasks (eviction_tasks.py), answers generated greedily: share of the strings asked for that the answer holds, and
  answers without a letter or digit; of a needle, nats a token of the right answer, too;
- texts: over the next 96 tokens the divergence (KL, nats) of the next token's distribution from the whole cache's, how
  often the likeliest token is the same, and nats a token; of 64 tokens generated greedily, whether they end in a loop.

Each line of the file is one context, ratio and score. The table: means over contexts with 95 % intervals by bootstrap,
and the difference to the skeleton on the same contexts (a star: its interval is clear of 0). `--text` takes plain text;
the numbers of docs/eviction.md are of Jane Austen's novels (Debian's r-cran-janeaustenr).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import kvpress
import numpy as np
import torch
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.cache_utils import DynamicLayer

sys.path.insert(0, str(Path(__file__).parent))
import eviction_table
from eviction_tasks import KINDS, NEEDLES, Maker, of_kind, share_found
from skeleton_press import SkeletonPress, by_rank, by_share, chosen, seen

from geomcli.eviction import scores
from geomcli.eviction.reference import WEIGHTS
from geomcli.eviction.retention import RECENT, SINKS

EVICTED = (0.3, 0.5, 0.7)
TOKENS = {"three values": 28, "two questions": 20, "variables": 16, "common words": 12}
FOLLOWING, CONTINUED = 96, 64
FULL = "full_attention"
ROOM = FOLLOWING + CONTINUED
PEERS = {
    "Random": kvpress.RandomPress, "StreamingLLM": kvpress.StreamingLLMPress, "Knorm": kvpress.KnormPress,
    "KeyDiff": kvpress.KeyDiffPress, "SnapKV": kvpress.SnapKVPress, "TOVA": kvpress.TOVAPress,
    "ObservedAttention": kvpress.ObservedAttentionPress, "ExpectedAttention": kvpress.ExpectedAttentionPress,
    "Compactor": kvpress.CompactorPress,
}  # fmt: skip
BY_RATIO = ("StreamingLLM", "Compactor")  # whose score depends on how much is to leave
# How a peer's heads are made one. Both are tried with --variants; the better one on those contexts is its row.
MERGE = {
    "Random": by_rank, "StreamingLLM": by_rank, "Knorm": by_rank, "KeyDiff": by_rank, "SnapKV": by_share,
    "TOVA": by_share, "ObservedAttention": by_share, "ExpectedAttention": by_share, "Compactor": by_rank,
}  # fmt: skip
SHARED = ("SnapKV", "TOVA", "ObservedAttention", "ExpectedAttention")
WEIGHTS_TRIED = {"(.4, .3, .3)": (0.4, 0.3, 0.3), "(.2, .2, .6)": (0.2, 0.2, 0.6), "(.6, .4, 0)": (0.6, 0.4, 0.0)}


def attend(_module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **_more: Any) -> Any:
    """Attention without a copy of keys for each query head; query [B, H, n, D], key [B, K, m, D], mask [1, 1, n, m]."""
    batch, heads, n, width = query.shape
    n_kv = key.shape[1]
    logits = query.reshape(batch, n_kv, -1, width) @ key.transpose(-1, -2) * scaling
    p = torch.softmax(logits.view(batch, heads, n, -1) + mask, dim=-1).view(batch, n_kv, heads // n_kv * n, -1)
    return (p @ value).view(batch, heads, n, -1).transpose(1, 2), None


AttentionInterface.register("attend", attend)


class Growing(DynamicLayer):  # type: ignore[misc]
    """Room for ROOM tokens behind those that it begins with, so that a step copies none of them."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.room = [torch.cat([x, x.new_zeros(*x.shape[:2], ROOM, x.shape[-1])], dim=2) for x in (keys, values)]
        self.keys, self.values = keys, values

    def update(self, keys: Any, values: Any, *_args: Any, **_more: Any) -> tuple[torch.Tensor, torch.Tensor]:
        start, end = self.keys.shape[2], self.keys.shape[2] + keys.shape[2]
        for room, new in zip(self.room, (keys, values), strict=True):
            room[:, :, start:end] = new
        self.keys, self.values = (room[:, :, :end] for room in self.room)
        return self.keys, self.values


class Model:
    def __init__(self, path: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.beginning = self.tokenizer("")["input_ids"]  # of every text; nothing, or one token
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
        self.model.to(torch.get_default_device()).eval()
        config, rotary = self.model.config, self.model.model.rotary_emb
        kinds = getattr(config, "layer_types", None) or [FULL] * config.num_hidden_layers
        self.full = [layer for layer, kind in enumerate(kinds) if kind == FULL]
        self.window = config.sliding_window if len(self.full) < len(kinds) else None
        if self.window:
            rotary = partial(rotary, layer_type=FULL)
        depth = len(self.full)
        self.captured = sorted({depth // 4, depth // 2, 3 * depth // 4, depth - 1})
        self.presses = {
            (name, ratio if name in BY_RATIO else 0.0): press(compression_ratio=ratio)
            for name, press in PEERS.items()
            for ratio in (EVICTED if name in BY_RATIO else EVICTED[:1])
        }
        for attention in (self.model.model.layers[layer].self_attn for layer in self.full):
            attention.rotary_emb = rotary
            attention.register_forward_hook(self._look, with_kwargs=True)
        self.looking = False

    def _look(self, module: Any, _inputs: Any, kwargs: Any, output: Any) -> Any:
        if not self.looking:
            return output
        cache = kwargs["past_key_values"].layers[module.layer_idx]
        hidden, keys, values = kwargs["hidden_states"], cache.keys, cache.values
        for key, press in self.presses.items():
            self.found.setdefault(key, []).append(press.score(module, hidden, keys, values, output[1], kwargs)[0])
        own = SkeletonPress().score(module, hidden, keys, values, None, kwargs)[0]
        self.found.setdefault(("skeleton", 0.0), []).append(own)
        self.parts.append(scores.parts(seen(module, hidden, keys, values, kwargs)))
        return output

    def read(self, context: list[int]) -> None:
        """The context whole; its keys and values, and every score of them."""
        self.found: dict[tuple[str, float], list[torch.Tensor]] = {}
        self.parts: list[torch.Tensor] = []
        self.looking, self.n = True, len(context)
        self.model.set_attn_implementation("eager")  # which gives its probabilities away
        with torch.inference_mode():
            out = self.model(torch.tensor([context]), use_cache=True, logits_to_keep=1)
        self.looking = False
        self.model.set_attn_implementation("attend")
        self.cache = [(layer.keys, layer.values) for layer in out.past_key_values.layers]
        heads = self.cache[self.full[0]][0].shape[1]
        self.everything = torch.arange(self.n).expand(len(self.full), heads, -1)

    def choices(self, evicted: float, variants: bool) -> Iterator[tuple[str, str, torch.Tensor]]:
        """Name, scope, and the indices [layers, K, kept] of what stays in the layers without a window."""
        n, inner = self.n, slice(SINKS, self.n - RECENT)
        budget = int(n * (1 - evicted))
        layers, heads = self.everything.shape[:2]

        def alike(merged: torch.Tensor) -> torch.Tensor:
            return chosen(merged, budget, n).expand(layers, heads, -1)

        captured = torch.stack([self.parts[layer] for layer in self.captured]).mean(dim=0)
        yield "skeleton", "union", alike(scores.blend(captured, WEIGHTS)[inner])
        yield "skeleton", "per head", self._found("skeleton", evicted).topk(budget).indices
        for name in PEERS:
            found = self._found(name, evicted)
            yield name, "per head", found.topk(budget).indices
            if name == "Random":
                found = found[:1, :1]
            yield name, "union", alike(MERGE[name](found[..., inner].float()))
            if variants and name in SHARED:
                other = by_rank if MERGE[name] is by_share else by_share
                yield f"{name} {other.__name__}", "union", alike(other(found[..., inner].float()))
        if variants:
            every = torch.stack(self.parts).mean(dim=0)
            yield "skeleton of all layers", "union", alike(scores.blend(every, WEIGHTS)[inner])
            for name, weights in WEIGHTS_TRIED.items():
                yield f"skeleton {name}", "union", alike(scores.blend(captured, weights)[inner])

    def _found(self, name: str, evicted: float) -> torch.Tensor:
        return torch.stack(self.found[name, evicted if name in BY_RATIO else 0.0])

    def left(self, stay: list[torch.Tensor]) -> DynamicCache:
        """A batch of caches, one for each choice."""
        made = DynamicCache()
        for layer, (keys, values) in enumerate(self.cache):
            rows = [x.expand(len(stay), -1, -1, -1) for x in (keys, values)]
            if layer in self.full:
                at = torch.stack([one[self.full.index(layer)] for one in stay])[..., None]
                rows = [x.gather(2, at.expand(-1, -1, -1, x.shape[-1])) for x in rows]
            made.layers.append(Growing(*rows))
        return made

    def behind(self, ids: torch.Tensor, cache: DynamicCache, start: int, keep: int = 0) -> torch.Tensor:
        """Logits [rows, keep or n, V] of ids [rows, n] at positions from `start`, which see the whole cache."""
        n, held = ids.shape[1], cache.layers[self.full[0]].keys.shape[2]
        mask: Any = torch.full((1, 1, n, held + n), float("-inf")).triu(held + 1)
        at = torch.arange(start, start + n)[None].expand(ids.shape[0], -1)
        if self.window:
            last = next(layer for number, layer in enumerate(cache.layers) if number not in self.full).keys.shape[2]
            away = at[0, :, None] - torch.arange(start - last, start + n)
            near = torch.where((away >= 0) & (away < self.window), 0.0, float("-inf"))
            mask = {FULL: mask, "sliding_attention": near[None, None]}
        with torch.inference_mode():
            out = self.model(
                ids, attention_mask=mask, past_key_values=cache, position_ids=at, use_cache=True, logits_to_keep=keep
            )
        logits: torch.Tensor = out.logits.float()
        return logits

    def generated(self, ids: list[int], cache: DynamicCache, rows: int, n: int) -> list[list[int]]:
        """[rows][n] greedy tokens behind the ids."""
        next_ids = self.behind(torch.tensor([ids]).expand(rows, -1), cache, self.n, 1)[:, -1].argmax(dim=-1)
        made = [next_ids]
        for step in range(n - 1):
            next_ids = self.behind(made[-1][:, None], cache, self.n + len(ids) + step, 1)[:, -1].argmax(dim=-1)
            made.append(next_ids)
        found: list[list[int]] = torch.stack(made, dim=1).tolist()
        return found


def loops(ids: list[int]) -> bool:
    """Whether the last half repeats itself with a period of at most 12 tokens."""
    last = ids[len(ids) // 2 :]
    return any(all(a == b for a, b in zip(last, last[period:], strict=False)) for period in range(1, 13))


Row = dict[str, Any]


def of_batches(model: Model, variants: bool) -> Iterator[tuple[float, list[tuple[str, str]], list[torch.Tensor]]]:
    yield 0.0, [("whole cache", "")], [model.everything]
    for evicted in EVICTED:
        names, scopes, stay = zip(*model.choices(evicted, variants), strict=True)
        yield evicted, list(zip(names, scopes, strict=True)), list(stay)


def of_task(model: Model, kind: str, make: Maker, variants: bool) -> Iterator[Row]:
    item = of_kind(kind, make)
    model.read([*model.beginning, *item.context])
    question = make.ids(item.question)
    first = make.ids(f" {item.answers[0]}")
    told = torch.tensor([*question, *first])
    for evicted, names, stay in of_batches(model, variants):
        rows: list[Row] = [{"score": name, "scope": scope, "evicted": evicted} for name, scope in names]
        if kind in NEEDLES:
            said = model.behind(told.expand(len(stay), -1), model.left(stay), model.n, len(first) + 1)[:, :-1]
            likely = torch.log_softmax(said, dim=-1).gather(2, told[None, -len(first) :, None].expand(len(stay), -1, 1))
            for row, nll in zip(rows, -likely.mean(dim=(1, 2)), strict=True):
                row["needle_nll"] = float(nll)
        if not variants:
            answers = model.generated(question, model.left(stay), len(stay), TOKENS.get(kind, 8))
            for row, ids in zip(rows, answers, strict=True):
                answer = make.tokenizer.decode(ids)
                row |= {"right": share_found(item, answer), "empty": not any(c.isalnum() for c in answer)}
        yield from rows


def of_text(model: Model, ids: list[int], variants: bool) -> Iterator[Row]:
    context, following = ids[:-FOLLOWING], ids[-FOLLOWING:]
    model.read([*model.beginning, *context])
    after = torch.tensor(following)
    whole = None
    for evicted, names, stay in of_batches(model, variants):
        rows: list[Row] = []
        for (name, scope), one in zip(names, stay, strict=True):
            said = torch.log_softmax(model.behind(after[None], model.left([one]), model.n)[0], dim=-1)
            whole = said if whole is None else whole
            rows.append(
                {
                    "score": name, "scope": scope, "evicted": evicted,
                    "kl": float((whole.exp() * (whole - said)).sum(dim=-1).mean()),
                    "top1": float((whole.argmax(dim=-1) == said.argmax(dim=-1)).float().mean()),
                    "nll": -float(said[:-1].gather(1, after[1:, None]).mean()),
                }
            )  # fmt: skip
        if not variants:
            continued = model.generated(following[:1], model.left(stay), len(stay), CONTINUED)
            for row, made in zip(rows, continued, strict=True):
                row["loops"] = loops(made)
        yield from rows


def measure(options: argparse.Namespace) -> None:
    torch.set_default_device(options.device)
    model, ends = Model(options.model), time.monotonic() + options.seconds
    torch.manual_seed(options.seed)
    books = [model.tokenizer(path.read_text(), add_special_tokens=False)["input_ids"] for path in options.text]
    with options.out.open("a") as out:
        for number in range(options.items):
            for length in options.lengths:
                for kind in ("text", *(NEEDLES if options.variants else KINDS)):
                    if time.monotonic() > ends:
                        return
                    dice = np.random.default_rng([options.seed, number, length, [*KINDS, "text"].index(kind)])
                    book = books[int(dice.integers(len(books)))]
                    make = Maker(model.tokenizer, book, length, dice)
                    if kind == "text":
                        rows = of_text(model, make.text(length + FOLLOWING), options.variants)
                    else:
                        rows = of_task(model, kind, make, options.variants)
                    about = {"kind": kind, "length": length, "item": number, "seed": options.seed}
                    out.writelines(json.dumps({**about, **row}) + "\n" for row in rows)
                    out.flush()
                    print(f"item {number}, {length} tokens, {kind}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a Llama-like or Gemma 3 model")
    parser.add_argument("--text", type=Path, nargs="+", help="plain text files: haystack and texts")
    parser.add_argument("--out", type=Path, help="lines are appended")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--items", type=int, default=8, help="of each kind and length")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cuda, for one; several runs with seeds of their own share one")
    parser.add_argument("--seconds", type=float, default=1e9, help="no context begins later")
    parser.add_argument(
        "--variants", action="store_true", help="also other weights, layers, and ways to make heads one"
    )
    parser.add_argument("--table", type=Path, nargs="+", help="print the table of these files instead of measuring")
    parser.add_argument("--json", type=Path, help="with --table: write its numbers")
    options = parser.parse_args()
    if options.table:
        eviction_table.write([json.loads(line) for path in options.table for line in path.open()], options.json)
        return
    if not (options.model and options.text and options.out):
        parser.error("--model, --text and --out are needed to measure; --table FILE.jsonl prints what was measured")
    measure(options)


if __name__ == "__main__":
    main()
