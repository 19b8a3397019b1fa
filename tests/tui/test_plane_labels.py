"""Names of clusters on the plane keep out of each other's way, whatever room there is."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from geomcli.tui.grouping import Label
from geomcli.tui.widgets.grid import Window
from geomcli.tui.widgets.plane_labels import written

seeds = st.integers(0, 2**32 - 1)


@given(seeds, st.integers(1, 30), st.sampled_from([(10, 30), (24, 78), (2, 9)]))
def test_names_on_the_plane_never_overlap(seed: int, count: int, size: tuple[int, int]) -> None:
    random = np.random.default_rng(seed)
    rows, columns = size
    labels = [
        Label(x, y, chr(65 + n), ("syntax floor, local attention 37%", "syntax floor 37%", "37%"))
        for n, (x, y) in enumerate(random.uniform(-0.1, 1.1, (count, 2)).tolist())
    ]
    made_rows = written(labels, Window(0, 1, 0, 1), random.integers(0, 2, size).astype(np.float64))
    for row, parts in made_rows.items():
        assert 0 <= row < rows
        spans = sorted((part.column, part.column + len(part.text)) for part in parts)
        assert spans[0][0] >= 0
        assert spans[-1][1] <= columns
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    letters = [part.text for parts in made_rows.values() for part in parts if not part.zone]
    assert len(letters) == len(set(letters))
