"""Where the positions of a sequence come from: sinks, messages, documents inside them, template, the answer itself.

A source is a set of token positions with a name. Sources never overlap, and every position up to the end of the answer
is in exactly one, so what they receive adds up.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from geomcli.errors import TraceError, UsageError
from geomcli.links import sink_count
from geomcli.schema import Record
from geomcli.trace import Trace

Kind = Literal["sinks", "masked", "template", "message", "document", "given", "prompt", "thinking", "answer"]
DIVISIONS = ("documents", "paragraphs", "messages")
Range = tuple[int, int]
Name = tuple[str, Kind]
Run = tuple[int, int, Name]
Ints = NDArray[np.int64]
LONGEST_PROMPT = 1 << 24  # tokens; a page holds a number for each position


class Source(msgspec.Struct, frozen=True):
    """`ranges` are half-open runs of absolute positions, ascending, without overlap."""

    name: str
    kind: Kind
    ranges: tuple[Range, ...]

    @property
    def tokens(self) -> int:
        return sum(end - start for start, end in self.ranges)


def sources_of(
    trace: Trace, *, division: str = "documents", given: Sequence[tuple[str, int, int]] = (), sinks: int | None = None
) -> list[Source]:
    """The sources of a trace, by where they begin; empty where it does not say how long its prompt is.

    division: what messages are cut into: documents (by their marks, see `documents`), paragraphs (by blank lines) or
    nothing. given: (name, first position, behind the last), taken out of whatever else is there. sinks: how many first
    positions stand apart; what the trace says if left out. Messages are found by their text in the prompt's tokens; a
    trace without those has one source `prompt`. UsageError when given sources overlap or reach outside; TraceError as
    in `prompt_length`.
    """
    length = prompt_length(trace)
    if length is None:
        return []
    texts = prompt_texts(trace)[:length]
    names: list[Name] = _of_prompt(trace, texts, division) if texts else []
    runs: list[Run] = [(at, at + 1, name) for at, name in enumerate(names)]
    runs.append((len(names), length, ("prompt", "prompt")))
    for at, token in enumerate(trace.tokens, length):
        kind = written_kind(token)
        runs.append((at, at + 1, (kind, kind)))
    _check_given(given, length + len(trace.tokens))
    for name, start, end in given:
        runs = _laid_over(runs, start, end, (name, "given"))
    apart = sink_count(trace) if sinks is None else sinks
    return _grouped(_laid_over(runs, 0, min(apart, length), ("sinks", "sinks"), but="masked"))


def prompt_length(trace: Trace) -> int | None:
    """Tokens of the prompt, as the first step says that knows; None where none does. TraceError when it cannot be."""
    step = next((step for step in trace.steps if isinstance(step.get("prompt_len"), int)), None)
    if step is None:
        return None
    length: int = step["prompt_len"]
    where = f"`prompt_len` of the step of token {step['tokenIndex']} is {length}"
    if not 0 <= length <= LONGEST_PROMPT:
        raise TraceError(f"{where}: no prompt has that many tokens.", f"prompt_len from 0 to {LONGEST_PROMPT}")
    query = step.get("query_position")
    if step.get("attention") and isinstance(query, int) and query < length - 1:
        # Its links would be counted in the wrong places.
        raise TraceError(
            f"{where}, its `query_position` {query}: it would have looked from inside the prompt.",
            f"prompt_len up to {query + 1}, or the query_position that is right",
        )
    return length


def written_kind(token: Record) -> Literal["answer", "thinking"]:
    """What a token of an answer is a source as."""
    return "thinking" if str(token.get("segmentId") or "").endswith("-think") else "answer"


def prompt_texts(trace: Trace) -> list[str | None]:
    """Texts of the prompt's tokens, None for masked ones; empty where the trace does not have them."""
    return next((list(step["prompt_tokens"]) for step in trace.steps if step.get("prompt_tokens")), [])


