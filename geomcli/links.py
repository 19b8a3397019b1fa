"""What a token looked at: the links of a step with true probabilities, and the texts at their positions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import msgspec

from geomcli.schema import Record
from geomcli.trace import Trace

_SEVERAL = ("layers", "layer_sketches")  # where a step holds what it has of several layers
_LAYER = re.compile(r"\d{1,9}", re.ASCII)
_ROUNDED = 1e-3  # by which a probability may be above 1
_Position = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class Link(msgspec.Struct, frozen=True):
    """One attended position: `probability` is the head-mean attention, `share` its part of the links shown (sum 1).

    `content` and `position_score` are the logit by content and what the rotation adds; None unless it was asked for.
    """

    position: int
    probability: float
    share: float
    content: float | None = None
    position_score: float | None = None


class _Split(msgspec.Struct):
    content: list[float] = []
    position: list[float] = []


class _Row(msgspec.Struct):
    token_positions: list[_Position] = []
    attention_scores: list[float] = []
    topk_logits: list[float] = []
    logsumexp_candidates: float | None = None
    derotated: _Split | None = None


class _Sketch(msgspec.Struct):
    top_hubs: list[tuple[_Position, float]] = []


def links_of(step: Mapping[str, Any], layer: int | None = None) -> list[Link]:
    """Links of a raw or sketch step, strongest first; empty where it has none or they cannot be read.

    `layer`: a captured layer's id; the step's own (the last selected) if left out.
    """
    attention: Mapping[str, Any] = step.get("attention") or {}
    own = step.get("layer_id")
    wanted = own if layer is None else layer
    try:
        if (sketch := _mapping(attention.get("layer_sketches")).get(str(wanted))) is not None:
            return _of_sketch(msgspec.convert(sketch, _Sketch))
        row = attention if wanted == own else _mapping(attention.get("layers")).get(str(wanted)) or {}
        return _of_row(msgspec.convert(row, _Row))
    except msgspec.ValidationError:
        return []


def _of_sketch(sketch: _Sketch) -> list[Link]:
    hubs = [(position, p) for position, p in sketch.top_hubs if 0 <= p <= 1 + _ROUNDED]
    total = sum(probability for _, probability in hubs) or 1.0
    return _sorted(Link(n, p, p / total) for n, p in hubs)


def _of_row(row: _Row) -> list[Link]:
    if row.logsumexp_candidates is None:
        return []
    lse, missing = row.logsumexp_candidates, [None] * len(row.token_positions)
    split = row.derotated or _Split()
    columns = (row.topk_logits, row.attention_scores or missing, split.content or missing, split.position or missing)
    return _sorted(
        Link(n, math.exp(min(0.0, logit - lse)), share or 0.0, content, position)
        for n, logit, share, content, position in zip(row.token_positions, *columns, strict=False)
    )


def _sorted(links: Iterable[Link]) -> list[Link]:
    return sorted(links, key=lambda link: -link.probability)


def strongest_links(step: Mapping[str, Any]) -> list[tuple[int, float]]:
    """(position, probability) of `links_of`."""
    return [(link.position, link.probability) for link in links_of(step)]


def layers_of(step: Mapping[str, Any]) -> list[int]:
    """Ids of the layers that a step has values of, ascending."""
    named = layers_named(step) or _mapping(step.get("layers"))
    own = step.get("layer_id")
    return sorted(layer_ids(named) | ({own} if own is not None else set()))


def layers_named(step: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a step holds of several layers, by name; empty where it has one layer, or where they cannot be read."""
    attention: Mapping[str, Any] = step.get("attention") or {}
    return next((found for name in _SEVERAL if (found := _mapping(attention.get(name)))), {})


def without_links(attention: Mapping[str, Any]) -> dict[str, Any]:
    """What `layers_named` needs of a step's attention: the names of its layers, and nothing of their links."""
    named = ((name, attention.get(name)) for name in _SEVERAL)
    return {name: dict.fromkeys(layers) for name, layers in named if isinstance(layers, dict)}


def layer_ids(names: Iterable[object]) -> set[int]:
    """The layers among names of fields; whatever else stands there is none."""
    return {int(name) for name in names if isinstance(name, str) and _LAYER.fullmatch(name)}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def sink_count(trace: Trace) -> int:
    """How many first positions count as sinks: what the trace says, else the server's default."""
    given = (trace.header.get("capture") or {}).get("sink_tokens")
    return given if isinstance(given, int) and given >= 0 else 4


def prompt_length(trace: Trace) -> int | None:
    """Tokens of the prompt; None where no step says. An entry that was lost does not know, any other does."""
    return next((step["prompt_len"] for step in trace.steps if isinstance(step.get("prompt_len"), int)), None)


def texts_by_position(trace: Trace) -> dict[int, str]:
    """Token texts by absolute position: the prompt's where the trace has them, then the answer's."""
    texts: dict[int, str] = {}
    for step in trace.steps:
        prompt: list[Record | str | None] = step.get("prompt_tokens") or []
        texts.update({position: text for position, text in enumerate(prompt) if isinstance(text, str)})
    if (prompt_len := prompt_length(trace)) is not None:
        texts.update({prompt_len + int(t["index"]): t.get("text") or "" for t in trace.tokens})
    return texts
