"""Main process: the scheduler's values become the entries of an answer, each once, for every choice of one request."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import orjson

from geomcli.schema import SCHEMA_VERSION
from geomcli.server_patch import faults, state
from geomcli.server_patch.texts import TokenTexts, token_pieces
from geomcli.server_patch.think import Phases, Thinking
from geomcli.server_patch.values import Value, spliced


class _Token(NamedTuple):
    """A token whose entry waits until its phase is certain; without a value it was lost."""

    step: int
    value: Value | None
    text: str | None


class _Choice:
    """What one choice carries from output to output."""

    def __init__(self, thinking: Thinking | None) -> None:
        self.tokens = 0  # accounted for
        self.texts = TokenTexts(state.main.tokenizer)
        self.phases = Phases(thinking)
        self.waiting: deque[_Token] = deque()


class Collector:
    """A token whose value is missing gets an entry that says so: a value's step shows a gap before it, the number of
    generated tokens one at the end.

    thinking: of each prompt of the request, None when nothing is.
    """

    def __init__(self, thinking: Sequence[Thinking] | None = None, choices: int = 1) -> None:
        self._thinking = thinking
        self._choices_each = choices
        self._choices: dict[int, _Choice] = {}

    def new_entries(self, index: int, values: Sequence[Value], total: int, *, over: bool = False) -> list[bytes]:
        """JSON of the entries of choice `index` up to its `total`-th token; values: those since the last call.

        An entry whose token may be the beginning of a mark waits for the next ones, or for the answer to be `over`.
        """
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = _Choice(self._thinking_of(index))
        entries: list[bytes] = []
        errors = 0
        if len(values) == 1 and values[0].step == total == choice.tokens + 1 and choice.phases.settled:
            # As nearly every call: one token of an answer that does not think (any more).
            text = _push(choice.texts, values[0].token_id)
            choice.tokens = total
            errors = _finish(index, _Token(total, values[0], text), False, entries)
            state.main.counters.left(entries, errors, values)
            return entries
        for token in _tokens(choice, values, total):
            choice.waiting.append(token)
            for thinking in choice.phases.push(token.text):
                errors += _finish(index, choice.waiting.popleft(), thinking, entries)
        for thinking in choice.phases.finish() if over else ():
            errors += _finish(index, choice.waiting.popleft(), thinking, entries)
        state.main.counters.left(entries, errors, values)
        return entries

    def _thinking_of(self, index: int) -> Thinking | None:
        """Answers are numbered prompt by prompt."""
        if not self._thinking:
            return None
        return self._thinking[min(index // self._choices_each, len(self._thinking) - 1)]


def _tokens(choice: _Choice, values: Sequence[Value], total: int) -> list[_Token]:
    """The tokens since the last call, lost ones in their places."""
    found: list[_Token] = []
    for value in values:
        if value.step > choice.tokens + 1:
            found += [_Token(step, None, None) for step in range(choice.tokens + 1, value.step)]
        # The text of a token that was not captured is needed to decode the next ones.
        found.append(_Token(value.step, value, _push(choice.texts, value.token_id)))
        choice.tokens = value.step
    if total > choice.tokens:
        found += [_Token(step, None, None) for step in range(choice.tokens + 1, total + 1)]
        choice.tokens = total
    return found


def _finish(index: int, token: _Token, thinking: bool, entries: list[bytes]) -> int:
    """Append the token's entry if it has one; the number of errors, 0 or 1."""
    value = token.value
    if value is None:
        entries.append(_lost(index, token.step))
        return 1
    if not value.body:
        return 0
    pieces = None
    if value.prompt_ids is not None:
        try:
            pieces = token_pieces(state.main.tokenizer, value.prompt_ids)
        except Exception:
            faults.report("a prompt has no texts")
    entries.append(spliced(index, value, token.text, thinking=thinking, prompt_tokens=pieces))
    if value.pushed and state.main.pusher is not None:
        state.main.pusher.send(value.pushed, thinking=thinking)
    return int(value.failed)


def _push(texts: TokenTexts, token_id: int) -> str | None:
    try:
        return texts.push(token_id)
    except Exception:
        faults.report("a token has no text")
        return None


def _lost(index: int, step: int) -> bytes:
    """The entry of a token for which the scheduler could not even say its id."""
    entry = {"index": index, "decode_step": step, "step": step, "token_id": None, "flags": ["error"],
             "schema": SCHEMA_VERSION, "bytes": 0, "token": None}  # fmt: skip
    return orjson.dumps(entry)
