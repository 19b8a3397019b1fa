"""The text that each output token adds: pieces that join to the decoded answer, special tokens spelt out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_REPLACEMENT = "�"


class TokenTexts:
    """Incremental decoding of one choice. A token that ends inside a character adds "", the one that completes it
    adds the character."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # The Rust tokenizer inside of a fast one: the same text without the wrapper's work for every token.
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        self._ids: list[int] = []
        self._shown = 0  # ids whose text is out
        self._context = 0  # first id of the decoding context: leading-space rules need a predecessor

    def push(self, token_id: int) -> str | None:
        """Text added by `token_id`; None without a tokenizer."""
        if self._tokenizer is None:
            return None
        self._ids.append(token_id)
        context = self._decode(self._ids[self._context : self._shown])
        text = self._decode(self._ids[self._context :])
        if text.endswith(_REPLACEMENT) and len(self._ids) - self._shown < 4:
            return ""
        self._context, self._shown = self._shown, len(self._ids)
        return text[len(context) :]

    def _decode(self, ids: list[int]) -> str:
        if not ids:
            return ""
        if self._backend is not None:
            return str(self._backend.decode(ids, skip_special_tokens=False))
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


def token_pieces(tokenizer: Any, ids: Sequence[int | None]) -> list[str | None] | None:
    """Text of each token on its own, None for one without an id. None without a tokenizer.

    A token that is part of a character shows as U+FFFD. Per distinct id and not incremental, because a prompt can be
    long and this runs in the server's event loop.
    """
    if tokenizer is None:
        return None
    known = {i: None if i is None else tokenizer.decode([i], skip_special_tokens=False) for i in set(ids)}
    return [known[i] for i in ids]
