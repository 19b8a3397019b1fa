"""Run with SGLang's CPU engine on the path: requests through its own trees, without a model. Prints what was found.

argv: the file of benchmarks/prefix_cache.py.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from types import ModuleType
from typing import Any

import numpy as np
import sglang.version


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prefix_cache", sys.argv[1])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["prefix_cache"] = module
    spec.loader.exec_module(module)
    return module


bench = script()
release = sglang.version.__version__
SIZE = 4000


def evictions(cache: Any) -> list[list[int]]:
    """From now on, the tokens of every node that leaves, in order."""
    order: list[list[int]] = []
    names = ("evict_device_leaf", "_evict_device_leaf", "_delete_leaf")
    name = next(name for name in names if hasattr(cache.core, name))
    original = getattr(cache.core, name)

    def noted(node: Any, *rest: Any) -> Any:
        found = cache.core.node_by_id(node) if isinstance(node, int) else node
        order.append(list(found.key.raw_token_ids()))
        return original(node, *rest)

    setattr(cache.core, name, noted)
    return order


def run(policy: str, kind: str, weight: float = 0.7) -> dict[str, Any]:
    cache = bench.Cache(policy, SIZE, kind=kind, weight=weight)
    order = evictions(cache)
    random = np.random.default_rng(3)
    hits = []
    for request in bench.shared(random, 200, prompts=6, drift=60):
        prompt = request.prompt_ids
        per_token = np.random.default_rng(len(prompt)).uniform(0, 2, len(prompt) + len(request.answer))
        hits.append(cache.serve(prompt, request.answer, per_token))
    return {"hits": hits, "evicted": order, "free": cache.pool.free_slots, "size": SIZE, "held": held(cache)}


def nodes(cache: Any) -> list[Any]:
    found, waiting = [], [cache.core.root_node]
    while waiting:
        node = waiting.pop()
        found.append(node)
        waiting.extend(node.children.values())
    return found[1:]


def held(cache: Any) -> dict[str, int]:
    """How many tokens lie in the tree; nodes that were looked at, and of how many what they hold does not fit."""
    known = wrong = 0
    for node in reversed(nodes(cache)) if cache.ranking is not None else ():
        found = cache.policy.held_by(node, cache.ranking)
        known += found is not None
        wrong += found is not None and len(found.received) != len(node.key)
    return {"tokens": sum(len(node.key) for node in nodes(cache)), "known": known, "wrong": wrong}


def splits(kind: str) -> dict[str, Any]:
    """One long request, then others that leave it at several places: what each token holds, before and after."""
    cache = bench.Cache("spectral", SIZE, kind=kind, weight=0.7)
    tokens = list(range(1000, 1200))
    received = np.arange(200, dtype=float)
    cache.serve(tokens, [1, 2, 3])
    # The same again finds all but the prompt's last token.
    cache.serve([*tokens, 7, 8], [1, 2, 3], np.concatenate([received, np.full(5, 9.0)]))
    for at in (150, 40, 90, 41):
        # Nothing was captured of these.
        cache.serve([*tokens[:at], 50_000 + at, 60_000 + at], [4, 5, 6])
    found: dict[int, float] = {}
    count = 0
    # Children first: the front of a split node is handed up when the node is looked at.
    for node in reversed(nodes(cache)):
        own = cache.policy.held_by(node, cache.ranking)
        if own is not None:
            count += 1
            left = cache.ranking.decayed(own, cache.ranking.time)
            found |= dict(zip(node.key.raw_token_ids(), left.tolist(), strict=True))
    factor = 0.5 ** ((cache.ranking.time - 2) / (0.5 * cache.ranking.horizon))
    return {
        "nodes": count,
        "error": max(abs(found.get(t, 0.0) - r * factor) for t, r in zip(tokens, received, strict=True)),
        "foreign": [t for t in found if not 1000 <= t < 1200],
    }


def conversations(kind: str) -> list[int]:
    """Two conversations with one beginning, three turns each: the tokens of the nodes that hold what they received."""
    cache = bench.Cache("spectral", SIZE, kind=kind, weight=0.7)
    begin = list(range(1000, 1100))
    for base in (2000, 3000):
        prompt = list(begin)
        for turn in range(3):
            prompt += range(base + 100 * turn, base + 100 * turn + 20)
            answer = list(range(base + 100 * turn + 50, base + 100 * turn + 70))
            cache.serve(prompt, answer, np.full(len(prompt) + len(answer), 2.0))
            prompt += answer
    found = [node for node in nodes(cache) if cache.policy.held_by(node, cache.ranking) is not None]
    return sorted(token for node in found for token in node.key.raw_token_ids())


def survivor(policy: str, kind: str, attended: int) -> list[bool]:
    """Two prefixes of one length, used twice, one after the other; which of them are still there under pressure."""
    cache = bench.Cache(policy, 1000, kind=kind, weight=0.7)
    prompts = [list(range(base, base + 200)) for base in (10_000, 20_000)]
    for turn in (0, 1):
        for n, prompt in enumerate(prompts):
            cache.serve([*prompt, turn, 9], [n, n + 1], np.full(204, 2.0 if n == attended else 0.1))
    for n in range(4):
        cache.serve(list(range(30_000 + 1000 * n, 30_000 + 1000 * n + 150)), [7, 8], np.full(152, 0.5))
    return [cache.hit(prompt) == 200 for prompt in prompts]


print(json.dumps({"release": release, **{
    kind: {
        "lru": run("lru", kind), "zero": run("spectral", kind, 0.0), "spectral": run("spectral", kind),
        "splits": splits(kind), "conversations": conversations(kind),
        "survivors": {p: [survivor(p, kind, at) for at in (0, 1)] for p in ("lru", "spectral")},
    }
    for kind in ("unified", "radix")
}}))  # fmt: skip
