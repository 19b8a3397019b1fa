"""Hit rates of the prefix cache under `spectral`, lru, lfu and slru, on traffic made here.

    python benchmarks/prefix_cache.py

Goes through SGLang's own tree, without a model. The real engine: prefix_cache_engine.py, which also records what real
answers look at.

Traffic `shared`: a few system prompts, of Zipf's popularity that drifts, each followed by one question of many users.
Traffic `chats`: conversations of several turns, interleaved, each turn with all before it as its prefix.
Traffic `mixed`: half of each. A request's look at a part of its prompt is drawn from recorded means of that kind of
part (docs/measurements), one draw a part: it knows nothing of whether the part will be used again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MEASUREMENTS = Path(__file__).parents[1] / "docs" / "measurements"
RECORDED, RESULTS = MEASUREMENTS / "prefix_cache_attention.json", MEASUREMENTS / "prefix_cache.json"
SYSTEM, HISTORY, QUESTION, ANSWER = KINDS = ("system", "history", "question", "answer")
POLICIES = ("lru", "lfu", "slru")
WEIGHTS = (0.3, 0.7, 0.9)


class Part(NamedTuple):
    """Tokens that belong together, and what they are to a request."""

    tokens: list[int]
    kind: str


@dataclass
class Request:
    prompt: list[Part]
    answer: list[int]

    @property
    def prompt_ids(self) -> list[int]:
        return [token for part in self.prompt for token in part.tokens]


@dataclass
class Text:
    """Token ids that no other text shares, the first ones aside."""

    random: np.random.Generator
    _next: Iterator[int] = field(default_factory=lambda: itertools.count(10))

    def of(self, low: float, high: float) -> list[int]:
        """Of a length that is log-uniform in low..high."""
        length = int(math.exp(self.random.uniform(math.log(low), math.log(high))))
        return [next(self._next) for _ in range(length)]


def shared(random: np.random.Generator, count: int, *, prompts: int = 24, drift: int = 400) -> list[Request]:
    """System prompts of 200..1,500 tokens, questions of 20..200; every `drift` requests popularity is dealt anew."""
    text = Text(random)
    systems = [text.of(200, 1500) for _ in range(prompts)]
    shares = 1 / np.arange(1, prompts + 1) ** 0.9
    made, order = [], random.permutation(prompts)
    for n in range(count):
        if n and n % drift == 0:
            order = random.permutation(prompts)
        system = systems[order[random.choice(prompts, p=shares / shares.sum())]]
        made.append(Request([Part(system, SYSTEM), Part(text.of(20, 200), QUESTION)], text.of(40, 300)))
    return made


def chats(random: np.random.Generator, count: int, *, open_chats: int = 40) -> list[Request]:
    """Conversations of 1..12 turns (geometric, mean 4) under one of four system prompts; so many go on at a time, some
    of them ten times as busy as others.
    """
    text = Text(random)
    systems = [text.of(60, 300) for _ in range(4)]

    def opened() -> dict[str, Any]:
        return {"parts": [Part(systems[random.integers(4)], SYSTEM)], "left": min(12, int(random.geometric(0.25))),
                "pace": 10 ** random.uniform(0, 1)}  # fmt: skip

    running, made = [opened() for _ in range(open_chats)], []
    while len(made) < count:
        paces = np.array([one["pace"] for one in running])
        at = int(random.choice(len(running), p=paces / paces.sum()))
        one = running[at]
        question, answer = text.of(15, 150), text.of(40, 300)
        made.append(Request([*one["parts"], Part(question, QUESTION)], answer))
        one["parts"] += [Part(question, HISTORY), Part(answer, HISTORY)]
        one["left"] -= 1
        if one["left"] == 0:
            running[at] = opened()
    return made


def mixed(random: np.random.Generator, count: int) -> list[Request]:
    """Half of each, in random order."""
    # Its own numbers for each, so that no two texts are alike.
    kinds = iter(shared(random, count)), iter(_renumbered(chats(random, count), 10_000_000))
    return [next(kinds[int(random.integers(2))]) for _ in range(count)]


def _renumbered(requests: list[Request], by: int) -> list[Request]:
    """With other token ids."""
    return [
        Request(
            [Part([token + by for token in part.tokens], part.kind) for part in one.prompt],
            [token + by for token in one.answer],
        )
        for one in requests
    ]


TRAFFIC = {"shared": shared, "chats": chats, "mixed": mixed}


class Look:
    """What a request looks at: recorded means of parts of each kind, one of them drawn for each part."""

    def __init__(self, recorded: dict[str, list[float]], random: np.random.Generator) -> None:
        self._recorded, self._random = recorded, random

    def per_token(self, request: Request) -> NDArray[np.float64]:
        parts = [*request.prompt, Part(request.answer, ANSWER)]
        return np.concatenate(
            [np.full(len(part.tokens), self._random.choice(self._recorded[part.kind])) for part in parts]
        )


class Pool:
    """Counts slots as SGLang's allocator would; hands out none."""

    device = "cpu"
    page_size = 1

    def __init__(self, size: int) -> None:
        self.size = self.free_slots = size

    def free(self, slots: Any) -> None:
        self.free_slots += len(slots)

    def free_segment(self, slots: Any, *, start_pos: int = 0) -> None:  # noqa: ARG002  (SGLang's signature)
        self.free(slots)

    def available_size(self) -> int:
        return self.free_slots

    def get_kvcache(self) -> None:
        return None


