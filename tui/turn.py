"""One answer as panes see it: its trace, and each token parsed once into what is drawn of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from geomcli.decisions import Judged, judged
from geomcli.fingerprint import BIN_ENTROPY, FINGERPRINT_SIZE, N_BINS
from geomcli.kept import Kept
from geomcli.links import Link, links_of
from geomcli.schema import Record
from geomcli.spans import SentenceReader
from geomcli.trace import Trace
from geomcli.zones import UNKNOWN, ZoneDecision, classify

Phase = Literal["think", "output"]


@dataclass(slots=True)
class Token:
    """One output token. `step` is its step record ({} where nothing was captured); the rest is read from it."""

    index: int
    text: str
    phase: Phase
    segment: str
    step: Record = field(default_factory=dict)

    @property
    def captured(self) -> bool:
        """Whether the token has numbers."""
        return self.step.get("fingerprint") is not None and "empty" not in self.step.get("flags", ())

    @property
    def zone(self) -> str:
        return str(self.step.get("zone") or UNKNOWN)

    @property
    def confidence(self) -> float | None:
        """Normalised margin of the zone's rule, 0..1."""
        return self.step.get("zone_confidence")

    @property
    def entropy(self) -> float | None:
        """Entropy of the distance histogram, 0 (one bin) .. 1 (uniform)."""
        return float(self.step["fingerprint"][BIN_ENTROPY]) if self.captured else None

    @property
    def drift(self) -> float | None:
        """Drift of the compass, 0..1; None before its window is full."""
        return self.step.get("drift")

    @property
    def status(self) -> str:
        """The compass's word: OK, WARN or HALT."""
        return str(self.step.get("compass") or "OK")

    @property
    def judged(self) -> Judged | None:
        """What a firewall decided; None where none watched."""
        return judged(self.step)

    @property
    def fingerprint(self) -> NDArray[np.float64] | None:
        """[20]: local, mid, long, bin entropy, 16 bins; None where the token has no numbers."""
        if not self.captured:
            return None
        values = np.asarray(self.step["fingerprint"], dtype=np.float64)
        return values if values.shape == (FINGERPRINT_SIZE,) else None

    @property
    def histogram(self) -> NDArray[np.float64] | None:
        """[16], mass per log-distance bin."""
        f = self.fingerprint
        return None if f is None else f[FINGERPRINT_SIZE - N_BINS :]

    def links(self, layer: int | None = None) -> list[Link]:
        """Attended positions, strongest first."""
        return links_of(self.step, layer)

    def decision(self) -> ZoneDecision | None:
        """The zone with the evidence of every rule; None where the token has no numbers."""
        f = self.fingerprint
        return None if f is None else classify(f, self.step.get("ripple"))


