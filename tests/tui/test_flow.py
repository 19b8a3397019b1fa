"""Word wrap: nothing is lost, no line is too wide, and what arrives bit by bit looks like what arrives at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from geomcli.tui.session import Place
from geomcli.tui.widgets.flow import Flow, shown

TEXT = st.text(
    st.one_of(st.characters(codec="utf-8"), st.sampled_from("ab \n\t  もつ🎉👩‍💻❤️é\x1b\u202e\u0301")),
    max_size=12,
)
TOKENS = st.lists(TEXT, max_size=40)


def flow_of(tokens: list[str], width: int) -> Flow:
    flow = Flow(width)
    flow.paragraph("model")
    for n, text in enumerate(tokens):
        flow.add(text, Place(0, n))
    return flow


def text_of(flow: Flow) -> list[str]:
    return ["".join(piece.text for piece in line.pieces) for line in flow.lines]


@given(TOKENS, st.integers(4, 60))
def test_no_line_is_too_wide_and_widths_are_right(tokens: list[str], width: int) -> None:
    for line in flow_of(tokens, width).lines:
        assert line.width <= width
        assert line.width == sum(piece.width for piece in line.pieces)
        for piece in line.pieces:
            assert "\n" not in piece.text
            assert "\x1b" not in piece.text


@given(TOKENS, st.integers(4, 60))
def test_nothing_but_white_space_is_lost(tokens: list[str], width: int) -> None:
    drawn = "".join(text_of(flow_of(tokens, width)))
    given_text = "".join(shown(token) for token in tokens)
    assert drawn.replace(" ", "").replace("\u3000", "") == given_text.translate(dict.fromkeys(map(ord, " \u3000\n")))


@given(TOKENS, st.integers(4, 60))
def test_every_token_has_a_line(tokens: list[str], width: int) -> None:
    flow = flow_of(tokens, width)
    for n, text in enumerate(tokens):
        line = flow.line_of(Place(0, n))
        assert line is not None
        visible = [
            i for i, row in enumerate(flow.lines) for p in row.pieces if p.place == Place(0, n) and p.text.strip()
        ]
        if visible and not text.startswith("\n"):
            assert line == visible[0]


@given(TOKENS, st.integers(4, 60))
def test_only_the_end_changes(tokens: list[str], width: int) -> None:
    flow = Flow(width)
    flow.paragraph("model")
    for n, text in enumerate(tokens):
        before = text_of(flow)
        flow.dirty = len(flow.lines)
        flow.add(text, Place(0, n))
        assert flow.dirty >= len(before) - 1
        assert text_of(flow)[: flow.dirty] == before[: flow.dirty]
    assert text_of(flow) == text_of(flow_of(tokens, width))


def test_words_are_kept_together() -> None:
    flow = flow_of(["The", " quick", " bro", "wn", " fox"], 12)
    assert [line.rstrip() for line in text_of(flow)] == ["The quick", "brown fox"]
    assert flow.line_of(Place(0, 2)) == 1
    assert flow.line_of(Place(0, 3)) == 1


def test_long_words_and_wide_characters_are_broken_at_the_edge() -> None:
    assert text_of(flow_of(["abcdefghij"], 4)) == ["abcd", "efgh", "ij"]
    lines = text_of(flow_of(["量子もつれ"], 5))
    assert lines == ["量子", "もつ", "れ"]
    assert all(cell_len(line) <= 5 for line in lines)
