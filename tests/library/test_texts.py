"""Pieces of text join to the decoded answer, whatever the bytes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from geomcli import models
from geomcli.server_patch.texts import TokenTexts, token_pieces


class Adapter:
    """The part of transformers' tokenizer that the server uses, over the real vocabulary."""

    def __init__(self) -> None:
        self._tokenizer = Tokenizer.from_file(str(models.path_of("smollm2") / "tokenizer.json"))

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text).ids)

    def decode(self, ids: list[int], **_: Any) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))


@pytest.fixture(scope="module")
def tokenizer() -> Adapter:
    return Adapter()


@settings(max_examples=200)
@given(text=st.text(st.characters(exclude_categories=("Cs", "Cn", "Co")), min_size=1, max_size=40))
def test_pieces_join_to_the_text(tokenizer: Adapter, text: str) -> None:
    # The vocabulary has no token for some bytes and leaves them out: then there is no character to be whole.
    assume("�" not in tokenizer.decode(tokenizer.encode(text)))
    ids = tokenizer.encode(text)
    texts = TokenTexts(tokenizer)
    pieces = [texts.push(i) or "" for i in ids]
    assert "".join(pieces) == tokenizer.decode(ids)


def test_a_character_in_several_tokens_comes_with_the_last_of_them(tokenizer: Adapter) -> None:
    ids = tokenizer.encode("a🦜b")
    texts = TokenTexts(tokenizer)
    pieces = [texts.push(i) for i in ids]
    assert len(ids) > 3
    assert pieces[0] == "a"
    assert pieces[-2:] == ["🦜", "b"]
    assert set(pieces[1:-2]) == {""}
    # The tokenizer's byte fallback must not swallow what stands beside it.
    mixed = tokenizer.encode("x😀 y")
    again = TokenTexts(tokenizer)
    joined = "".join(again.push(i) or "" for i in mixed)
    assert joined == tokenizer.decode(mixed)
    assert "😀" in joined


def test_bytes_that_are_no_character_are_shown_and_do_not_block_what_follows(tokenizer: Adapter) -> None:
    broken = tokenizer.encode("🦜")[:1] * 6
    texts = TokenTexts(tokenizer)
    pieces = [texts.push(i) or "" for i in [*broken, *tokenizer.encode(" end")]]
    assert "�" in "".join(pieces)
    assert "".join(pieces).endswith(" end")


def test_special_tokens_are_spelt_out(tokenizer: Adapter) -> None:
    assert token_pieces(tokenizer, tokenizer.encode("<|im_start|>user\n")) == ["<|im_start|>", "user", "\n"]
    assert token_pieces(None, [1]) is None
    assert TokenTexts(None).push(1) is None
