"""A trace: one answer with its tokens, steps, segments and metrics, as a sequence of records.

`TraceBuilder` turns a stream into records while it runs; whoever wants them (a file, the store, a viewer) takes them
one by one. `Trace` is the same sequence held in memory.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from geomcli.compass import HALT, WARN
from geomcli.fingerprint import BIN_ENTROPY, round_significant
from geomcli.schema import LINK_FIELDS, TRACE_VERSION, Entry, Message, Record, has_numbers
from geomcli.zones import UNKNOWN, ZONES_V1

if TYPE_CHECKING:
    from geomcli.client import Chunk

_SEGMENT_TYPES = {"think": "assistant_think", "output": "assistant_main"}
_LONGEST_GAP = 1_000_000
_SEGMENT_NAMES = {"think": "think", "output": "main"}


def new_trace_id() -> str:
    """Sorts by time, and is short enough to type: 20261123-193012-a1b2c3."""
    return time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(3)


def step_record(token_index: int, entry: Entry) -> Record:
    """The `step` record of an entry: its link fields under `attention`, everything else as it came."""
    links = {name: entry[name] for name in LINK_FIELDS if name in entry}  # type: ignore[literal-required]
    rest = {name: value for name, value in entry.items() if name not in LINK_FIELDS}
    return {"record_type": "step", "tokenIndex": token_index, "attention": links or None, **rest}


def entry_of(step: Mapping[str, Any]) -> Entry:
    """Inverse of `step_record`."""
    rest = {k: v for k, v in step.items() if k not in ("record_type", "tokenIndex", "attention")}
    return {**rest, **(step.get("attention") or {})}  # type: ignore[typeddict-item]


class TraceBuilder:
    """Feed it the chunks of one choice; each call returns the records that became known."""

    def __init__(
        self,
        messages: Sequence[Message],
        *,
        model: str,
        capture: Mapping[str, Any] | None = None,
        trace_id: str | None = None,
    ) -> None:
        self.trace_id = trace_id or new_trace_id()
        self._messages = list(messages)
        self._model = model
        self._capture = dict(capture or {})
        self._began = time.monotonic()
        self._first_token: float | None = None
        self._last_token: float | None = None
        self._tokens = 0  # token records made
        self._next_step = 0  # index behind the last step record
        self._sparse = False  # whether some tokens have no entry
        self._bare_texts: list[str] = []  # texts that came without an entry and are in no token record yet
        self._entries = 0
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._segments: list[Record] = []
        self._zones: Counter[str] = Counter()
        self._entropies: list[float] = []
        self._bin_entropies: list[float] = []
        self._drifts: list[float] = []
        self._flags: Counter[str] = Counter()
        self._worst = "OK"
        self._bytes = 0
        self._json_bytes = 0
        self._finish: str | None = None
        self._matched: str | int | None = None
        self._usage: dict[str, Any] = {}

    def start(self) -> list[Record]:
        """Header and the messages of the prompt."""
        header: Record = {
            "record_type": "header",
            "version": TRACE_VERSION,
            "trace_id": self.trace_id,
            "model": self._model,
            "created": int(time.time() * 1000),
            "ruleset": ZONES_V1.name,
            "capture": self._capture,
        }
        return [header, *(self._message(i, m) for i, m in enumerate(self._messages))]

    def _message(self, position: int, message: Message) -> Record:
        number = sum(m["role"] == message["role"] for m in self._messages[: position + 1])
        return {"record_type": "message", "id": f"{message['role']}-{number}", **message}

    def add(self, chunk: Chunk) -> list[Record]:
        """Token and step records of one chunk, in order.

        An entry's `decode_step` places it; the tokens before it that have none (not captured) get records too.
        """
        now = time.monotonic()
        self._text.append(chunk.text)
        self._reasoning.append(chunk.reasoning)
        self._json_bytes += chunk.attention_bytes
        self._finish = chunk.finish_reason or self._finish
        self._matched = chunk.matched_stop if chunk.matched_stop is not None else self._matched
        self._usage = chunk.usage or self._usage
        records: list[Record] = []
        text = chunk.reasoning + chunk.text
        own = "".join(entry.get("token") or "" for entry in chunk.entries)
        if text.endswith(own) and text != own:
            self._bare_texts.append(text.removesuffix(own))
        for entry in chunk.entries:
            index = max(self._placed(entry.get("decode_step", 0) - 1), self._next_step)
            records += self._bare_tokens(index, "think" if chunk.reasoning else "output")
            if index == self._tokens:
                records.append(self._token(entry))
            records.append(self._step(index, entry))
            self._next_step = index + 1
            if "capture_stopped" in entry.get("flags", ()):
                self._sparse = True
        # A chunk of text between captured steps is one token, unless the server packs several into a chunk.
        if self._sparse and not chunk.entries and self._bare_texts:
            records += self._bare_tokens(self._tokens + 1, "think" if chunk.reasoning else "output")
        if records:
            self._first_token = self._first_token or now
            self._last_token = now
        return records

    def _placed(self, index: int) -> int:
        """The index of a token as the server says it, unless no answer can be that long."""
        return index if index - self._tokens < _LONGEST_GAP else self._tokens

    def _bare_tokens(self, end: int, phase: str) -> list[Record]:
        """Records of tokens without an entry up to `end`: a text each, the last of them what is left of it."""
        records = []
        while self._tokens < end:
            self._sparse = True
            cut = 1 if self._tokens + 1 < end else len(self._bare_texts)
            text = "".join(self._bare_texts[:cut])
            del self._bare_texts[:cut]
            records.append(self._token({"token": text or None, "think_phase": phase}))  # type: ignore[typeddict-item]
        return records

    def _token(self, entry: Entry) -> Record:
        phase = entry.get("think_phase", "output")
        number = 1 + sum(m["role"] == "assistant" for m in self._messages)
        name = f"assistant-{number}-{_SEGMENT_NAMES[phase]}"
        if not self._segments or self._segments[-1]["id"] != name:
            self._segments.append(
                {"record_type": "segment", "id": name, "type": _SEGMENT_TYPES[phase], "start": self._tokens}
            )
        record: Record = {
            "record_type": "token",
            "index": self._tokens,
            "text": entry.get("token"),
            "segmentId": name,
            "tokenId": entry.get("token_id"),
        }
        self._tokens += 1
        self._segments[-1]["end"] = self._tokens
        return record

    def _step(self, index: int, entry: Entry) -> Record:
        self._bytes += entry.get("bytes", 0)
        self._flags.update(entry.get("flags", ()))
        if "fingerprint" in entry:
            self._entries += 1
        if has_numbers(entry):
            self._zones[entry.get("zone", UNKNOWN)] += 1
            self._bin_entropies.append(entry["fingerprint"][BIN_ENTROPY])
            if (drift := entry.get("drift")) is not None:
                self._drifts.append(drift)
        if "entropy_bits" in entry:
            self._entropies.append(entry["entropy_bits"])
        status = entry.get("compass", "OK")
        if status == HALT or (status == WARN and self._worst != HALT):
            self._worst = status
        return step_record(index, entry)

    def finish(self, error: str | None = None) -> list[Record]:
        """The assistant's message, the segments and the metrics; `error` is kept when the stream broke off."""
        tail = self._tail()
        answer: Message = {"role": "assistant", "content": "".join(self._text)}
        self._messages.append(answer)
        record = self._message(len(self._messages) - 1, answer)
        if reasoning := "".join(self._reasoning):
            record["reasoning"] = reasoning
        return [*tail, record, *self._segments, self.metrics(error)]

    def _tail(self) -> list[Record]:
        """Tokens behind the last entry that the server counted."""
        end = self._placed(self._usage.get("completion_tokens", 0))
        return self._bare_tokens(end, "think" if not any(self._text) else "output")

    def metrics(self, error: str | None = None) -> Record:
        decode = (self._last_token or 0.0) - (self._first_token or 0.0)
        tokens = self._usage.get("completion_tokens", self._tokens)
        speed = (tokens - 1) / decode if tokens > 1 and decode > 0 else None
        record: Record = {
            "record_type": "metrics",
            "tokens": tokens,
            "promptTokens": self._usage.get("prompt_tokens"),
            "entries": self._entries,
            "avgEntropy": _mean(self._bin_entropies),
            "avgEntropyBits": _mean(self._entropies),
            "dominantZone": self._zones.most_common(1)[0][0] if self._zones else None,
            "zoneCounts": dict(sorted(self._zones.items())),
            "maxDrift": max(self._drifts, default=None),
            "compass": self._worst,
            "flags": dict(sorted(self._flags.items())),
            "attentionBytes": self._bytes,
            "jsonBytes": self._json_bytes,
            "tokensPerSecond": None if speed is None else round_significant(speed),
            "durationMs": round((time.monotonic() - self._began) * 1000),
            "finishReason": self._finish,
            "matchedStop": self._matched,
        }
        if error is not None:
            record["error"] = error
        return record


