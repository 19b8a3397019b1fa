"""Which source did a span of the answer read? Attention mass from the tokens of a span to the sources of its prompt.

`docs/geometry.md`, "Spans", holds the definitions. Only links that were captured count: every mass is a lower bound,
and what the links leave open is said beside it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial

import msgspec
import numpy as np
from numpy.typing import NDArray

from geomcli.errors import TraceError, UsageError
from geomcli.layers import head_stats
from geomcli.links import links_of
from geomcli.schema import Record
from geomcli.sentences import sentences
from geomcli.sources import Owners, Source, owners, sources_of, written_kind
from geomcli.trace import Trace


class SourceMass(msgspec.Struct, frozen=True):
    """Attention of a span to a source, as means over its tokens with links.

    mass: what the links show; the true mass is in [mass, most]. share: part of what the links show outside sinks; None
    for sinks themselves and where there is nothing outside them.
    """

    source: str
    mass: float
    most: float
    share: float | None


class SpanReading(msgspec.Struct, frozen=True):
    """What one span read. `masses` in the order of the sources; their sum is `covered`, and `unseen` is 1 - covered.

    start, end: token numbers, half-open. read: tokens with links (0: nothing is known, masses are empty). lookback:
    mean over heads and tokens of the lookback ratio; None without head statistics.
    """

    start: int
    end: int
    text: str
    phase: str
    read: int
    masses: tuple[SourceMass, ...]
    covered: float
    unseen: float
    lookback: float | None


def sentence_spans(trace: Trace) -> list[tuple[int, int]]:
    """Token runs of the answer's sentences; the end of thinking ends one."""
    return _sentences(trace.tokens)


def _sentences(tokens: Sequence[Record]) -> list[tuple[int, int]]:
    segments = [token.get("segmentId") for token in tokens]
    breaks = [i for i in range(1, len(segments)) if segments[i] != segments[i - 1]]
    return sentences([token.get("text") or "" for token in tokens], breaks=breaks)


def parse_span(text: str, tokens: int) -> tuple[int, int]:
    """`A:B`, token numbers from 0, B not included; either may be left out. UsageError when it is no such span."""
    found = re.fullmatch(r"(\d{0,9}):(\d{0,9})", text)
    start, end = (int(found[1] or 0), int(found[2] or tokens)) if found else (0, 0)
    if not 0 <= start < end <= tokens:
        raise UsageError(f"{text!r} is no span of an answer of {tokens} tokens.", "--span 0:12")
    return start, end


def read_spans(
    trace: Trace, spans: Sequence[tuple[int, int]], sources: Sequence[Source], *, layer: int | None = None
) -> list[SpanReading]:
    """What each span [start, end) of token numbers read of the sources.

    layer: a captured layer's id; each step's own (the last selected) if left out. Links to positions outside every
    source are not counted as covered.
    """
    steps: dict[int, Record] = {step["tokenIndex"]: step for step in trace.steps}
    masses_of = partial(_masses, owner=owners(sources), count=len(sources), layer=layer)
    return [_reading(trace, span, steps, masses_of, sources, layer) for span in spans]