class Owners(NamedTuple):
    """Which source each position is in, as runs. starts, ends, numbers [r]: ascending half-open runs, no overlap."""

    starts: Ints
    ends: Ints
    numbers: Ints

    @property
    def end(self) -> int:
        """Behind the last position that is in a source."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def of(self, positions: Ints) -> Ints:
        """Numbers [n] of the sources that positions [n] are in, -1 where one is in none."""
        if not len(self.starts):
            return np.full(len(positions), -1)
        place = np.maximum(np.searchsorted(self.starts, positions, side="right") - 1, 0)
        inside = (positions >= self.starts[place]) & (positions < self.ends[place])
        made: Ints = np.where(inside, self.numbers[place], -1)
        return made

    def then(self, number: int, tokens: int = 1) -> Owners:
        """These, and the next `tokens` positions for a source."""
        end = self.end
        if len(self.numbers) and self.numbers[-1] == number:
            return Owners(self.starts, np.append(self.ends[:-1], end + tokens), self.numbers)
        return Owners(np.append(self.starts, end), np.append(self.ends, end + tokens), np.append(self.numbers, number))


def owners(sources: Sequence[Source]) -> Owners:
    """Which of the sources each position is in."""
    runs = sorted((start, end, number) for number, source in enumerate(sources) for start, end in source.ranges)
    return Owners(*np.array(runs, dtype=np.int64).reshape(-1, 3).T)


def parse_given(text: str) -> tuple[str, int, int]:
    """`NAME=START:END`, positions from 0, END not included; UsageError otherwise."""
    found = re.fullmatch(r"(.+)=(\d{1,9}):(\d{1,9})", text, re.DOTALL)
    if found is None:
        raise UsageError(f"{text!r} names no source.", "--source notes=12:80, positions of tokens")
    return found[1], int(found[2]), int(found[3])


def _check_given(given: Sequence[tuple[str, int, int]], end: int) -> None:
    for number, (name, start, stop) in enumerate(given):
        if not 0 <= start < stop <= end:
            within = f"{name}={start}:{end if stop > end else start + 1}" if start < end else f"{name}=0:{end}"
            raise UsageError(f"the source {name} must lie within 0:{end}, got {start}:{stop}.", f"--source {within}")
        for other, first, last in given[:number]:
            if other != name and max(start, first) < min(stop, last):
                raise UsageError(
                    f"the sources {other} and {name} overlap at position {max(start, first)}.",
                    f"--source {name}=START:END outside {first}:{last}",
                )


def _laid_over(runs: Sequence[Run], start: int, end: int, name: Name, *, but: Kind | None = None) -> list[Run]:
    """The runs with [start, end) under another name, except where the kind is `but`."""
    made: list[Run] = []
    for first, last, own in runs:
        a, b = max(first, start), min(last, end)
        if a >= b or own[1] == but:
            made.append((first, last, own))
        else:
            made += [(first, a, own), (a, b, name), (b, last, own)]
    return made


def _grouped(runs: Sequence[Run]) -> list[Source]:
    ranges: dict[Name, list[Range]] = {}
    for name, group in groupby((run for run in runs if run[0] < run[1]), key=lambda run: run[2]):
        parts = list(group)
        ranges.setdefault(name, []).append((parts[0][0], parts[-1][1]))
    return [Source(name, kind, tuple(found)) for (name, kind), found in ranges.items()]


def _of_prompt(trace: Trace, texts: Sequence[str | None], division: str) -> list[Name]:
    """Name of each prompt position."""
    whole = "".join(text or "" for text in texts)
    parts = _parts(trace, whole, division)
    starts = [start for start, _, _ in parts]
    names: list[Name] = []
    for text, begin in zip(texts, accumulate((len(t or "") for t in texts), initial=0), strict=False):
        if text is None:
            names.append(("masked", "masked"))
            continue
        # A token that begins with white space is of what follows the white space.
        bare = text.lstrip()
        at = begin + (len(text) - len(bare) if bare else 0)
        place = bisect_right(starts, at) - 1
        inside = place >= 0 and at < parts[place][1]
        names.append(parts[place][2] if inside else ("template", "template"))
    return names


def _parts(trace: Trace, whole: str, division: str) -> list[Run]:
    """(first character, behind the last, name), ascending, of the messages and documents in the prompt's text."""
    found: list[Run] = []
    used: dict[str, int] = {}
    at = 0
    roles = [str(message["role"]) for message in trace.prompt]
    for number, message in enumerate(trace.prompt):
        role = roles[number]
        name = role if roles.count(role) == 1 else f"{role} {roles[: number + 1].count(role)}"
        content = str(message["content"]).strip()
        start = _find(whole, content, at)
        if start < 0 or not content:
            continue
        at = start + len(content)
        divided = {"documents": documents, "paragraphs": paragraphs}.get(division, lambda _: [])(content)
        cursor = start
        for label, first, end in divided:
            if start + first > cursor:
                found.append((cursor, start + first, (name, "message")))
            used[label] = used.get(label, 0) + 1
            unique = label if used[label] == 1 else f"{label} ({used[label]})"
            found.append((start + first, start + end, (unique, "document")))
            cursor = start + end
        if cursor < at:
            found.append((cursor, at, (name, "message")))
    return found


