"""Points on a plane in cells of the terminal: glyphs or braille dots, a cursor that moves from point to point.

Drawn here and not by textual-plot: that gives a cell to whatever is drawn last instead of the kind most of its points
have, cannot tell which point was meant, and took 60 to 100 ms for 10,000 points where this takes a tenth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.geometry import Region, Size
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from geomcli.tui.grouping import Backdrop, Kinds, Label
from geomcli.tui.themes import Paint
from geomcli.tui.widgets.grid import Grid, Window, window_of
from geomcli.tui.widgets.plane_labels import Written, written

if TYPE_CHECKING:
    from geomcli.tui.app import GeomApp

HERE = "●"
_MANY = 400  # points from which dots are drawn instead of glyphs, unless asked otherwise
_DEEPEST = 4096.0
_MOST_KINDS = 4096
_POINT = 4.0  # dots of a backdrop that words cover rather than a point


class Scatter(Widget, can_focus=True):
    """Shows points [n, 2] in the colours and glyphs of their kinds. `cursor`: index of a point, None without points.

    Draws the whole plane when points, size or zoom change, and two lines when the cursor moves.
    """

    class Moved(Message):
        """The cursor is on another point, or other points are in its cell."""

    class Opened(Message):
        """A point was clicked twice."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.cursor: int | None = None
        self.dots: bool | None = None  # None: as many points as there are decide
        self._xy = np.zeros((0, 2))
        self._of = np.zeros(0, np.int64)
        self._kinds = Kinds()
        self._labels: Sequence[Label] = ()
        self._backdrop: Backdrop | None = None
        self._values: NDArray[np.float64] | None = None
        self._here: tuple[float, float] | None = None
        self._whole = Window(-1.0, 1.0, -1.0, 1.0)
        self._window = self._whole
        self._grid: Grid | None = None
        self._patterns: NDArray[np.int64] | None = None
        self._means: NDArray[np.float64] | None = None
        self._behind: _Behind | None = None
        self._styles: list[Style] = []  # of the kinds, in the theme that is on
        self._strips: dict[int, Strip] = {}

    @property
    def paint(self) -> Paint:
        return cast("GeomApp", self.app).paint

    @property
    def grid(self) -> Grid:
        """The cells at this size and zoom."""
        if self._grid is None:
            self._grid = Grid(self._xy, self._of, self._window, self.size)
            self._patterns = self._grid.dots() if self.draws_dots else None
            self._means = None if self._values is None else self._grid.means(self._values)
        return self._grid

    @property
    def behind(self) -> _Behind:
        """The backdrop and the labels at this size and zoom; the same one as long as they are."""
        grid = self.grid
        points = (grid.counts > 0).tobytes() if self._backdrop is not None else b""
        now = (grid.window, Size(grid.columns, grid.rows), self._backdrop, tuple(self._labels), points)
        if self._behind is None or self._behind.made_for != now:
            self._behind = _Behind(now)
        return self._behind

    @property
    def draws_dots(self) -> bool:
        """Whether points are braille dots. Without colours they are glyphs: nothing else would tell kinds apart."""
        if self.dots is None:
            return len(self._xy) > _MANY and not self.paint.plain
        return self.dots

    @property
    def zoom(self) -> float:
        """How many times finer than the whole."""
        return (self._whole.right - self._whole.left) / (self._window.right - self._window.left)

    def show(
        self,
        xy: NDArray[np.float64],
        of: NDArray[np.int64],
        kinds: Kinds,
        *,
        cursor: int | None,
        values: NDArray[np.float64] | None = None,
        here: tuple[float, float] | None = None,
        labels: Sequence[Label] = (),
        backdrop: Backdrop | None = None,
    ) -> None:
        """Show points [n, 2] of kinds [n] (places in `kinds`).

        `values` [n], 0..1 or nan: what cells are shaded by, the mean of theirs. `here`: a place to mark. `labels`:
        names at places. `backdrop`: dots behind the points, on a plane that has no origin.
        """
        before = self._picture()
        behind = np.zeros((0, 2)) if backdrop is None else backdrop.xy
        whole = window_of(np.concatenate([xy, behind] if here is None else [xy, behind, [here]]))
        if self._window == self._whole:
            self._window = whole
        self._whole = whole
        if kinds != self._kinds:
            self._styles = []
        self._xy, self._of, self._kinds, self._values, self._here, self._labels = xy, of, kinds, values, here, labels
        self._backdrop = backdrop
        self.cursor = cursor if cursor is not None and cursor < len(xy) else None
        self._grid = None
        after = self._picture()
        if before is None or after is None or before[0] != after[0]:
            self.redraw()
            return
        for row in np.flatnonzero((before[1] != after[1]).any(axis=1)).tolist():
            self._strips.pop(row, None)
            self.refresh(Region(0, row, self.size.width, 1))

    def _picture(self) -> tuple[tuple[object, ...], NDArray[np.int64]] | None:
        """(what all lines depend on, a number for each cell [rows, columns]); None where all lines have to be drawn."""
        if self._values is not None or not self.size or not len(self._xy):
            return None
        grid = self.grid
        picture = grid.kinds + _MOST_KINDS * (np.minimum(grid.counts, 1) if self._patterns is None else self._patterns)
        for mark, cell in ((-1, self._here_cell()), (-2, self._cell)):
            if cell is not None:
                picture[cell] = _MOST_KINDS * mark * (len(self._of) + 1) - (self.cursor or 0)
        whole = (self._zero(), self.draws_dots, self.paint, self._kinds, tuple(self._labels), self.behind)
        return whole, picture.reshape(grid.rows, grid.columns)

    def redraw(self) -> None:
        """Lay everything out again."""
        self._grid = None
        self._styles = []
        self._strips.clear()
        self.refresh()

    def select(self, index: int | None) -> None:
        """Put the cursor on a point; the window follows."""
        if index == self.cursor or index is None:
            return
        before, self.cursor = self._cell, index
        window = self._window
        if np.isfinite(self._xy[index]).all():
            window = window.around(*self._xy[index].tolist())
        if window != self._window:
            self._window = window
            self.redraw()
        else:
            for cell in (before, self._cell):
                self._refresh_cell(cell)
        self.post_message(self.Moved())

    def move(self, dx: int, dy: int) -> None:
        """Move the cursor to the nearest cell with points in a direction."""
        if not len(self._xy):
            return
        if self.cursor is None or self._cell is None:
            self.select(self._nearest(self.size.width / 2, self.size.height / 2) or 0)
            return
        cell = self.grid.toward(self._cell, dx, dy)
        if cell is not None:
            members = self.grid.members(cell)
            self.select(members[self._closest(members, self._xy[self.cursor])])

    def step(self, delta: int) -> None:
        """Move the cursor among the points of its cell."""
        members = self.here_too
        if self.cursor in members and len(members) > 1:
            self.select(members[(members.index(self.cursor) + delta) % len(members)])

    @property
    def here_too(self) -> list[int]:
        """The points in the cursor's cell, in their order."""
        return [] if self._cell is None else self.grid.members(self._cell)

    def zoom_by(self, factor: float, at: tuple[float, float] | None = None) -> None:
        """Look `factor` times as close at a place of the plane: the cursor's by default."""
        zoom = min(_DEEPEST, max(1.0, self.zoom * factor))
        if at is None and self.cursor is not None and np.isfinite(self._xy[self.cursor]).all():
            x, y = self._xy[self.cursor].tolist()
            at = (float(x), float(y))
        if at is None:
            at = ((self._window.left + self._window.right) / 2, (self._window.bottom + self._window.top) / 2)
        self._window = self._whole if zoom <= 1.0 else self._window.zoomed(zoom / self.zoom, *at)
        self.redraw()
        self.post_message(self.Moved())

    def show_all(self) -> None:
        """Show the whole plane."""
        self._window = self._whole
        self.redraw()
        self.post_message(self.Moved())

    @property
    def _cell(self) -> int | None:
        if self.cursor is None:
            return None
        cell = int(self.grid.cell[self.cursor])
        return cell if cell >= 0 else None

    def _closest(self, members: Sequence[int], xy: NDArray[np.float64]) -> int:
        distance = ((self._xy[list(members)] - xy) ** 2).sum(axis=1)
        return int(distance.argmin())

    def _nearest(self, x: float, y: float, *, within: float = float("inf")) -> int | None:
        """The point nearest to a place in cells, rows counted twice; None where none is `within`."""
        grid = self.grid
        distance = (grid.u * grid.columns - x) ** 2 + ((grid.v * grid.rows - y) * 2) ** 2
        distance[~grid.inside] = np.inf
        if not len(distance) or distance.min() > within**2:
            return None
        return int(distance.argmin())

    def _refresh_cell(self, cell: int | None) -> None:
        if cell is not None:
            row = cell // self.grid.columns
            self._strips.pop(row, None)
            self.refresh(Region(0, row, self.size.width, 1))

    def on_resize(self) -> None:
        self.redraw()
        self.post_message(self.Moved())

    def render_line(self, y: int) -> Strip:
        strip = self._strips.get(y)
        if strip is None:
            strip = self._strips[y] = self._drawn(y)
        return strip

    def _drawn(self, y: int) -> Strip:
        grid, base, paint = self.grid, self.rich_style, self.paint
        if not len(self._xy) or y >= grid.rows:
            return Strip.blank(self.size.width, base)
        first = y * grid.columns
        counts = grid.counts[first : first + grid.columns].tolist()
        kinds = grid.kinds[first : first + grid.columns].tolist()
        if not self._styles:
            self._styles = [base + paint.zone_mark(zone) for zone in self._kinds.colours] + [
                base + paint.fore("border")
            ]
        *styles, line_style = self._styles
        dots_behind = self.behind.dots(y)
        zero_column, zero_row = self._zero()
        cells: list[tuple[str, Style]] = []
        for column in range(grid.columns):
            if counts[column]:
                kind = kinds[column]
                dots = None if self._patterns is None else chr(0x2800 + int(self._patterns[first + column]))
                glyph = self._kinds.glyphs[kind] if dots is None else dots
                style = styles[kind] if self._means is None else styles[kind] + self._shade(first + column)
                cells.append((glyph, style))
            elif (dim := dots_behind.get(column)) is not None:
                cells.append((dim[0], base + paint.dimmed(dim[1])))
            elif column == zero_column or y == zero_row:
                cells.append(("┼" if y == zero_row == y and column == zero_column else "┊" if y != zero_row else "┈",
                              line_style))  # fmt: skip
            else:
                cells.append((" ", base))
        self._mark(cells, y, base)
        return Strip(_merged(cells))

    def _shade(self, cell: int) -> Style:
        if self._means is None or np.isnan(self._means[cell]):
            return Style()
        return self.paint.ramp(float(self._means[cell]))

    def _zero(self) -> tuple[int, int]:
        """Column and row of the plane's origin; outside of the grid where it is not shown."""
        if self._backdrop is not None:
            return -1, -1
        grid, window = self.grid, self._window
        column = int(np.floor(-window.left / (window.right - window.left) * grid.columns))
        row = int(np.floor(window.top / (window.top - window.bottom) * grid.rows))
        return column, row

    def _mark(self, cells: list[tuple[str, Style]], y: int, base: Style) -> None:
        """Labels, above them the place that is marked, and the cursor above all."""
        grid, paint, here = self.grid, self.paint, self._here_cell()
        for said in self.behind.written.get(y, ()):
            style = base + (
                paint.zone_mark(said.zone) if said.zone else paint.fore("foreground", bold=True, underline=True)
            )
            for column, glyph in enumerate(said.text, said.column):
                cells[column] = (glyph, style)
        if here is not None and here // grid.columns == y:
            cells[here % grid.columns] = (HERE, base + paint.fore("accent", bold=True))
        cell = self._cell
        if cell is not None and self.cursor is not None and cell // grid.columns == y:
            column = cell % grid.columns
            kind = int(self._of[self.cursor])
            glyph = HERE if cells[column][0] == HERE else self._kinds.glyphs[kind]
            style = paint.zone_mark(self._kinds.colours[kind]) if glyph != HERE else paint.fore("accent")
            cells[column] = (glyph, base + style + Style(reverse=True, bold=True))

    def _here_cell(self) -> int | None:
        """The cell of the place that is marked."""
        return None if self._here is None else self._cell_at(*self._here)

    def _cell_at(self, x: float, y: float) -> int | None:
        grid, window = self.grid, self._window
        column = math.floor((x - window.left) / (window.right - window.left) * grid.columns)
        row = math.floor((window.top - y) / (window.top - window.bottom) * grid.rows)
        return row * grid.columns + column if 0 <= row < grid.rows and 0 <= column < grid.columns else None

    def on_click(self, event: events.Click) -> None:
        index = self._nearest(event.x + 0.5, event.y + 0.5, within=4)
        if index is None:
            return
        self.select(index)
        if event.chain == 2:
            self.post_message(self.Opened())

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.zoom_by(1.25, self._at(event))

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.zoom_by(1 / 1.25, self._at(event))

    def _at(self, event: events.MouseEvent) -> tuple[float, float]:
        window, size = self._window, self.size
        return (
            window.left + (event.x + 0.5) / max(1, size.width) * (window.right - window.left),
            window.top - (event.y + 0.5) / max(1, size.height) * (window.top - window.bottom),
        )


