"""Search in the tokens of a trace: text, zones, phases, flags, positions and values in one line.

    photon                 text, whatever its case; it may run over several tokens
    "zone: is a word"      text in quotes, taken as it is
    @120  @120-140  @120-  tokens by number
    zone:diffuse           also phase:think, compass:warn, flag:masked
    entropy>0.7            values: bands, bin entropy, drift, …; < <= > >= =

All conditions of a query have to hold. Words beside each other are one text.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

import msgspec

from geomcli.errors import UsageError
from geomcli.fingerprint import BIN_ENTROPY, FINGERPRINT_SIZE, LOCAL, LONG, MID
from geomcli.schema import Record
from geomcli.trace import Trace
from geomcli.zones import ZONE_NAMES

_HELP = "photon, zone:diffuse, @120, entropy>0.7"

# Value -> place in the fingerprint or field of the step.
_VALUES: dict[str, int | str] = {
    "local": LOCAL,
    "mid": MID,
    "long": LONG,
    "entropy": BIN_ENTROPY,
    "bits": "entropy_bits",
    "drift": "drift",
    "confidence": "zone_confidence",
    "sink": "sink_mass",
    "ripple": "ripple",
}
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "=": operator.eq,
}  # fmt: skip
_KEYS = {"zone": "zone", "phase": "think_phase", "compass": "compass", "flag": "flags"}
_NAMED = {"zone": ZONE_NAMES, "phase": ("think", "output"), "compass": ("ok", "warn", "halt")}

_WORD = re.compile(r'\s*(?:"((?:[^"\\]|\\.)*)"|(\S+))')
_COMPARED = re.compile(r"([A-Za-z_]+)(>=|<=|>|<|=)(.*)")
_KEYED = re.compile(r"([A-Za-z_]+):(.*)")
_PLACE = re.compile(r"@(\d+)(?:(-)(\d*))?")


class Condition(msgspec.Struct, frozen=True):
    """One condition: `kind` text, place, key or value; the other fields are those that its kind needs."""

    kind: str
    name: str = ""
    text: str = ""
    sign: str = ""
    number: float = 0.0
    first: int = 0
    last: int | None = None  # None: to the end


class Query(msgspec.Struct, frozen=True):
    source: str
    conditions: tuple[Condition, ...]


def parse(source: str, *, zones: Sequence[str] = ZONE_NAMES) -> Query:
    """Conditions of a query; UsageError says which of them is wrong and what is known instead."""
    conditions: list[Condition] = []
    words: list[str] = []

    def end_of_text() -> None:
        if words:
            conditions.append(Condition("text", text=" ".join(words).casefold()))
            words.clear()

    at = 0
    end = len(source.rstrip())
    while at < end and (found := _WORD.match(source, at)):
        at = found.end()
        quoted, word = found.groups()
        if quoted is not None:
            end_of_text()
            if quoted:
                conditions.append(Condition("text", text=re.sub(r"\\(.)", r"\1", quoted).casefold()))
        elif word.startswith('"'):
            raise UsageError(f"the quotes of {word} are not closed.", '"like this"')
        elif (condition := _condition(word, zones)) is not None:
            end_of_text()
            conditions.append(condition)
        else:
            words.append(word)
    end_of_text()
    if not conditions:
        raise UsageError("there is nothing to search for.", _HELP)
    return Query(source, tuple(conditions))


def _condition(word: str, zones: Sequence[str]) -> Condition | None:
    """The condition that a word is; None for plain text."""
    if word.startswith("@") and len(word) > 1 and (word[1].isdigit() or word[1] == "-"):
        return _place(word)
    if found := _COMPARED.fullmatch(word):
        return _value(word, found[1], found[2], found[3])
    if found := _KEYED.fullmatch(word):
        return _keyed(word, found[1], found[2], zones)
    return None


def _place(word: str) -> Condition:
    found = _PLACE.fullmatch(word)
    if found is None:
        raise UsageError(f"{word} is no place.", "@120, @120-140 or @120-")
    first, dash, last = found.groups()
    to = int(first) if dash is None else int(last) if last else None
    if to is not None and to < int(first):
        raise UsageError(f"{word} ends before it begins.", f"@{last}-{first}")
    return Condition("place", first=int(first), last=to)


def _value(word: str, name: str, sign: str, text: str) -> Condition | None:
    try:
        number = float(text)
    except ValueError:
        number = None
    known = name.lower()
    if known in _VALUES:
        if number is None or math.isnan(number):
            raise UsageError(f"{word}: {text!r} is no number.", f"{known}{sign}0.5")
        return Condition("value", name=known, sign=sign, number=number)
    if number is None:
        return None  # code, like a<b
    near = get_close_matches(known, _VALUES, n=1)
    raise UsageError(
        f"{word}: no value is called {name}; known: {', '.join(_VALUES)}.",
        f"{near[0]}{sign}{text}" if near else f'"{word}" for the text',
    )


def _keyed(word: str, name: str, text: str, zones: Sequence[str]) -> Condition | None:
    key = name.lower()
    if key not in _KEYS:
        near = get_close_matches(key, _KEYS, n=1, cutoff=0.7)
        if near and text:
            raise UsageError(f"{word}: {name} cannot be asked for.", f'{near[0]}:{text}, or "{word}" for the text')
        return None  # like std::vector or http://
    known = zones if key == "zone" else _NAMED.get(key)
    if not text or (known is not None and text.lower() not in known):
        what = f"{key}: is followed by nothing" if not text else f"{word}: there is no {key} {text!r}"
        options = f"; known: {', '.join(known)}" if known else ""
        near = get_close_matches(text.lower(), known or (), n=1)
        raise UsageError(f"{what}{options}.", f"{key}:{(near or known or ['masked'])[0]}")
    return Condition("key", name=key, text=text.lower())


def find(trace: Trace, query: Query | str) -> list[int]:
    """Indices of the tokens that meet every condition, in order. A text is parsed with the trace's zones known."""
    if isinstance(query, str):
        query = parse(query, zones=_zones_of(trace))
    steps: dict[int, Record] = {}
    for step in trace.steps:
        steps.setdefault(step["tokenIndex"], step)
    found: set[int] | None = None
    for condition in query.conditions:
        if condition.kind == "text":
            some = _with_text(trace.tokens, condition.text)
        else:
            some = {t["index"] for t in trace.tokens if _meets(condition, t["index"], steps.get(t["index"], {}))}
        found = some if found is None else found & some
    return sorted(found or ())


