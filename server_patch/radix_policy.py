"""Scheduler process: SGLang's prefix cache ranks its nodes by the attention that they received (`spectral`).

What a request's captured rows looked at is kept with the request. When it gives its keys back, that is credited to the
nodes that it found in the cache and that go on in several ways. Nothing here touches the tree: a node is found by its
tokens, without an access. The front of what a split node holds follows it into its new parent when the node is next
looked at, which is before that parent can be evicted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomcli.eviction.radix_value import Held, Key, Ranking, Received
from geomcli.kernels import layout
from geomcli.server_patch import faults, radix_options
from geomcli.server_patch.observed import Row
from geomcli.server_patch.request_state import state_of
from geomcli.server_patch.scheduler_state import scheduler
from geomcli.server_patch.startup import options_of

HELD_ATTRIBUTE = "_geom_received"


def register() -> None:
    """Make the policy known to SGLang's trees; it is built only where it was asked for."""
    from sglang.srt.mem_cache import utils

    utils._EVICTION_POLICY_FACTORIES[radix_options.POLICY] = _strategy


def _strategy(**_: Any) -> Strategy:
    """That of this process."""
    from sglang.srt.runtime_context import get_server_args

    if scheduler.ranking is None:
        # The pool's size is known when the first request ends.
        scheduler.ranking = Ranking(options_of(get_server_args()).spectral_weight, capacity=1)
    return Strategy(scheduler.ranking)


class Strategy:
    """An EvictionStrategy of SGLang's: the lowest priority is evicted first."""

    def __init__(self, ranking: Ranking) -> None:
        self.ranking = ranking

    def get_priority(self, node: Any) -> Key:
        try:
            return self.ranking.key(node.last_access_time, held_by(node, self.ranking))
        except Exception:
            faults.report("a node of the prefix cache could not be ranked; it goes by its last access")
            return self.ranking.key(node.last_access_time, None)


def observe(rows: Sequence[Row], records: NDArray[np.int32]) -> None:
    """Take in what the rows looked at: records [layers, n, words] of the tokens that SGLang is about to take in."""
    values = records.view(np.float32)
    for row in rows:
        request, state = row.request, row.state
        if state.received is None or row.at >= records.shape[1]:
            continue
        if request.finished() or getattr(request, "is_retracted", False):
            continue
        options = state.options
        length = len(request.origin_input_ids) + len(request.output_ids)
        places = [scheduler.layers.index(layer) for layer in options.layers]
        of_row = records[places, row.at]
        if (of_row[:, layout.R_STAMP] != state.stamp).any() or (of_row[:, layout.R_LENGTH] != length).any():
            continue
        links = []
        for place in places:
            n = min(int(records[place, row.at, layout.R_LINKS]), layout.KEEP)
            links.append((
                records[place, row.at, layout.R_POSITIONS : layout.R_POSITIONS + n],
                values[place, row.at, layout.R_PROBABILITIES : layout.R_PROBABILITIES + n],
            ))  # fmt: skip
        if not all(np.isfinite(probabilities).all() for _, probabilities in links):
            continue
        first = max(options.first_key(length - 1), options.sink_tokens)
        state.received.observe(links, query_position=length - 1, first=first)


def around_release(original: Callable[..., Any], req: Any, tree_cache: Any, *args: Any, **kwargs: Any) -> Any:
    """A request gives its keys back, to the tree or for good."""
    if scheduler.ranking is None:
        return original(req, tree_cache, *args, **kwargs)
    node = None
    try:
        node = _node_of(req, tree_cache)
    except Exception:
        faults.report("the nodes of a request could not be found; it ranks nothing")
    result = original(req, tree_cache, *args, **kwargs)
    if node is not None:
        try:
            credit(req, tree_cache, node, scheduler.ranking)
        except Exception:
            faults.report("a request's attention could not be credited to the prefix cache")
    return result


def credit(req: Any, tree_cache: Any, node: Any, ranking: Ranking) -> None:
    """Add what the request looked at to the nodes that it found; `node`: the last of its nodes that is known."""
    ranking.capacity = max(1, int(tree_cache.token_to_kv_pool_allocator.size))
    tokens = [*req.origin_input_ids, *req.output_ids]
    found = int(req.cached_tokens)
    path = _path(node, tokens, (getattr(req, "extra_key", None), getattr(req, "cache_salt", None) or None))
    if path:
        ranking.end(max(one.last_access_time for one in path), len(tokens) - found)
    state = state_of(req)
    if state is None or state.received is None:
        return
    received, state.received = state.received, Received()
    per_token = received.per_token(len(tokens))
    # Whoever writes a token looks at it, too: only what others do says that it is of use again.
    per_token[found:] = np.nan
    ranking.learn(per_token)
    start = 0
    for one in path:
        end = start + len(one.key)
        held = held_by(one, ranking)
        # A conversation is looked at by each of its turns and by nobody after the last: that says nothing of reuse.
        if held is not None or len(one.children) > 1:
            held = ranking.add(held, per_token[start:end])
        if held is not None:
            setattr(one, HELD_ATTRIBUTE, held)
        start = end


def held_by(node: Any, ranking: Ranking) -> Held | None:
    """What the node's own tokens received; of a node that was split, its parents get what is theirs."""
    held: Held | None = getattr(node, HELD_ATTRIBUTE, None)
    if held is None:
        return None
    before = len(held.received) - len(node.key)
    if before > 0:
        front, held = held.split(before)
        setattr(node, HELD_ATTRIBUTE, held)
        _give(node.parent, front, ranking)
    return held if before >= 0 else None


def _give(node: Any, held: Held, ranking: Ranking) -> None:
    while node is not None and node.parent is not None and held.received.size:
        before = max(0, len(held.received) - len(node.key))
        front, own = held.split(before)
        setattr(node, HELD_ATTRIBUTE, ranking.merge(held_by(node, ranking), own))
        node, held = node.parent, front


def _node_of(req: Any, tree_cache: Any) -> Any:
    """The node that the request's tokens in the tree end with, the root where none are; None of a foreign tree."""
    core = getattr(tree_cache, "tree_core", tree_cache)
    root = getattr(core, "root_node", None)
    if root is None:
        faults.note("this prefix cache has no nodes that can be ranked")
        return None
    node = req.last_node
    if node is None:
        return root
    return core.node_by_id(node) if isinstance(node, int) else node


def _path(node: Any, tokens: list[int], namespace: tuple[Any, Any]) -> list[Any]:
    """The nodes that hold the tokens, the first one first: up from `node` to the root, and down as far as they go."""
    path = []
    while node is not None and node.parent is not None:
        path.append(node)
        node = node.parent
    if node is None:
        return []
    path.reverse()
    last, at = path[-1] if path else node, sum(len(one.key) for one in path)
    while (child := _child(last, tokens, at, namespace)) is not None:
        path.append(child)
        last, at = child, at + len(child.key)
    return path


def _child(node: Any, tokens: list[int], at: int, namespace: tuple[Any, Any]) -> Any:
    for child in node.children.values():
        key = child.key
        end = at + len(key)
        if end > len(tokens) or not len(key) or key.token_ids[0] != tokens[at]:
            continue
        same = (key.extra_key, getattr(key, "cache_salt", None)) == namespace
        if same and list(key.raw_token_ids()) == tokens[at:end]:
            return child
    return None
