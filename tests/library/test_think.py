"""The phase of every token: at both marks, however they are cut into tokens, and where a mark is none."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from geomcli import models
from geomcli.server_patch import state
from geomcli.server_patch.collector import Collector
from geomcli.server_patch.texts import TokenTexts
from geomcli.server_patch.think import Phases, Thinking
from geomcli.server_patch.values import Value

ASKED = Thinking("<think>", "</think>", started=False, tool_start="<tool_call>")
FORCED = ASKED._replace(started=True)
KIMI = Thinking("◁think▷", "◁/think▷", started=False)


def phases_of(pieces: list[str | None], thinking: Thinking | None) -> str:
    """One letter for each token: t for thinking, o for output."""
    phases = Phases(thinking)
    found = [phase for piece in pieces for phase in phases.push(piece)] + phases.finish()
    return "".join("t" if phase else "o" for phase in found)


@pytest.mark.parametrize(
    ("thinking", "pieces", "expected"),
    [
        (ASKED, ["<think>", "hm", "</think>", "Hi"], "ttto"),
        (FORCED, ["hm", "</think>", "Hi"], "tto"),
        (FORCED, ["<think>", "hm", "</think>", "Hi"], "ttto"),
        (FORCED, ["hm", " hm", " hm"], "ttt"),  # the end mark never comes
        (ASKED, ["<think>", "hm"], "tt"),
        (ASKED, ["Hi", " there"], "oo"),  # there is none
        (FORCED, ["</think>", "Hi"], "to"),
        (ASKED, ["<", "think", ">", "hm", "</", "think", ">", "Hi"], "ttttttto"),  # marks in several tokens
        (ASKED, ["\n", "<think>", "hm", "</think>", "\n\n", "Hi"], "ttttoo"),
        (ASKED, ["\n", " ", "Hi"], "ooo"),
        (ASKED, ["\n"], "o"),
        (ASKED, ["<", "thin", "gs>"], "ooo"),  # no mark after all
        (ASKED, ["<", "thin"], "oo"),
        (FORCED, ["a<", "/thi", "s", "</think>", "Hi"], "tttto"),
        (ASKED, ["Write ", "<think>", " and ", "</think>", "."], "ooooo"),  # mentioned, not used
        (ASKED, ["`<think>`", "a"], "oo"),
        (FORCED, ["hm", "</think>", "Use ", "<think>", "x", "</think>", "y"], "ttooooo"),
        (ASKED, ["<think>", "is ", "<think>", " a mark", "</think>", "y"], "ttttto"),
        (FORCED, ["hm.</think>Hi", " you"], "to"),  # a token with text of both belongs to thinking
        (FORCED, ["hm", "<tool_call>", "{}"], "too"),  # a tool call ends the block, and is output
        (FORCED, ["hm", "<tool", "_call>", "{}"], "tooo"),
        (FORCED, ["hm", "<tool"], "tt"),  # the answer ends inside what would have been one
        (ASKED, ["<think>", "hm", "<", "tool"], "tttt"),
        (FORCED, ["hm", "<tool", "box>", "</think>", "a"], "tttto"),
        (FORCED, ["a", "</think>", "b", "<tool_call>"], "ttoo"),
        (FORCED, ["say <tool_call>", " here", "</think>"], "too"),
        (FORCED._replace(tool_at_line_start=True), ["say ", "<tool_call>", "</think>", "a"], "ttto"),
        (FORCED._replace(tool_at_line_start=True), ["say\n", "<tool_call>", "a"], "too"),
        (FORCED._replace(tool_at_line_start=True), ["<tool_call>", "a"], "oo"),
        (KIMI, ["◁", "think", "▷", "hm", "◁/", "think", "▷", "Hi"], "ttttttto"),
        (KIMI, ["", "", "◁", "think▷", "x", "◁/think▷", "", "é"], "ttttttoo"),  # bytes of a character
        (KIMI, ["", "", "◁", "a"], "oooo"),
        (KIMI, ["", ""], "oo"),
        (FORCED, [None, "a", None, "</think>", None, "b"], "ttttoo"),
        (None, ["<think>", "hm", "</think>", None], "oooo"),  # no reasoning parser
    ],
)
def test_where_thinking_begins_and_ends(thinking: Thinking | None, pieces: list[str | None], expected: str) -> None:
    assert phases_of(pieces, thinking) == expected


texts = st.lists(
    st.sampled_from(["<think>", "</think>", "<tool_call>", "<", "</", "think", ">", " ", "\n", "a", "é"]), max_size=12
).map("".join)
spec = st.builds(
    Thinking, st.just("<think>"), st.just("</think>"), st.booleans(),
    st.sampled_from(["", "<tool_call>"]), st.booleans(),
)  # fmt: skip


@settings(max_examples=500)
@given(text=texts, thinking=spec, cuts=st.lists(st.integers(0, 60), max_size=12))
def test_a_token_is_thinking_if_any_of_its_characters_is(text: str, thinking: Thinking, cuts: list[int]) -> None:
    of_characters = phases_of(list(text), thinking)
    ends = sorted({min(cut, len(text)) for cut in cuts} | {len(text)})
    pieces = [text[a:b] for a, b in zip([0, *ends], ends, strict=False) if b > a]
    start, expected = 0, ""
    for piece in pieces:
        expected += "t" if "t" in of_characters[start : start + len(piece)] else "o"
        start += len(piece)
    assert phases_of(list(pieces), thinking) == expected


@settings(max_examples=300)
@given(text=texts, thinking=spec)
def test_only_what_may_begin_a_mark_waits(text: str, thinking: Thinking) -> None:
    phases, waiting, seen = Phases(thinking), 0, ""
    for character in text:
        seen += character
        waiting += 1 - len(phases.push(character))
        white = len(seen) - len(seen.rstrip()) if not seen.strip() else 0
        assert waiting <= max(white, len("<tool_call>") - 1 + (len(seen) - len(seen.lstrip())))
        if waiting and seen.strip():
            held = seen[-waiting:].lstrip()
            assert any(mark.startswith(held) for mark in (thinking.start, thinking.tool_start))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return Tokenizer.from_file(str(models.path_of("smollm2") / "tokenizer.json"))


@pytest.mark.parametrize(
    ("thinking", "text", "thought"),
    [
        (ASKED, "<think>\nTwo and two.\n</think>\n\nFour.", "<think>\nTwo and two.\n</think>\n\n"),
        (FORCED, "Two and two.</think>Four.", "Two and two.</think>"),
        (KIMI, "◁think▷Zwei Äpfel, 两个◁/think▷Vier.", "◁think▷Zwei Äpfel, 两个◁/think▷"),
        (ASKED, "The tag <think> opens a block, </think> ends it.", ""),
    ],
)
def test_marks_that_a_real_tokenizer_spells_in_several_tokens(
    tokenizer: Any, thinking: Thinking, text: str, thought: str
) -> None:
    class Decoder:
        backend_tokenizer = tokenizer

    ids = tokenizer.encode(text).ids
    decoder = TokenTexts(Decoder())
    pieces = [decoder.push(i) or "" for i in ids]
    assert "".join(pieces) == text
    assert len(tokenizer.encode(thinking.start).ids) > 1
    letters = phases_of(list(pieces), thinking)
    in_block = "".join(piece for piece, letter in zip(pieces, letters, strict=True) if letter == "t")
    # The last token of the mark may hold what stands behind it.
    assert thought.startswith(in_block)
    assert in_block.strip() == thought.strip()


class Pieces:
    """A tokenizer whose token n is the n-th piece."""

    texts = ("<", "think", ">", "a", "</", " ", "\n")

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(self.texts[i] for i in ids)


def read(entries: list[bytes]) -> list[dict[str, Any]]:
    return [orjson.loads(entry) for entry in entries]


@settings(max_examples=200)
@given(
    ids=st.lists(st.integers(0, len(Pieces.texts) - 1), min_size=1, max_size=16),
    bare=st.sets(st.integers(0, 15)), lost=st.sets(st.integers(0, 15)), cuts=st.sets(st.integers(1, 16)),
    started=st.booleans(),
)  # fmt: skip
def test_however_an_answer_arrives_its_entries_are_the_same(
    ids: list[int], bare: set[int], lost: set[int], cuts: set[int], started: bool
) -> None:
    before, state.main = state.main, state.MainState()
    state.main.tokenizer = Pieces()
    try:
        values = [
            Value(n + 1, i, False, b"" if n in bare else b'"decode_step":%d' % (n + 1))
            for n, i in enumerate(ids) if n not in lost
        ]  # fmt: skip
        thinking = [ASKED._replace(started=started)]
        whole = read(Collector(thinking).new_entries(0, values, len(ids), over=True))
        assert [e["decode_step"] for e in whole] == [n + 1 for n in range(len(ids)) if n in lost or n not in bare]
        collector, found = Collector(thinking), []
        ends = sorted({cut for cut in cuts if cut < len(ids)} | {len(ids)})
        for start, end in zip([0, *ends], ends, strict=False):
            part = [value for value in values if start < value.step <= end]
            found += read(collector.new_entries(0, part, end, over=end == len(ids)))
        assert found == whole
        pieces = [None if n in lost else Pieces.texts[i] for n, i in enumerate(ids)]
        letters = phases_of(pieces, thinking[0])
        for entry in whole:
            if "error" not in entry.get("flags", []):
                assert entry["think_phase"][0] == letters[entry["decode_step"] - 1]
    finally:
        state.main = before


def test_prompts_of_a_batch_think_each_for_itself() -> None:
    before, state.main = state.main, state.MainState()
    state.main.tokenizer = Pieces()
    try:
        collector = Collector([FORCED, ASKED], choices=2)
        phases = [
            read(collector.new_entries(index, [Value(1, 3, False, b'"decode_step":1')], 1, over=True))[0]["think_phase"]
            for index in range(4)
        ]
        assert phases == ["think", "think", "output", "output"]
    finally:
        state.main = before
