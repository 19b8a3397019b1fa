"""Which tokens of an answer are thinking, from the text that they add. Pure: no SGLang.

The marks are those of SGLang's reasoning parser. They are looked for in text, because a tokenizer may spell a mark in
several tokens or join a piece of one to its neighbours. A token is thinking if any character of it is; the marks around
the thinking belong to it. A block opens at the answer's start, behind white space at most, and closes once: a mark
further on is a mention. That is how SGLang's parser divides a whole answer.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

_END = 1 << 62


class Thinking(NamedTuple):
    """How the answers of one request think: the marks, and whether they start inside the block."""

    start: str
    end: str
    started: bool
    tool_start: str = ""  # opens a tool call, which ends the block without its end mark; itself no longer thinking
    tool_at_line_start: bool = False


class Phases:
    """The phase of each token of one answer, as soon as no later text can change it. None: nothing is thinking."""

    def __init__(self, thinking: Thinking | None = None) -> None:
        self._marks = thinking or Thinking("", "", started=False)
        self._text = ""  # what a mark may still begin in
        self._at = 0  # characters before it
        self._before = ""  # the last of them
        self._known = 0  # characters whose phase is certain
        self._opened = 0 if self._marks.started else _END
        self._closed = _END
        self._waiting: deque[tuple[int, int]] = deque()  # first and last character of tokens without a phase
        if thinking is None:
            self._close(0)

    @property
    def settled(self) -> bool:
        """No token waits for its phase, and none that may follow is thinking."""
        return self._known == _END and not self._waiting

    def push(self, piece: str | None) -> list[bool]:
        """Whether the tokens that are now certain are thinking, in their order; `piece` is the next token's text.

        A token that adds no text (None, or a part of a character) has the phase of the next character.
        """
        piece = piece or ""
        if self.settled:
            return [False]
        start = self._at + len(self._text)
        self._waiting.append((start, start + max(1, len(piece))))
        self._text += piece
        if self._known < _END:
            self._advance()
        return self._certain()

    def finish(self) -> list[bool]:
        """The rest: no more text will come, so a beginning of a mark is none."""
        self._known = _END
        return self._certain()

    def _certain(self) -> list[bool]:
        found = []
        while self._waiting and self._waiting[0][1] <= self._known:
            start, end = self._waiting.popleft()
            found.append(start < self._closed and end > self._opened)
        return found

    def _advance(self) -> None:
        if self._opened == _END and not self._open():
            return
        end, tool = self._text.find(self._marks.end), self._tool_start()
        if tool >= 0 and not 0 <= end < tool:
            self._close(self._at + tool)
        elif end >= 0:
            self._close(self._at + end + len(self._marks.end))
        else:
            # A tool call that begins here would not be thinking; an end mark is, whether it is completed or not.
            self._known = self._at + len(self._text) - _begun(self._text, self._marks.tool_start)
            self._forget(max(_begun(self._text, mark) for mark in (self._marks.end, self._marks.tool_start)))

    def _open(self) -> bool:
        """Whether the block has begun; if it cannot begin any more, nothing is thinking."""
        text, start = self._text.lstrip(), self._marks.start
        if not text.startswith(start):
            if not start.startswith(text):
                self._close(0)
            return False
        self._opened = self._at  # white space before it goes with it
        self._known = self._at + len(self._text) - len(text) + len(start)
        self._forget(len(text) - len(start))
        return True

    def _tool_start(self) -> int:
        """Where in the text a tool call begins, -1 if none does."""
        mark = self._marks.tool_start
        at = self._text.find(mark) if mark else -1
        while at >= 0 and self._marks.tool_at_line_start and (self._before + self._text[:at])[-1:] not in ("", "\n"):
            at = self._text.find(mark, at + 1)
        return at

    def _close(self, at: int) -> None:
        self._closed, self._known, self._text = at, _END, ""

    def _forget(self, kept: int) -> None:
        cut = len(self._text) - kept
        self._before = (self._before + self._text[:cut])[-1:]
        self._at, self._text = self._at + cut, self._text[cut:]


def _begun(text: str, mark: str) -> int:
    """Length of the longest end of `text` that a mark may begin with, the whole mark left out."""
    longest = min(len(text), len(mark) - 1)
    return next((n for n in range(longest, 0, -1) if mark.startswith(text[-n:])), 0)
