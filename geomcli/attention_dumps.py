"""Traces from `output_attentions` of Hugging Face models, saved as npz or safetensors; docs/traces.md has the layout.

Every number is made as the server makes it (docs/geometry.md): softmax rows for each head, mean over heads, then
histogram, fingerprint, zone and drift. One layer is in memory at a time.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from geomcli import jsonl
from geomcli.array_files import open_arrays
from geomcli.client import Chunk
from geomcli.compass import PROFILE_SIZE, Compass, RippleTracker
from geomcli.errors import TraceError
from geomcli.fingerprint import (
    distance_histogram,
    fingerprints_from_histograms,
    mean_histogram,
    round_significant,
    rounded,
)
from geomcli.schema import SCHEMA_VERSION, Message, Record
from geomcli.trace import TraceBuilder
from geomcli.zones import ZONES_V1, classify

_DOCS = "docs/traces.md, section Hugging Face, has a script that makes one"
_TOLERANCE = 0.02  # of a row's sum: 16-bit probabilities of a long row
_STACKED, _OF_LAYER = re.compile(r"attentions"), re.compile(r"attentions\.(\d+)")
_OF_STEP = re.compile(r"attentions\.(\d+)\.(\d+)")
_TINY = 1e-30


class _Meta(msgspec.Struct):
    """What a dump says beside its arrays."""

    prompt_len: int
    tokens: list[str | None] = []
    model: str = "unknown"
    messages: list[dict[str, str]] = []
    layers: list[int] = []
    created: int = 0


class Arrays(Protocol):
    """Arrays by name, read when they are asked for; `meta`: the text beside them."""

    names: list[str]
    meta: str

    def shape(self, name: str) -> tuple[int, ...]: ...

    def array(self, name: str, index: int | None = None) -> NDArray[Any]: ...


class _Rows(NamedTuple):
    """One layer's numbers of each output token: histogram [n, 16], profile [n, 256], entropy, sink and links [n]."""

    histogram: NDArray[np.float64]
    profile: NDArray[np.float32]
    entropy: list[float]
    sink: list[float]
    links: list[Record]
    heads: int


def read_dump(
    path: Path, *, layers: Sequence[int] | None = None, top_k: int = 16, sink_tokens: int = 4
) -> list[Record]:
    """The records of one trace, made from a dump.

    layers: ids, all that the dump holds if left out; the last of them is the one that links are shown of first. top_k:
    links of a token. TraceError says what is wrong with the file.
    """
    with open_arrays(path) as arrays:
        meta = _meta(arrays, path.name)
        source = _Source(arrays, meta, path.name)
        chosen = sorted(set(source.layers if layers is None else layers))
        if missing := sorted(set(chosen) - set(source.layers)):
            raise TraceError(f"{path.name} has no layer {missing[0]}; it has {', '.join(map(str, source.layers))}.")
        found = {layer: _rows(source, layer, top_k, sink_tokens) for layer in chosen}
    return _records(path, meta, source, found, sink_tokens)


def _meta(arrays: Arrays, name: str) -> _Meta:
    if not arrays.meta:
        raise TraceError(f"{name} has no `meta` that says where the prompt ends.", _DOCS)
    try:
        meta = msgspec.json.decode(arrays.meta, type=_Meta)
    except msgspec.MsgspecError as error:
        raise TraceError(f"{name}, `meta`: {error}.", _DOCS) from None
    if meta.prompt_len < 1:
        raise TraceError(f"{name}, `meta`: prompt_len must be at least 1, it is {meta.prompt_len}.", _DOCS)
    return meta