class Turn:
    """One trace, growing while it streams. Panes read; only the session writes.

    `tokens` is what is shown: what arrives while the view is frozen waits outside until `release`.
    `influence[i]` is the attention that later tokens paid to token i (sum over their links, last captured layer).
    """

    def __init__(self, records: Iterable[Record] = (), *, source: str = "") -> None:
        self.trace = Trace()
        self.source = source
        self.path = ""  # of the file that holds this trace and no other
        self.saved = False
        self.tokens: list[Token] = []
        self.influence: list[float] = []
        self.prompt_tokens: list[str | None] = []
        self.prompt_length: int | None = None
        self.flags: Counter[str] = Counter()
        self.bytes = 0  # of attention, as they left the engine
        self.captured = 0  # tokens with an entry
        self.halt: tuple[int, Judged] | None = None  # where a firewall halted, of what is shown
        self.kept = Kept()  # which tokens have left the KV cache, of what is shown
        self.times_ms: dict[int, int] = {}  # token -> epoch ms of its arrival, of what came live
        self._continued: dict[str, bool] = {}
        self._held: list[Record] = []
        self.held = 0  # tokens that arrived while the view was frozen
        self._arrivals: tuple[float, float] | None = None
        self.take(records)

    @cached_property
    def reader(self) -> SentenceReader:
        """What the answer's sentences read."""
        return SentenceReader(self.trace)

    @property
    def id(self) -> str:
        return str(self.trace.header.get("trace_id", ""))

    @property
    def model(self) -> str:
        return str(self.trace.header.get("model", ""))

    @property
    def finished(self) -> bool:
        return bool(self.trace.metrics)

    @property
    def prompt(self) -> list[Record]:
        """The messages that were sent, without the answer."""
        messages = self.trace.messages
        answered = self.finished and bool(messages) and messages[-1]["role"] == "assistant"
        return messages[:-1] if answered else list(messages)

    @property
    def answer(self) -> str:
        """The answer's text as far as it is known, without its thinking."""
        messages = self.trace.messages
        if self.finished and messages and messages[-1]["role"] == "assistant":
            return str(messages[-1]["content"])
        return "".join(token.text for token in self.tokens if token.phase == "output")

    @property
    def error(self) -> str | None:
        """Why the answer broke off, if it did."""
        return self.trace.metrics.get("error")

    @property
    def speed(self) -> float | None:
        """Tokens per second: the trace's own once it is finished, before that as they arrived."""
        if self.finished:
            return self.trace.metrics.get("tokensPerSecond")
        if self._arrivals is None or self._arrivals[1] <= self._arrivals[0]:
            return None
        return (len(self.trace.tokens) - 1) / (self._arrivals[1] - self._arrivals[0])

    def take(self, records: Iterable[Record], *, hold: bool = False) -> None:
        """Add records to the trace; with `hold` their tokens stay unseen until `release`."""
        now = time.monotonic()
        for record in records:
            self.trace.add(record)
            if record["record_type"] == "step":
                self.flags.update(record.get("flags") or ())
                self.bytes += record.get("bytes") or 0
                self.captured += record.get("fingerprint") is not None
            if record["record_type"] in ("token", "step"):
                self._arrivals = (self._arrivals[0] if self._arrivals else now, now)
                if hold:
                    self._held.append(record)
                    self.held += record["record_type"] == "token"
                else:
                    self._show(record)

    def arrived(self, records: Iterable[Record]) -> None:
        """Note that these records come from a server just now; traces keep no time of their tokens."""
        now = int(time.time() * 1000)
        self.times_ms.update({r["tokenIndex"]: now for r in records if r["record_type"] == "step"})

    def release(self) -> None:
        """Show what was held back."""
        held, self._held, self.held = self._held, [], 0
        for record in held:
            self._show(record)

    def _show(self, record: Record) -> None:
        if record["record_type"] == "token":
            segment = str(record.get("segmentId") or "")
            phase: Phase = "think" if segment.endswith("-think") else "output"
            self.tokens.append(Token(len(self.tokens), record.get("text") or "", phase, segment))
            self.influence.append(0.0)
            return
        index = record.get("tokenIndex", -1)
        if not 0 <= index < len(self.tokens):
            return
        self.tokens[index].step = record
        self.kept.add(record)
        if self.halt is None and (found := judged(record)) is not None and found.halted:
            self.halt = index, found
        if self.prompt_length is None and isinstance(record.get("prompt_len"), int):
            self.prompt_length = record["prompt_len"]
        if record.get("prompt_tokens"):
            self.prompt_tokens = list(record["prompt_tokens"])
        for link in self.tokens[index].links():
            place = self.token_at(link.position)
            if place is not None and place < index:
                self.influence[place] += link.probability

    def token_at(self, position: int) -> int | None:
        """Index of the output token at an absolute position; None for the prompt's and for unknown ones."""
        if self.prompt_length is None:
            return None
        index = position - self.prompt_length
        return index if 0 <= index < len(self.tokens) else None

    def text_at(self, position: int) -> str | None:
        """Text of the token at an absolute position, prompt included; None where the trace does not say."""
        if (index := self.token_at(position)) is not None:
            return self.tokens[index].text
        return self.prompt_tokens[position] if 0 <= position < len(self.prompt_tokens) else None

    @property
    def end(self) -> int:
        """Absolute position behind the last token; 0 while the prompt's length is unknown."""
        return 0 if self.prompt_length is None else self.prompt_length + len(self.tokens)

    def continues(self, earlier: Turn) -> bool:
        """Whether this prompt begins with the other turn's prompt and answer, token by token."""
        if earlier.prompt_length is None or not earlier.prompt_tokens or not self.prompt_tokens:
            return False
        if self._continued.get(earlier.id) is None:
            before = [*earlier.prompt_tokens, *(token.text for token in earlier.tokens)]
            # The end mark of an answer may be spelled in another way once it is part of a prompt.
            known = before[: max(earlier.prompt_length, len(before) - 1)]
            self._continued[earlier.id] = self.prompt_tokens[: len(known)] == known
        return self._continued[earlier.id]

    def phases(self) -> list[tuple[Phase, int, int]]:
        """Runs of thinking and output as (phase, first token, one behind the last)."""
        runs: list[tuple[Phase, int, int]] = []
        for token in self.tokens:
            if runs and runs[-1][0] == token.phase:
                runs[-1] = (token.phase, runs[-1][1], token.index + 1)
            else:
                runs.append((token.phase, token.index, token.index + 1))
        return runs

    def is_sink(self, position: int) -> bool:
        """Whether a position is one of the first, which carry no meaning in what they receive."""
        return position < self.sinks

    @property
    def sinks(self) -> int:
        """How many first positions count as sinks; the server's default unless the trace says otherwise."""
        capture: dict[str, Any] = self.trace.header.get("capture") or {}
        given = capture.get("sink_tokens")
        return given if isinstance(given, int) else 4

    def zone_shares(self, tokens: Sequence[Token] | None = None) -> list[tuple[str, float]]:
        """(zone, share of the captured tokens), the largest first."""
        zones = [t.zone for t in (self.tokens if tokens is None else tokens) if t.captured]
        counts = {zone: zones.count(zone) for zone in dict.fromkeys(zones)}
        return sorted(((zone, n / len(zones)) for zone, n in counts.items()), key=lambda pair: -pair[1])
