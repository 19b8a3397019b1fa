"""Word wrap of a growing text made of tokens: what arrives is wrapped, what stands is left alone. Knows no widget."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from rich.cells import cell_len, split_graphemes

from geomcli.display import printable
from geomcli.tui.session import Place

# Words, white space, line breaks. Wide characters (CJK, emoji) may be broken anywhere and so are words of their own.
_WIDE = (
    "\u1100-\u115f\u2e80-\u2fff\u3001-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe4f\uff00-\uff60\uffe0-\uffe6"
    "\U0001f300-\U0001faff\U00020000-\U0003fffd"
)
_ATOMS = re.compile(rf"\n|[ \u3000]+|[{_WIDE}]|[^\n \u3000{_WIDE}]+")
# Joiners and variation selectors make one wide character of several, of which terminals disagree how wide it is.
_JOINERS = dict.fromkeys((0x200B, 0x200C, 0x200D, 0xFE0E, 0xFE0F, 0xFEFF))
TAB = "    "


class Piece(NamedTuple):
    """A part of a line with one style. `place`: its token, None for other text; `style`: a name the view knows."""

    text: str
    width: int
    place: Place | None
    style: str = ""


@dataclass(slots=True)
class Line:
    """One screen line. `label`: what stands in the margin, on the first line of a paragraph."""

    label: str = ""
    pieces: list[Piece] = field(default_factory=list)
    width: int = 0


def shown(text: str) -> str:
    """A token's text as it is drawn: controls visible, tabs as spaces, nothing of unknown width."""
    return printable(text.replace("\r\n", "\n").replace("\t", TAB)).translate(_JOINERS)


def quoted(text: str) -> str:
    """A token's text on one line, in quotes that show its spaces; breaks and tabs are symbols."""
    return '"' + printable(text).replace("\n", "⏎").replace("\t", "⇥").translate(_JOINERS) + '"'


class Flow:
    """Lines of at most `width` cells. `dirty`: the first line that changed since it was set to `len(lines)`."""

    def __init__(self, width: int) -> None:
        self.width = max(4, width)
        self.lines: list[Line] = []
        self.dirty = 0
        self._word = 0  # piece of the last line at which its last word begins
        self._lines_of: dict[Place, int] = {}

    def line_of(self, place: Place) -> int | None:
        """The line on which a token begins."""
        return self._lines_of.get(place)

    def paragraph(self, label: str = "") -> None:
        """Begin a paragraph: a new line with a label."""
        self._new_line(label)

    def blank(self) -> None:
        """An empty line, unless the last one is."""
        if self.lines and (self.lines[-1].pieces or self.lines[-1].label):
            self._new_line()

    def add(self, text: str, place: Place | None = None, style: str = "") -> None:
        """Append text of one token."""
        if not self.lines:
            self._new_line()
        self.dirty = min(self.dirty, len(self.lines) - 1)
        for atom in _ATOMS.findall(shown(text)):
            if atom == "\n":
                self._mark(place)
                self._new_line()
            elif atom[0] in " \u3000":
                self._space(atom, place, style)
            else:
                self._append_word(atom, place, style)
        self._mark(place)

    def replace_line(self, index: int, pieces: list[Piece]) -> None:
        """Other content for a line that is not wrapped."""
        self.lines[index].pieces = pieces
        self.dirty = min(self.dirty, index)

    def _new_line(self, label: str = "") -> None:
        self.lines.append(Line(label))
        self.dirty = min(self.dirty, len(self.lines) - 1)
        self._word = 0

    def _space(self, atom: str, place: Place | None, style: str) -> None:
        room = self.width - self.lines[-1].width
        width = cell_len(atom)
        # White space at the end of a line is cut: it would begin the next one.
        if width > room:
            atom = atom[: max(0, room // (width // len(atom)))]
        if atom:
            self._put(Piece(atom, cell_len(atom), place, style))
        self._word = len(self.lines[-1].pieces)
        if width > room:
            self._mark(place)
            self._new_line()

    def _append_word(self, atom: str, place: Place | None, style: str) -> None:
        width = cell_len(atom)
        wide = width > 1 and len(atom) == 1
        if wide:
            self._word = len(self.lines[-1].pieces)
        if self.lines[-1].width + width > self.width and self._word > 0:
            self._carry()
        if self.lines[-1].width + width <= self.width:
            self._put(Piece(atom, width, place, style))
        else:
            self._break(atom, place, style)
        if wide:
            self._word = len(self.lines[-1].pieces)

    def _carry(self) -> None:
        """Move the word that does not fit to a new line."""
        old, word = self.lines[-1], self._word
        moved = old.pieces[word:]
        del old.pieces[word:]
        old.width = sum(piece.width for piece in old.pieces)
        self._new_line()
        for piece in moved:
            visible = any(other.place == piece.place and other.text.strip() for other in old.pieces)
            if piece.place is not None and self._lines_of.get(piece.place) == len(self.lines) - 2 and not visible:
                self._lines_of[piece.place] = len(self.lines) - 1
            self._put(piece)

    def _break(self, atom: str, place: Place | None, style: str) -> None:
        """A word longer than a line is cut where the line ends, never within a character."""
        graphemes, _ = split_graphemes(atom)
        text, width = "", 0
        for start, end, size in graphemes:
            if self.lines[-1].width + width + size > self.width:
                if text:
                    self._put(Piece(text, width, place, style))
                self._new_line()
                text, width = "", 0
            text += atom[start:end]
            width += size
        if text:
            self._put(Piece(text, width, place, style))

    def _put(self, piece: Piece) -> None:
        line = self.lines[-1]
        line.pieces.append(piece)
        line.width += piece.width
        # A token that is looked for is where its first letter is, not where the space before it is.
        if piece.text.strip():
            self._mark(piece.place)

    def _mark(self, place: Place | None) -> None:
        if place is not None:
            self._lines_of.setdefault(place, len(self.lines) - 1)