class _Source:
    """Where the row of a layer and a query stands: in one array, in one for each layer, or in one for each step."""

    def __init__(self, arrays: Arrays, meta: _Meta, name: str) -> None:
        self._arrays, self._meta, self._file = arrays, meta, name
        self.layers: list[int] = []
        steps: dict[int, set[int]] = {}
        for array in arrays.names:
            if match := _OF_STEP.fullmatch(array):
                steps.setdefault(int(match[1]), set()).add(int(match[2]))
            elif match := _OF_LAYER.fullmatch(array):
                self.layers.append(int(match[1]))
            elif _STACKED.fullmatch(array):
                count = self._stacked_shape()[0]
                self.layers += meta.layers or range(count)
        self.layers.sort()
        self.by_step = bool(steps)
        if steps:
            if self.layers:
                raise TraceError(f"{name} holds whole sequences and steps; one of them has to go.", _DOCS)
            self.layers = sorted(steps[0]) if 0 in steps else []
            wrong = [n for n in range(len(steps)) if steps.get(n) != set(self.layers)]
            if wrong:
                raise TraceError(f"{name}: step {wrong[0]} does not have the layers of step 0.", _DOCS)
        if not self.layers:
            raise TraceError(f"{name} has no `attentions`, `attentions.LAYER` or `attentions.STEP.LAYER`.", _DOCS)
        self.outputs = len(steps) or self._length() - meta.prompt_len
        if self.outputs < 1:
            raise TraceError(f"{name}: {self._length()} positions, and the prompt has {meta.prompt_len}.", _DOCS)

    def rows(self, layer: int) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """(position m of the query, probabilities [heads, m + 1]) of each output token."""
        whole = None if self.by_step else self._matrix(layer)
        for output in range(self.outputs):
            position = self._meta.prompt_len + output - 1
            if whole is None:
                row = self._step_row(output, layer)
                self._check(row, layer, position)
                if row.shape[1] != position + 1:
                    raise TraceError(
                        f"{self._file}, step {output}, layer {layer}: {row.shape[1]} keys, not {position + 1}."
                    )
            else:
                row = whole[:, position].astype(np.float64)
                self._check(row, layer, position)
                if position + 1 < row.shape[1] and np.abs(row[:, position + 1 :]).max() > _TOLERANCE:
                    raise TraceError(
                        f"{self._file}, layer {layer}: position {position} looks at later ones; this is not causal."
                    )
                row = row[:, : position + 1]
            yield position, np.clip(row, 0.0, None)

    def _step_row(self, output: int, layer: int) -> NDArray[np.float64]:
        step = self._without_batch(self._arrays.array(f"attentions.{output}.{layer}"), 3)
        return step[:, -1].astype(np.float64)

    def _check(self, row: NDArray[np.float64], layer: int, position: int) -> None:
        sums = row.sum(axis=1)
        if not np.isfinite(row).all() or row.min() < -_TOLERANCE or sums.max() > 1 + _TOLERANCE or sums.max() <= 0:
            raise TraceError(
                f"{self._file}, layer {layer}, position {position}: these are no probabilities (sum "
                f"{float(sums.max()):.3g}); attention after the softmax is needed."
            )

    def _matrix(self, layer: int) -> NDArray[Any]:
        if f"attentions.{layer}" in self._arrays.names:
            made = self._without_batch(self._arrays.array(f"attentions.{layer}"), 3)
        else:
            made = self._without_batch(self._arrays.array("attentions", self.layers.index(layer)), 3)
        if made.shape[1] != made.shape[2] or made.shape[1] != self._length():
            raise TraceError(f"{self._file}, layer {layer}: shape {made.shape}, not (heads, T, T).", _DOCS)
        return made

    def _without_batch(self, array: NDArray[Any], dimensions: int) -> NDArray[Any]:
        made = array[0] if array.ndim == dimensions + 1 and array.shape[0] == 1 else array
        if made.ndim != dimensions or 0 in made.shape:
            raise TraceError(f"{self._file}: an array has shape {array.shape}, not (heads, queries, keys).", _DOCS)
        return made

    def _stacked_shape(self) -> tuple[int, ...]:
        shape = self._arrays.shape("attentions")
        if len(shape) not in (4, 5):
            raise TraceError(f"{self._file}: `attentions` has shape {shape}, not (layers, heads, T, T).", _DOCS)
        if self._meta.layers and len(self._meta.layers) != shape[0]:
            raise TraceError(f"{self._file}: {shape[0]} layers, and `meta` names {len(self._meta.layers)}.", _DOCS)
        return shape

    def _length(self) -> int:
        named = f"attentions.{self.layers[0]}" if self.layers else ""
        shape = self._arrays.shape(named if named in self._arrays.names else "attentions")
        if len(shape) < 3 or shape[-1] != shape[-2]:
            raise TraceError(f"{self._file}: an array has shape {shape}, not (heads, T, T).", _DOCS)
        return shape[-1]


def _rows(source: _Source, layer: int, top_k: int, sink_tokens: int) -> _Rows:
    histograms, profiles, entropies, sinks, links = [], [], [], [], []
    heads = 0
    for position, row in source.rows(layer):
        heads = row.shape[0]
        mean = row.mean(axis=0)
        histograms.append(distance_histogram(mean, position, sink_tokens=sink_tokens))
        profile = np.zeros(PROFILE_SIZE, dtype=np.float32)
        near = mean[sink_tokens:][::-1][:PROFILE_SIZE]
        profile[: near.shape[0]] = near
        profiles.append(profile)
        logs = np.log2(row, out=np.zeros_like(row), where=row > 0)
        entropies.append(round_significant(float(-(row * logs).sum(axis=1).mean())))
        sinks.append(round_significant(float(mean[:sink_tokens].sum())))
        links.append(_links(mean, top_k))
    return _Rows(np.array(histograms), np.array(profiles), entropies, sinks, links, heads)