def _mean(values: Sequence[float]) -> float | None:
    return round_significant(sum(values) / len(values)) if values else None


class Trace:
    """The records of one trace by kind, in their order."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.header: Record = {}
        self.messages: list[Record] = []
        self.tokens: list[Record] = []
        self.steps: list[Record] = []
        self.segments: list[Record] = []
        self.metrics: Record = {}
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        kind = record["record_type"]
        if kind in ("header", "metrics"):
            setattr(self, kind, record)
        else:
            {"message": self.messages, "token": self.tokens, "step": self.steps, "segment": self.segments}[kind].append(
                record
            )

    @property
    def prompt(self) -> list[Record]:
        """The messages that were sent: all but the answer, which is there when the trace has an end."""
        answered = bool(self.messages) and bool(self.metrics) and self._is_answer(self.messages[-1])
        return self.messages[:-1] if answered else self.messages

    def records(self) -> Iterator[Record]:
        """Header first, prompt messages, tokens with their steps, then the answer, segments and metrics."""
        yield self.header
        prompt = [m for m in self.messages if not self._is_answer(m)]
        yield from prompt
        steps = iter(self.steps)
        step = next(steps, None)
        for token in self.tokens:
            yield token
            while step is not None and step["tokenIndex"] == token["index"]:
                yield step
                step = next(steps, None)
        yield from (m for m in self.messages if self._is_answer(m))
        yield from self.segments
        if self.metrics:
            yield self.metrics

    def _is_answer(self, message: Record) -> bool:
        return message is self.messages[-1] and message["role"] == "assistant"