def _zones_of(trace: Trace) -> tuple[str, ...]:
    own = {str(step["zone"]).lower() for step in trace.steps if step.get("zone")}
    return (*ZONE_NAMES, *sorted(own - set(ZONE_NAMES)))


def _with_text(tokens: Sequence[Record], text: str) -> set[int]:
    """Tokens that a place of the text touches; the text of all tokens is looked through as one."""
    pieces = [(t.get("text") or "").casefold() for t in tokens]
    whole = "".join(pieces)
    touched: set[int] = set()
    start, token, begins = whole.find(text), 0, 0
    while start >= 0:
        while begins + len(pieces[token]) <= start:
            begins += len(pieces[token])
            token += 1
        reach, at = begins, token
        while reach < start + len(text):
            if pieces[at]:
                touched.add(tokens[at]["index"])
            reach += len(pieces[at])
            at += 1
        start = whole.find(text, start + 1)
    return touched


def _meets(condition: Condition, index: int, step: Record) -> bool:
    if condition.kind == "place":
        return condition.first <= index and (condition.last is None or index <= condition.last)
    if condition.kind == "key":
        value = step.get(_KEYS[condition.name])
        given = value if isinstance(value, list) else [value]
        return condition.text in (str(v).lower() for v in given if v is not None)
    number = _number_of(step, _VALUES[condition.name])
    return number is not None and _OPERATORS[condition.sign](number, condition.number)


def _number_of(step: Record, place: int | str) -> float | None:
    value: Any
    if isinstance(place, str):
        value = step.get(place)
    else:
        fingerprint = step.get("fingerprint") or ()
        value = fingerprint[place] if len(fingerprint) == FINGERPRINT_SIZE else None
    return float(value) if isinstance(value, int | float) else None