class Cache:
    """SGLang's own tree over a pool of `size` tokens; kind: `unified` (its default since 0.5.20) or `radix`."""

    def __init__(self, policy: str, size: int, *, weight: float = 0.7, kind: str = "unified") -> None:
        from sglang.srt.mem_cache.cache_init_params import CacheInitParams

        from geomcli.eviction.radix_value import Ranking
        from geomcli.server_patch import radix_policy
        from geomcli.server_patch.radix_policy import Strategy

        self.policy, self.pool, self.kind = radix_policy, Pool(size), kind
        self.ranking = Ranking(weight, size) if policy == "spectral" else None
        params = CacheInitParams(
            disable=False, req_to_token_pool=None, token_to_kv_pool_allocator=self.pool, page_size=1,
            eviction_policy="lru" if self.ranking else policy,
        )  # fmt: skip
        if kind == "unified":
            # ComponentType has moved from release to release.
            from sglang.srt.mem_cache.unified_radix_cache import ComponentType, UnifiedRadixCache

            params.tree_components = (ComponentType.FULL,)
            self.tree = UnifiedRadixCache(params)
            self.core = getattr(self.tree, "tree_core", self.tree)
        else:
            from sglang.srt.mem_cache.radix_cache import RadixCache

            self.tree = self.core = RadixCache(params)
        if self.ranking is not None:
            self.core.eviction_strategy = Strategy(self.ranking)

    def key(self, tokens: list[int]) -> Any:
        from sglang.srt.mem_cache.radix_cache import RadixKey

        return RadixKey(array("q", tokens), None)

    def serve(self, prompt: list[int], answer: list[int], per_token: NDArray[np.float64] | None = None) -> int:
        """Tokens of the prompt that were there. The request then lies in the tree, all but its last token."""
        from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams

        tokens = [*prompt, *answer][:-1]
        hit, node = self._matched(prompt[:-1])
        receipt = self.tree.inc_lock_ref(node).to_dec_params()
        needed = len(tokens) - hit
        if (short := needed - self.pool.free_slots) > 0:
            self.tree.evict(EvictParams(num_tokens=short))
        if needed > self.pool.free_slots:
            raise ValueError(f"a request of {len(tokens)} tokens does not fit into the pool")
        self.pool.free_slots -= needed
        # As a running request's, its prompt first: the answer is a node of its own.
        for cut, known in ((prompt, hit), (tokens, len(prompt))):
            inserted = self.tree.insert(
                InsertParams(key=self.key(cut), value=self._slots(len(cut)), prev_prefix_len=known)
            )
            if self.kind == "radix":
                self.pool.free_slots += max(0, inserted.prefix_len - known)
        self.tree.dec_lock_ref(node, receipt)
        if self.ranking is not None:
            request = SimpleNamespace(
                origin_input_ids=prompt, output_ids=answer, cached_tokens=hit, extra_key=None, cache_salt=None,
                _geom_state=SimpleNamespace(received=_Given(per_token)),
            )  # fmt: skip
            node = self.core.node_by_id(node) if isinstance(node, int) else node
            self.policy.credit(request, self.tree, node, self.ranking)
        return hit

    def hit(self, tokens: list[int]) -> int:
        """How many of the tokens are there; a look at them, which refreshes them."""
        return self._matched(tokens)[0]

    def _matched(self, tokens: list[int]) -> tuple[int, Any]:
        from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams

        found = self.tree.match_prefix(MatchPrefixParams(key=self.key(tokens)))
        there = found.device_prefix_len if hasattr(found, "device_prefix_len") else len(found.device_indices)
        return there, found.last_device_node

    def _slots(self, n: int) -> Any:
        import torch

        return torch.arange(n, dtype=torch.int64)


