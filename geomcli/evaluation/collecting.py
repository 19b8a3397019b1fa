"""Asking a server every question that has no answer yet, a few at a time, and keeping answers as they end."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from geomcli.client import Client
from geomcli.detectors.received import STRONGEST
from geomcli.errors import GeomError, ServerUnreachable
from geomcli.evaluation.folder import Answer, Folder, Header, digest
from geomcli.evaluation.items import Item
from geomcli.evaluation.recording import TOP_LOGPROBS, recording_of
from geomcli.request import attention_fields

_TRIES = 4  # of an answer that the server is too busy for
_WAIT_SECONDS = 1.0


@dataclass(frozen=True)
class Progress:
    """done and total: answers, those of earlier runs included; tokens and seconds: of this run."""

    done: int
    total: int
    fresh: int
    tokens: int
    seconds: float

    @property
    def remaining_seconds(self) -> float | None:
        return None if not self.fresh else self.seconds / self.fresh * (self.total - self.done)


@dataclass(frozen=True)
class Plan:
    header: Header
    fields: dict[str, Any]


def plan(
    capabilities: Mapping[str, Any],
    *,
    model: str,
    items: list[Item],
    layers: list[int] | None,
    temperatures: Sequence[float],
    max_tokens: int,
    seed: int,
) -> Plan:
    """Request fields for all that the server can let out, and the header that goes with them."""
    document = dict(capabilities)
    features = document.get("features") or {}
    mode = "raw" if "raw" in (document.get("modes") or []) else "fingerprint"
    fields = attention_fields(document, capture=mode, top_k=STRONGEST if mode == "raw" else None, layers=layers)
    for unneeded in ("attention_prompt_tokens", "return_moe_routing"):
        fields.pop(unneeded, None)
    if features.get("head_stats"):
        fields["attention_head_stats"] = True
    if features.get("logit_stats"):
        fields["attention_logit_stats"] = True
    else:
        fields |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
    heads = document.get("heads") or {}
    header = Header(
        model=model, layers=tuple(layers or document.get("layers_captured") or ()), heads=int(heads.get("total") or 0),
        mode=mode, head_stats=bool(features.get("head_stats")),
        logits="logit_stats" if features.get("logit_stats") else "top_logprobs",
        temperatures=tuple(temperatures), max_tokens=max_tokens, seed=seed, items=digest(items),
        plugin=str(document.get("plugin") or ""),
    )  # fmt: skip
    return Plan(header, fields)


async def collect(
    client: Client,
    folder: Folder,
    items: Sequence[Item],
    fields: Mapping[str, Any],
    *,
    concurrency: int,
    progress: Callable[[Progress], None],
) -> Progress:
    """Ask what is missing. Ends with the first failure of the server; what was answered by then is kept."""
    header = folder.header
    kept = folder.answers()
    known = {(answer.item, answer.temperature) for answer in kept}
    wanted = [(item, t) for item in items for t in header.temperatures]
    missing = [pair for pair in wanted if (pair[0].id, pair[1]) not in known]
    number = max((answer.number for answer in kept), default=-1) + 1
    started = time.monotonic()
    fresh = tokens = 0

    def state() -> Progress:
        return Progress(len(wanted) - len(missing) + fresh, len(wanted), fresh, tokens, time.monotonic() - started)

    waiting = iter(missing)
    progress(state())

    async def worker() -> None:
        nonlocal number, fresh, tokens
        for item, temperature in waiting:
            answer, entries, logprobs = await _answer(client, header, item, temperature, fields)
            recording = recording_of(entries, header.layers, header.heads, logprobs, linked=header.mode == "raw")
            folder.add(msgspec.structs.replace(answer, number=number), recording)
            number += 1
            fresh += 1
            tokens += len(answer.tokens)
            progress(state())

    failures: list[GeomError] = []
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker())
    except* GeomError as failed:
        failures += [error for error in failed.exceptions if isinstance(error, GeomError)]
    if failures:
        raise failures[0]
    return state()


async def _answer(
    client: Client, header: Header, item: Item, temperature: float, fields: Mapping[str, Any]
) -> tuple[Answer, list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    # Of a server that heeds it: SGLang with --enable-deterministic-inference.
    own = zlib.crc32(f"{header.seed} {item.id} {temperature}".encode()) >> 1
    sampling = {"temperature": temperature, "max_tokens": header.max_tokens, "seed": own}
    for turn in range(_TRIES):
        entries: list[Mapping[str, Any]] = []
        logprobs: list[Mapping[str, Any]] = []
        text, reason = "", None
        usage: dict[str, Any] = {}
        started = time.monotonic()
        try:
            async for chunk in client.chat(
                [{"role": "user", "content": item.prompt}], model=header.model, fields={**sampling, **fields}
            ):
                text += chunk.text  # what is thought is no answer
                entries += chunk.entries
                logprobs += chunk.logprobs
                reason = chunk.finish_reason or reason
                usage = chunk.usage or usage
        except ServerUnreachable as error:
            if "busy" not in error.message or turn == _TRIES - 1:
                raise
            await asyncio.sleep(_WAIT_SECONDS * 2**turn)
            continue
        tokens = [entry.get("token") for entry in entries if "capture_stopped" not in entry.get("flags", ())]
        answer = Answer(
            number=0, item=item.id, temperature=temperature, text=text, tokens=tuple(tokens), finish_reason=reason,
            prompt_tokens=usage.get("prompt_tokens"), seconds=round(time.monotonic() - started, 3),
        )  # fmt: skip
        return answer, entries, logprobs
    raise AssertionError("the last try returns or raises")