def _links(mean: NDArray[np.float64], top_k: int) -> Record:
    """The strongest positions; a dump has probabilities only, so log p with a normaliser of 0 stands for the logits."""
    order = np.argsort(-mean, kind="stable")[:top_k]
    order = order[mean[order] > 0]
    p = mean[order]
    return {
        "token_positions": order.tolist(),
        "attention_scores": rounded(p / max(float(p.sum()), _TINY)),
        "topk_logits": rounded(np.log(np.maximum(p, _TINY))),
        "logsumexp_candidates": 0.0,
        "topk_mass": round_significant(float(p.sum())),
    }


def _records(path: Path, meta: _Meta, source: _Source, found: dict[int, _Rows], sink_tokens: int) -> list[Record]:
    chosen = sorted(found)
    last = found[chosen[-1]]
    weights = np.array([[found[layer].heads] * source.outputs for layer in chosen], dtype=np.float64)
    hists = mean_histogram(np.stack([found[layer].histogram for layer in chosen]), weights)
    fingerprints = fingerprints_from_histograms(hists)
    profiles = np.mean([found[layer].profile for layer in chosen], axis=0)
    compass, ripples = Compass(), RippleTracker()
    texts = [*meta.tokens, *[None] * (meta.prompt_len + source.outputs)]
    messages: list[Message] = [{"role": m.get("role", "user"), "content": m.get("content", "")} for m in meta.messages]
    if not messages and any(meta.tokens[: meta.prompt_len]):
        messages = [{"role": "user", "content": "".join(text or "" for text in meta.tokens[: meta.prompt_len])}]
    builder = TraceBuilder(messages, model=meta.model, capture={"layers": chosen, "sink_tokens": sink_tokens})
    header, *made = builder.start()
    for output in range(source.outputs):
        ripple = ripples.update(profiles[output])
        drift = compass.update(hists[output])
        zone = classify(fingerprints[output], ripple)
        entry: dict[str, Any] = {
            "index": 0,
            "decode_step": output + 1,
            "token": texts[meta.prompt_len + output],
            "query_position": meta.prompt_len + output - 1,
            "prompt_len": meta.prompt_len,
            "think_phase": "output",
            "mode": "raw",
            "layer_id": chosen[-1],
            "heads": {"seen": last.heads, "total": last.heads},
            "ruleset": ZONES_V1.name,
            "schema": SCHEMA_VERSION,
            "flags": [] if hists[output].sum() > 0 else ["empty"],
            "fingerprint": rounded(fingerprints[output]),
            "manifold": zone.zone,
            "zone": zone.zone,
            "zone_confidence": round_significant(zone.confidence),
            "sink_mass": round_significant(float(np.mean([found[layer].sink[output] for layer in chosen]))),
            "entropy_bits": last.entropy[output],
            "drift": None if drift is None else round_significant(drift),
            "compass": compass.status,
            "ripple": None if ripple is None else round_significant(ripple),
            **last.links[output],
        }
        if output == 0 and meta.tokens:
            entry["prompt_tokens"] = meta.tokens[: meta.prompt_len]
        if len(chosen) > 1:
            entry["layers"] = {
                str(layer): {
                    **rows.links[output],
                    "entropy_bits": rows.entropy[output],
                    "sink_mass": rows.sink[output],
                    "fingerprint": rounded(fingerprints_from_histograms(rows.histogram[output])),
                }
                for layer, rows in found.items()
            }
        made += builder.add(Chunk(text=entry["token"] or "", entries=(entry,)))  # type: ignore[arg-type]
    made += builder.add(Chunk(finish_reason=None, usage={"completion_tokens": source.outputs}))
    made += builder.finish()
    return named(header, made, path, "hf-attentions", meta.created)


def named(header: Record, rest: list[Record], path: Path, kind: str, created: int) -> list[Record]:
    """A trace that says it was imported: its id comes from what is in it, so that a file read twice is one trace."""
    metrics = rest[-1]
    for clock in ("durationMs", "tokensPerSecond"):
        metrics.pop(clock, None)
    header["created"] = created or (int(path.stat().st_mtime * 1000) if path.is_file() else 0)
    header["imported"] = {"format": kind, "file": path.name}
    content = hashlib.sha256("".join(jsonl.line(record) for record in rest).encode())
    content.update(str(header["model"]).encode())
    header["trace_id"] = f"{kind.partition('-')[0]}-{content.hexdigest()[:12]}"
    return [header, *rest]