_ROLES = {"system", "developer", "user", "assistant", "tool", "model"}


def _find(whole: str, content: str, at: int) -> int:
    """Where a message stands. One that is just the name of a role must not be found in the template's own header."""
    start = whole.find(content, at)
    while content in _ROLES and start > 0 and whole[start - 1] == ">":
        start = whole.find(content, start + 1)
    return start


_TAG = re.compile(r"<(document|doc|source|passage|context)\b([^<>\n]*)>", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"\b(?:title|name|id|index)\s*=\s*[\"']?([^\"'>]+)", re.IGNORECASE)
_LINE = re.compile(
    r"^[ \t]*(?:#{1,6}[ \t]*)?(?:\*\*)?(?:\[(\d{1,3})\]|\[?((?:document|doc|source|passage|context)[ \t]*[#:]?[ \t]*"
    r"(?:\d{1,3}|[A-Z]))(?=[\]:.)*\s])[\])]?)",
    re.IGNORECASE | re.MULTILINE,
)
_BLANK = re.compile(r"\n[ \t]*\n")


def documents(text: str) -> list[tuple[str, int, int]]:
    """(name, first character, behind the last) of the documents in a message that marks them.

    Marks: `<document>`, `<doc>`, `<source>`, `<passage>`, `<context>` up to their closing tag (named by title, name, id
    or index), else lines that begin with "Document 1", "Source B", "[3]". A document that begins with a line goes to
    the next one; the last to the first blank line behind its text, for the question follows there.
    """
    tagged = list(_tagged(text))
    if tagged:
        return tagged
    marks = list(_LINE.finditer(text))
    made = []
    for number, mark in enumerate(marks):
        end = marks[number + 1].start() if number + 1 < len(marks) else _end_of_last(text, mark.end())
        label = f"document {mark[1]}" if mark[1] else " ".join(mark[2].replace("#", " ").replace(":", " ").split())
        made.append((label, mark.start(), end))
    return made


def _tagged(text: str) -> Iterator[tuple[str, int, int]]:
    at, number = 0, 0
    while mark := _TAG.search(text, at):
        closing = re.compile(rf"</{re.escape(mark[1])}\s*>", re.IGNORECASE).search(text, mark.end())
        at = closing.end() if closing else len(text)
        number += 1
        named = _ATTRIBUTE.search(mark[2])
        word = named[1].strip() if named else str(number)
        yield (f"{mark[1].lower()} {word}" if word.isdigit() else word), mark.start(), at


def _end_of_last(text: str, at: int) -> int:
    line = text.find("\n", at)
    body = at if line < 0 or text[at:line].strip(" \t]:.)*") else line
    while body < len(text) and text[body].isspace():
        body += 1
    blank = _BLANK.search(text, body)
    return blank.start() if blank else len(text)


def paragraphs(text: str) -> list[tuple[str, int, int]]:
    """(name, first character, behind the last) of the paragraphs of a message; none where it has only one."""
    made: list[tuple[str, int, int]] = []
    at = 0
    for blank in [*_BLANK.finditer(text), None]:
        end = blank.start() if blank else len(text)
        if text[at:end].strip():
            made.append((f"paragraph {len(made) + 1}", at, end))
        at = blank.end() if blank else end
    return made if len(made) > 1 else []
