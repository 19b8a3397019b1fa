"""Where the positions of a sequence come from: sinks, messages, documents inside them, template, the answer itself.

A source is a set of token positions with a name. Sources never overlap, and every position up to the end of the answer
is in exactly one, so what they receive adds up.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby
from typing import Literal

import msgspec

from geomcli.errors import UsageError
from geomcli.links import sink_count
from geomcli.schema import Record
from geomcli.trace import Trace

Kind = Literal["sinks", "masked", "template", "message", "document", "given", "prompt", "thinking", "answer"]
DIVISIONS = ("documents", "paragraphs", "messages")
Range = tuple[int, int]


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
    trace without those has one source `prompt`. UsageError when given sources overlap or reach outside.
    """
    prompt_len = next((step["prompt_len"] for step in trace.steps if isinstance(step.get("prompt_len"), int)), None)
    if prompt_len is None:
        return []
    names: list[tuple[str, Kind]] = [("prompt", "prompt")] * prompt_len
    texts = prompt_texts(trace)
    if texts:
        names = _of_prompt(trace, texts[:prompt_len], division)
        names += [("prompt", "prompt")] * (prompt_len - len(names))
    names += [(written_kind(token), written_kind(token)) for token in trace.tokens]
    _give(names, given)
    apart = sink_count(trace) if sinks is None else sinks
    names[:apart] = [
        (name, kind) if kind == "masked" else ("sinks", "sinks") for name, kind in names[: min(apart, prompt_len)]
    ] + names[prompt_len:apart]
    return _grouped(names)


def written_kind(token: Record) -> Literal["answer", "thinking"]:
    """What a token of an answer is a source as."""
    return "thinking" if str(token.get("segmentId") or "").endswith("-think") else "answer"


def prompt_texts(trace: Trace) -> list[str | None]:
    """Texts of the prompt's tokens, None for masked ones; empty where the trace does not have them."""
    return next((list(step["prompt_tokens"]) for step in trace.steps if step.get("prompt_tokens")), [])


def owners(sources: Sequence[Source]) -> list[int]:
    """For each position, the number of its source."""
    places = sorted((start, end, number) for number, source in enumerate(sources) for start, end in source.ranges)
    return [number for start, end, number in places for _ in range(end - start)]


def parse_given(text: str) -> tuple[str, int, int]:
    """`NAME=START:END`, positions from 0, END not included; UsageError otherwise."""
    found = re.fullmatch(r"(.+)=(\d{1,9}):(\d{1,9})", text, re.DOTALL)
    if found is None:
        raise UsageError(f"{text!r} names no source.", "--source notes=12:80, positions of tokens")
    return found[1], int(found[2]), int(found[3])


def _give(names: list[tuple[str, Kind]], given: Sequence[tuple[str, int, int]]) -> None:
    taken: dict[int, str] = {}
    for name, start, end in given:
        if not 0 <= start < end <= len(names):
            raise UsageError(f"the source {name} must lie within 0:{len(names)}, got {start}:{end}.")
        for position in range(start, end):
            if (other := taken.setdefault(position, name)) != name:
                raise UsageError(f"the sources {other} and {name} overlap at position {position}.")
            names[position] = (name, "given")


def _grouped(names: Sequence[tuple[str, Kind]]) -> list[Source]:
    ranges: dict[tuple[str, Kind], list[Range]] = {}
    position = 0
    for name, run in groupby(names):
        end = position + len(list(run))
        ranges.setdefault(name, []).append((position, end))
        position = end
    return [Source(name, kind, tuple(runs)) for (name, kind), runs in ranges.items()]


def _of_prompt(trace: Trace, texts: Sequence[str | None], division: str) -> list[tuple[str, Kind]]:
    """Name of each prompt position."""
    whole = "".join(text or "" for text in texts)
    parts = _parts(trace, whole, division)
    starts = [start for start, _, _ in parts]
    names: list[tuple[str, Kind]] = []
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


def _parts(trace: Trace, whole: str, division: str) -> list[tuple[int, int, tuple[str, Kind]]]:
    """(first character, behind the last, name), ascending, of the messages and documents in the prompt's text."""
    found: list[tuple[int, int, tuple[str, Kind]]] = []
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
