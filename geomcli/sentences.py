"""Sentences of an answer as runs of its tokens. No language model: marks that end a sentence, and line breaks.

Abbreviations that are known and single capitals ("J.") do not end a sentence, nor does the number of a list item.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# The marks that end a sentence, with the quotes, brackets and emphasis that may close behind them.
_END = re.compile(r"[.!?…。！？]+[\"'”’»)\]*_`]*$")
_WIDE_END = re.compile(r"[。！？]+[”’」』）]*$")  # no space follows these
_NO_END = re.compile(
    r"(?:^|[\s(\[\"'“])(?:[A-Z]|e\.g|i\.e|cf|vs|etc|Dr|Mr|Mrs|Ms|Prof|St|No|Fig|Eq|approx|bzw|z\.B|d\.h)\.$"
)
_LIST_NUMBER = re.compile(r"^\s*(?:[#*-]+\s*)?\(?\d{1,3}[.)]$")


def sentences(texts: Sequence[str], *, breaks: Sequence[int] = ()) -> list[tuple[int, int]]:
    """Token runs [(first, behind the last)] of the sentences of `texts`, in order and without a gap.

    texts: of each token; they join to the text. `breaks`: token numbers at which a sentence begins whatever the text
    says (where thinking ends). A token with a line break ends its sentence; white space alone belongs to the one
    before.
    """
    cuts = set(breaks)
    runs: list[tuple[int, int]] = []
    first, text, ended = 0, "", False
    for index, piece in enumerate(texts):
        begins = bool(piece.strip()) and ended and (piece[0].isspace() or text[-1].isspace() or bool(_wide(text)))
        if index > first and text and (begins or index in cuts):
            runs.append((first, index))
            first, text, ended = index, "", False
        text += piece
        if piece:
            ended = _ends(text)
    if first < len(texts):
        runs.append((first, len(texts)))
    return runs


def _wide(text: str) -> re.Match[str] | None:
    return _WIDE_END.search(text)


def _ends(text: str) -> bool:
    """Whether the text may be a whole sentence."""
    bare = text.strip()
    if not bare:
        return False
    if "\n" in text[len(text.rstrip()) :]:
        return True
    return bool(_END.search(bare)) and not _NO_END.search(bare) and not _LIST_NUMBER.fullmatch(bare)