class _Behind:
    """What lies on a plane besides its points: dots of a backdrop, and labels where there is room for them."""

    def __init__(self, made_for: tuple[Window, Size, Backdrop | None, tuple[Label, ...], bytes]) -> None:
        self.made_for = made_for
        window, size, backdrop, labels, points = made_for
        self._colours = () if backdrop is None else backdrop.colours
        nothing = (np.zeros((0, 2)), np.zeros(0, np.int64))
        self._grid = Grid(*(nothing if backdrop is None else (backdrop.xy, backdrop.of)), window, size)
        self._patterns = self._grid.dots()
        occupied = np.minimum(self._grid.counts, 1).astype(np.float64)
        if points:
            occupied += _POINT * np.frombuffer(points, dtype=bool)
        occupied = occupied.reshape(self._grid.rows, self._grid.columns)
        self.written: dict[int, list[Written]] = written(labels, window, occupied)

    def dots(self, row: int) -> dict[int, tuple[str, str]]:
        """Column -> (braille, zone whose colour it has, "" for none)."""
        grid, first = self._grid, row * self._grid.columns
        if not self._colours or row >= grid.rows:
            return {}
        some = np.flatnonzero(grid.counts[first : first + grid.columns])
        patterns, kinds = self._patterns[first + some].tolist(), grid.kinds[first + some].tolist()
        return {
            column: (chr(0x2800 + pattern), self._colours[kind])
            for column, pattern, kind in zip(some.tolist(), patterns, kinds, strict=True)
        }


def _merged(cells: Sequence[tuple[str, Style]]) -> list[Segment]:
    """Segments of neighbours that have one style."""
    segments: list[Segment] = []
    text, style = "", None
    for glyph, own in cells:
        if own is not style and own != style:
            if text:
                segments.append(Segment(text, style))
            text, style = "", own
        text += glyph
    segments.append(Segment(text, style))
    return segments