class SentenceReader:
    """What the sentences of a trace read, also while it grows: what was found once is not looked for again.

    `sources`: what they can have read, empty until the trace says how long its prompt is, and where that cannot be.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.sources: list[Source] = []
        self._runs: list[tuple[int, int]] = []
        self._steps: dict[int, Record] = {}
        self._read = 0  # steps in _steps
        self._owner = owners(())
        self._prompt_len = 0
        self._masses: dict[int | None, dict[int, NDArray[np.float64] | None]] = {}  # by layer and token

    def sentence(self, token: int) -> tuple[int, int]:
        """The run of tokens of the sentence that a token is in."""
        tokens = self.trace.tokens
        done = self._runs[-1][1] if self._runs else 0
        if done < len(tokens):
            # The last sentence may go on; those before it do not change any more.
            first = self._runs.pop()[0] if self._runs else 0
            self._runs += [(start + first, end + first) for start, end in _sentences(tokens[first:])]
        place = bisect_right(self._runs, token, key=lambda run: run[0]) - 1
        return self._runs[place]

    def read(self, span: tuple[int, int], layer: int | None = None) -> SpanReading:
        """What a span read, as `read_spans` tells."""
        self._grow()
        kept = self._masses.setdefault(layer, {})

        def masses_of(step: Record) -> NDArray[np.float64] | None:
            index = step["tokenIndex"]
            if index not in kept:
                kept[index] = _masses(step, self._owner, len(self.sources), layer)
            return kept[index]

        return _reading(self.trace, span, self._steps, masses_of, self.sources, layer)

    def _grow(self) -> None:
        trace = self.trace
        for step in trace.steps[self._read :]:
            self._steps[step["tokenIndex"]] = step
        self._read = len(trace.steps)
        known = self._owner.end - self._prompt_len
        if not self.sources or known > len(trace.tokens):
            self._masses.clear()
            try:
                self.sources = sources_of(trace)
            except TraceError:
                self.sources = []
            self._owner = owners(self.sources)
            self._prompt_len = max(0, self._owner.end - len(trace.tokens))
        else:
            for token in trace.tokens[known:]:
                self._owner = self._owner.then(self._written(token))

    def _written(self, token: Record) -> int:
        """The number of the source that a token of the answer is in; a new one with the first of its kind."""
        kind = written_kind(token)
        for number, source in enumerate(self.sources):
            if source.kind == kind:
                return number
        self._masses.clear()  # they have no place for it
        self.sources.append(Source(kind, kind, ()))
        return len(self.sources) - 1


def _masses(step: Record, owner: Owners, count: int, layer: int | None) -> NDArray[np.float64] | None:
    """Mass of one step to each source [count]; None where it has no links."""
    links = [link for link in links_of(step, layer) if link.position >= 0]
    if not links:
        return None
    places = owner.of(np.array([link.position for link in links], dtype=np.int64))
    weights = np.array([link.probability for link in links])
    inside = places >= 0
    made: NDArray[np.float64] = np.bincount(places[inside], weights[inside], count).astype(np.float64)
    return made


def _reading(
    trace: Trace,
    span: tuple[int, int],
    steps: dict[int, Record],
    masses_of: Callable[[Record], NDArray[np.float64] | None],
    sources: Sequence[Source],
    layer: int | None,
) -> SpanReading:
    start, end = span
    found = [row for i in range(start, end) if i in steps and (row := masses_of(steps[i])) is not None]
    mean = np.mean(found, axis=0) if found else np.zeros(len(sources))
    covered = min(1.0, float(mean.sum()))
    unseen = 1.0 - covered
    apart = sum(float(m) for m, source in zip(mean, sources, strict=True) if source.kind == "sinks")
    rest = float(mean.sum()) - apart
    masses = tuple(
        SourceMass(
            source.name,
            float(mass),
            min(1.0, float(mass) + unseen),
            None if source.kind == "sinks" or rest <= 0 else float(mass) / rest,
        )
        for source, mass in zip(sources, mean, strict=True)
    )
    tokens = trace.tokens[start:end]
    thought = any(str(token.get("segmentId") or "").endswith("-think") for token in tokens)
    ratios = [r for index in range(max(start, 1), end) if (r := lookback(steps.get(index) or {}, layer)) is not None]
    return SpanReading(
        start=start,
        end=end,
        text="".join(token.get("text") or "" for token in tokens),
        phase="think" if thought else "output",
        read=len(found),
        masses=masses if found else (),
        covered=covered if found else 0.0,
        unseen=unseen if found else 1.0,
        lookback=sum(ratios) / len(ratios) if ratios else None,
    )


def lookback(step: Record, layer: int | None = None) -> float | None:
    """Mean over heads of the lookback ratio of one step (docs/geometry.md, "Head statistics"); None without them.

    The first token has no generated keys to look at, so its ratio is 1 by definition and says nothing.
    """
    stats = head_stats(step, layer)
    ratios = [ratio for ratio in stats.lookback if 0 <= ratio <= 1] if stats is not None else []
    return sum(ratios) / len(ratios) if ratios else None