class _Given:
    """Stands for the rows that were captured."""

    def __init__(self, per_token: NDArray[np.float64] | None) -> None:
        self._per_token = per_token

    def per_token(self, length: int) -> NDArray[np.float64]:
        if self._per_token is None:
            return np.full(length, np.nan)
        return self._per_token[:length]


def hit_rate(policy: str, requests: list[Request], size: int, *, weight: float, look: Look | None) -> float:
    """Share of all prompt tokens that were in the cache."""
    cache = Cache(policy, size, weight=weight)
    hits = prompts = 0
    for request in requests:
        prompt = request.prompt_ids
        hits += cache.serve(prompt, request.answer, None if look is None else look.per_token(request))
        prompts += len(prompt)
    return hits / prompts


def replay(arguments: argparse.Namespace) -> None:
    recorded = json.loads(RECORDED.read_text())["received"]
    looks: dict[str, dict[str, list[float]]] = {
        "recorded": recorded, "even": {kind: [1.0] for kind in KINDS},
        "shuffled": {kind: [value for one in KINDS for value in recorded[one]] for kind in KINDS},
    }  # fmt: skip
    table: dict[str, Any] = {}
    for traffic, size in itertools.product(TRAFFIC, arguments.sizes):
        rates: dict[str, list[float]] = {}
        for seed in range(arguments.seeds):
            requests = TRAFFIC[traffic](np.random.default_rng(seed), arguments.requests)
            runs = [(policy, policy, 0.0, None) for policy in POLICIES]
            runs += [(f"spectral {weight}", "spectral", weight, "recorded") for weight in WEIGHTS]
            runs += [(f"spectral 0.7, {name}", "spectral", 0.7, name) for name in looks if name != "recorded"]
            for name, policy, weight, given in runs:
                look = None if given is None else Look(looks[given], np.random.default_rng(1000 + seed))
                rates.setdefault(name, []).append(hit_rate(policy, requests, size, weight=weight, look=look))
            print(traffic, size, seed, {name: round(values[-1], 4) for name, values in rates.items()}, flush=True)
        table[f"{traffic} {size}"] = {name: _spread(values, rates["lru"]) for name, values in rates.items()}
    settings = {"requests": arguments.requests, "seeds": arguments.seeds, "sizes": arguments.sizes}
    keep("replay", {"settings": settings, "hit_rate": table})


def _spread(values: list[float], lru: list[float]) -> dict[str, Any]:
    """Mean and standard deviation over seeds, and of the differences to lru on the same seeds a 95 % interval (t)."""
    differences = np.array(values) - np.array(lru)
    n = len(values)
    half = float(_t_quantile(n - 1) * differences.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    mean = float(differences.mean())
    return {
        "mean": round(float(np.mean(values)), 5), "deviation": round(float(np.std(values, ddof=1)), 5),
        "over_lru": [round(mean, 5), round(mean - half, 5), round(mean + half, 5)],
    }  # fmt: skip


def _t_quantile(freedom: int) -> float:
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))


def keep(name: str, found: dict[str, Any]) -> None:
    """Into docs/measurements, beside what other commands left there."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**known, name: found}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--sizes", type=int, nargs="+", default=[12_000, 24_000], help="tokens of the pool")
    replay(parser.parse_args())


if __name__ == "__main__":
    # SGLang's CPU engine needs what the plugin puts in place of its CUDA libraries, on the path before it is imported.
    if "SGLANG_USE_CPU_ENGINE" not in os.environ:
        shim = str(Path(find_spec("geomcli.server_patch").origin).parent / "cpu_shim")  # type: ignore[union-attr,arg-type]
        path = os.pathsep.join([shim, os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "SGLANG_USE_CPU_ENGINE": "1", "SGLANG_PLUGINS": "none"}
        os.execve(sys.executable, [sys.executable, "-P", *sys.argv], environment)
    main()
