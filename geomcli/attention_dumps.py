"""Traces from `output_attentions` of Hugging Face models, saved as npz or safetensors; docs/traces.md has the layout.

Every number is made as the server makes it (docs/geometry.md): softmax rows for each head, mean over heads, then
histogram, fingerprint, zone and drift. One layer is in memory at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geomcli import jsonl
from geomcli.array_files import open_arrays
from geomcli.attention_source import Meta, Source, meta_of
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

_TINY = 1e-30


class _Rows(NamedTuple):
    """One layer's numbers of each output token: histogram [n, 16], profile [n, 256], entropy, sink, links and seen [n].

    seen: heads that took part, of `heads`.
    """

    histogram: NDArray[np.float64]
    profile: NDArray[np.float32]
    entropy: list[float]
    sink: list[float]
    links: list[Record]
    seen: list[int]
    heads: int


def read_dump(
    path: Path, *, layers: Sequence[int] | None = None, top_k: int = 16, sink_tokens: int = 4
) -> list[Record]:
    """The records of one trace, made from a dump.

    layers: ids, all that the dump holds if left out; the last of them is the one that links are shown of first. top_k:
    links of a token. TraceError says what is wrong with the file.
    """
    with open_arrays(path) as arrays:
        meta = meta_of(arrays, path.name)
        source = Source(arrays, meta, path.name)
        chosen = sorted(set(source.layers if layers is None else layers))
        if missing := sorted(set(chosen) - set(source.layers)):
            there = ",".join(map(str, source.layers))
            raise TraceError(f"{path.name} has no layer {missing[0]}; it has {there}.", f"--layers {there}")
        found = {layer: _rows(source, layer, top_k, sink_tokens) for layer in chosen}
    return _records(path, meta, source, found, sink_tokens)


def _rows(source: Source, layer: int, top_k: int, sink_tokens: int) -> _Rows:
    histograms, profiles, entropies, sinks, links, seen = [], [], [], [], [], []
    heads = 0
    for position, whole in source.rows(layer):
        heads = whole.shape[0]
        row = whole[whole.any(axis=1)]
        seen.append(row.shape[0])
        mean = row.mean(axis=0) if seen[-1] else np.zeros(position + 1)
        histograms.append(distance_histogram(mean, position, sink_tokens=sink_tokens))
        profile = np.zeros(PROFILE_SIZE, dtype=np.float32)
        near = mean[sink_tokens:][::-1][:PROFILE_SIZE]
        profile[: near.shape[0]] = near
        profiles.append(profile)
        logs = np.log2(row, out=np.zeros_like(row), where=row > 0)
        entropies.append(round_significant(float(-(row * logs).sum(axis=1).mean())) if seen[-1] else 0.0)
        sinks.append(round_significant(float(mean[:sink_tokens].sum())))
        links.append(_links(mean, top_k))
    return _Rows(np.array(histograms), np.array(profiles), entropies, sinks, links, seen, heads)


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


def _records(path: Path, meta: Meta, source: Source, found: dict[int, _Rows], sink_tokens: int) -> list[Record]:
    chosen = sorted(found)
    last = found[chosen[-1]]
    weights = np.array([found[layer].seen for layer in chosen], dtype=np.float64)
    hists = mean_histogram(np.stack([found[layer].histogram for layer in chosen]), weights)
    fingerprints = fingerprints_from_histograms(hists)
    profiles = np.mean([found[layer].profile for layer in chosen], axis=0)
    compass, ripples = Compass(), RippleTracker()
    texts = meta.tokens or [None] * (meta.prompt_len + source.outputs)
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
            "heads": {"seen": last.seen[output], "total": last.heads},
            "ruleset": ZONES_V1.name,
            "schema": SCHEMA_VERSION,
            "flags": _flags(found, output, hists[output]),
            "fingerprint": rounded(fingerprints[output]),
            "manifold": zone.zone,
            "zone": zone.zone,
            "zone_confidence": round_significant(zone.confidence),
            "sink_mass": round_significant(_mean_sink(found, output)),
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
    return named(header, made, path, "hf-attentions", created=meta.created)


def _flags(found: dict[int, _Rows], output: int, hist: NDArray[np.float64]) -> list[str]:
    if not hist.sum() > 0:
        return ["empty"]
    return ["partial_heads"] if any(rows.seen[output] < rows.heads for rows in found.values()) else []


def _mean_sink(found: dict[int, _Rows], output: int) -> float:
    """Over the layers that have a head in this row."""
    return float(np.mean([rows.sink[output] for rows in found.values() if rows.seen[output]] or [0.0]))


def named(
    header: Record, rest: list[Record], path: Path, kind: str, *, created: int = 0, request: str = ""
) -> list[Record]:
    """A trace that says it was imported: its id comes from what is in it, so that a file read twice is one trace.

    request: what tells it from another trace of the file with the same content.
    """
    metrics = rest[-1]
    for clock in ("durationMs", "tokensPerSecond"):
        metrics.pop(clock, None)
    header["created"] = created or (int(path.stat().st_mtime * 1000) if path.is_file() else 0)
    header["imported"] = {"format": kind, "file": path.name}
    content = hashlib.sha256("".join(jsonl.line(record) for record in rest).encode())
    content.update(str(header["model"]).encode())
    content.update(request.encode())
    header["trace_id"] = f"{kind.partition('-')[0]}-{content.hexdigest()[:12]}"
    return [header, *rest]
