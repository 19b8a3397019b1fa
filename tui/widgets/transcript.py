"""The turns of a chat as lines: questions, folded thinking, answers, and what went wrong. Knows no widget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len

from geomcli.display import END_MARK, END_TOKENS, ZONE_GLYPHS, zone_label
from geomcli.tui.session import Place
from geomcli.tui.turn import Token, Turn
from geomcli.tui.widgets.flow import Flow, Piece
from geomcli.zones import UNKNOWN

_LABELS = {"user": "you", "assistant": "model", "system": "system", "tool": "tool"}


@dataclass(slots=True)
class _Drawn:
    """How far a turn has been laid out."""

    turn: Turn
    tokens: int = 0
    phase: str = ""
    zone: str = UNKNOWN
    fold: int | None = None  # line of the summary of the thinking that is being folded
    aligned: bool = False  # whether its question was laid out token by token
    opened: bool = False  # whether the paragraph has any text: white space before it is left out
    ended: bool = False
    thought: int = 0  # tokens of thinking so far
    zones: Counter[str] = field(default_factory=Counter)  # of those of them that were captured


class Transcript:
    """Lines for `turns`, growing with them. `folded`: thinking is one line. `marks`: a glyph where the zone changes."""

    def __init__(self, width: int, *, folded: bool = True, marks: bool = True) -> None:
        self.flow = Flow(width)
        self.folded, self.marks = folded, marks
        self._drawn: list[_Drawn] = []
        self._said: list[tuple[str, str]] = []  # messages that are on screen

    def update(self, turns: Sequence[Turn]) -> bool:
        """Lay out what is new; False when the turns are not those laid out so far, and all has to be begun anew."""
        for drawn, turn in zip(self._drawn, turns, strict=False):
            if drawn.turn is not turn or (turn.prompt_tokens and not drawn.aligned):
                return False
        if len(turns) < len(self._drawn):
            return False
        for number in range(max(0, len(self._drawn) - 1), len(turns)):
            if number == len(self._drawn):
                self._drawn.append(_Drawn(turns[number]))
                self._question(number)
            self._answer(number)
        return True

    def _question(self, number: int) -> None:
        drawn = self._drawn[number]
        turn, said = drawn.turn, self._said
        drawn.aligned = bool(turn.prompt_tokens)
        messages = [(str(m["role"]), str(m["content"])) for m in turn.prompt]
        if number and messages[: len(said)] != said:
            self.flow.blank()
            self.flow.paragraph()
            self.flow.add(f"── another chat · {turn.id} ", style="muted")
            said.clear()
        spots = _spots(turn)
        for role, content in messages[len(said) :]:
            self.flow.blank()
            self.flow.paragraph(_LABELS.get(role, role))
            if (found := spots.get(content)) is not None:
                for token, text in found:
                    self.flow.add(text, Place(number, token), "prompt")
            else:
                self.flow.add(content, style="prompt")
        said[:] = messages

    def _answer(self, number: int) -> None:
        drawn = self._drawn[number]
        turn = drawn.turn
        for token in turn.tokens[drawn.tokens :]:
            self._token(drawn, Place(number, token.index), token)
        drawn.tokens = len(turn.tokens)
        if drawn.phase == "think" and drawn.fold is not None:
            self._summary(drawn)
        if turn.finished and not turn.held and not drawn.ended:
            drawn.ended = True
            self._said.append(("assistant", turn.answer))
            self._end(drawn)

    def _token(self, drawn: _Drawn, place: Place, token: Token) -> None:
        if token.phase != drawn.phase:
            if drawn.phase == "think" and drawn.fold is not None:
                self._summary(drawn)
            drawn.phase, drawn.zone, drawn.opened = token.phase, UNKNOWN, False
            self.flow.blank()
            self.flow.paragraph("think" if token.phase == "think" else "model")
            drawn.fold = None
            if token.phase == "think" and self.folded:
                drawn.fold = len(self.flow.lines) - 1
        if token.phase == "think":
            drawn.thought += 1
            drawn.zones[token.zone] += token.captured
        if drawn.fold is not None:
            return
        if token.text in END_TOKENS:
            # It is a token like any other, to be looked at; but nobody said it.
            self.flow.add(" ", place)
            self.flow.add(END_MARK, place, "muted")
            return
        text = token.text if drawn.opened else token.text.lstrip(" \n")
        drawn.opened = drawn.opened or bool(text)
        if self.marks and token.captured and token.zone not in (drawn.zone, UNKNOWN) and text.strip():
            body = text.lstrip(" ")
            self.flow.add(text[: len(text) - len(body)], place)
            self.flow.add(ZONE_GLYPHS.get(token.zone, ZONE_GLYPHS[UNKNOWN]), place, f"mark:{token.zone}")
            drawn.zone, text = token.zone, body
        self.flow.add(text, place, "think" if token.phase == "think" else "")

    def _summary(self, drawn: _Drawn) -> None:
        """One line for thinking that is folded: how long it is and which zones it has."""
        turn = drawn.turn
        ended = turn.finished or turn.tokens[-1].phase != "think"
        texts = [("▸ thought" if ended else "▸ thinking …", "fold"), (f"  {drawn.thought} tokens", "muted")]
        captured = drawn.zones.total()
        for zone, count in drawn.zones.most_common(2) if captured else ():
            share = count / captured
            texts += [
                ("  ", ""),
                (ZONE_GLYPHS.get(zone, "·"), f"mark:{zone}"),
                (f" {zone_label(zone)} {share:.0%}", "muted"),
            ]
        texts.append(("   z unfolds", "muted"))
        assert drawn.fold is not None
        self.flow.replace_line(drawn.fold, [Piece(text, cell_len(text), None, style) for text, style in texts])

    def _end(self, drawn: _Drawn) -> None:
        turn = drawn.turn
        if turn.error:
            self.flow.blank()
            self.flow.paragraph("×")
            self.flow.add(f"{turn.error.rstrip('.')}. What arrived is kept.", style="error")
        elif not turn.tokens:
            answer = turn.answer
            self.flow.blank()
            self.flow.paragraph("model")
            self.flow.add(answer or "(the answer is empty)", style="" if answer else "muted")


def _spots(turn: Turn) -> dict[str, list[tuple[int, str]]]:
    """Message text -> its parts with the tokens of the prompt that hold them, counted from the prompt's end (-1 last).

    Only messages that are found in the prompt's tokens, which templates may change or the server may mask.
    """
    if not turn.prompt_tokens or turn.prompt_length is None:
        return {}
    whole, starts = "", []
    for text in turn.prompt_tokens:
        starts.append(len(whole))
        whole += text if text is not None else "\0"
    found: dict[str, list[tuple[int, str]]] = {}
    offset = 0
    for message in turn.prompt:
        content = str(message["content"])
        begin = whole.find(content, offset)
        if begin < 0 or not content:
            continue
        offset = begin + len(content)
        parts = []
        for position, start in enumerate(starts):
            end = starts[position + 1] if position + 1 < len(starts) else len(whole)
            if start < offset and end > begin:
                parts.append((position - turn.prompt_length, whole[max(start, begin) : min(end, offset)]))
        found[content] = parts
    return found
