"""The lines around the manifold's points: scope, axes, legend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import numpy as np
from rich.style import Style
from rich.text import Text
from textual import events
from textual.geometry import Size
from textual.message import Message

from geomcli.clusters import NOISE, Labels
from geomcli.display import ZONE_GLYPHS, cluster_name, zone_label
from geomcli.store_queries import Scope
from geomcli.tui.cloud import SCOPES
from geomcli.tui.manifold import SCOPE_WORDS, Manifold
from geomcli.tui.session import Changed, Overlay
from geomcli.tui.widgets import learned_lines
from geomcli.tui.widgets.scatter import HERE
from geomcli.tui.widgets.text import SessionText
from geomcli.zones import UNKNOWN, ZONE_NAMES

if TYPE_CHECKING:
    from geomcli.tui.app import GeomApp
    from geomcli.tui.themes import Paint


class ManifoldText(SessionText):
    """A text about a manifold. The pane renews it: a session's changes reach it through the manifold's."""

    WATCHES = Changed.NOTHING

    def __init__(self, manifold: Manifold, *, id: str) -> None:  # noqa: A002
        super().__init__(manifold.session, id=id)
        self.manifold = manifold
        self._shown: tuple[Text, Paint] | None = None

    def renew(self) -> None:
        """Draw anew if it says something else, or in another theme."""
        now = (self.render(), self.paint)
        if now != self._shown:
            self._shown = now
            self.refresh()


class ScopeBar(ManifoldText):
    """The scopes, with how many points there are; what the axes are; what is wrong with the discovery. Scopes can be
    clicked.
    """

    class Chosen(Message):
        def __init__(self, scope: Scope) -> None:
            super().__init__()
            self.scope = scope

    def lines(self) -> list[Text]:
        paint, manifold = self.paint, self.manifold
        first = Text(" scope", paint.fore("muted"))
        for scope in SCOPES:
            here = scope == manifold.scope
            style = paint.fore("accent" if here else "muted", bold=here, underline=here)
            first.append("  ").append(scope, style + Style.from_meta({"scope": scope}))
        points = len(manifold.cloud)
        if points:
            kind = "token" if manifold.of_session else "trace"
            count = Text().append(
                f"{points:,} {kind}{'s' if points != 1 else ''} ", paint.fore("foreground", bold=True)
            )
            models = {point.model for point in manifold.cloud.traces}
            if len(models) > 1:
                count.append(f"of {len(models)} models ", paint.fore("warning"))
            first.append(" " * max(2, self.size.width - first.cell_len - count.cell_len)).append_text(count)
        lines = [first, self._axes()]
        if points and (problem := learned_lines.problem_line(manifold, self._map_key)):
            lines.append(Text(problem, paint.fore("warning")))
            lines[-1].truncate(max(1, self.size.width), overflow="ellipsis")
        return lines

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:  # noqa: ARG002
        return len(self.lines())

    def renew(self) -> None:
        height = len(self.lines())
        if height != self.size.height:
            self.refresh(layout=True)
        super().renew()

    @property
    def _map_key(self) -> str:
        return cast("GeomApp", self.app).key_of("plane.toggle")

    def _axes(self) -> Text:
        muted, manifold = self.paint.fore("muted"), self.manifold
        if not len(manifold.cloud):
            return Text(f" {SCOPE_WORDS[manifold.scope]}", muted)
        if manifold.on_map:
            return Text(learned_lines.plane_line(manifold, self.size.width), muted)
        explained = manifold.cloud.projection.explained
        what = "fingerprints" if manifold.of_session else "mean fingerprints"
        grouped = self._clusters()
        axes = f" PCA of {what}: two axes hold {explained.sum():.0%} of the variance."
        learned = self._learned()
        long = f"{axes} {grouped}. {learned[:1].upper()}{learned[1:]}."
        short = f" PCA, {explained.sum():.0%}; {grouped}; {learned}"
        return Text(long if len(long) <= self.size.width else short, muted)

    def _learned(self) -> str:
        learned = self.manifold.learned
        if not learned.looked:
            return "reading the discovery …"
        if learned.classifier is None:
            return "no discovery artifacts" if not learned.problem else "no discovery"
        usable = learned.plane is not None and learned.of(self.manifold.model) is not None
        return f"learned map: {self._map_key}" if usable else "no learned map"

    def _clusters(self) -> str:
        grouping = self.manifold.grouping
        if grouping.error:
            return "No scikit-learn, no clusters"
        if grouping.found is None:
            return "Looking for clusters …"
        count, noise = len(grouping.found), grouping.found.noise
        if not count:
            return "HDBSCAN: no clusters"
        return f"HDBSCAN: {count} cluster{'s' if count > 1 else ''}, {noise:.0%} in none"

    def on_click(self, event: events.Click) -> None:
        if scope := event.style.meta.get("scope"):
            self.post_message(self.Chosen(scope))


class VerticalAxis(ManifoldText):
    """One line above or below the points: what grows upwards, or downwards."""

    def __init__(self, manifold: Manifold, *, up: bool) -> None:
        super().__init__(manifold, id=f"axis-{'up' if up else 'down'}")
        self.up = up

    def lines(self) -> list[Text]:
        paint, cloud = self.paint, self.manifold.cloud
        if not len(cloud):
            return [Text("")]
        plus, minus = cloud.projection.directions(1)
        line = Text().append(" ↑ " if self.up else " ↓ ", paint.fore("primary", bold=True))
        if self.up:
            line.append(f"PC2 {cloud.projection.explained[1]:.0%}  ", paint.fore("primary"))
        line.append(_fitting(plus if self.up else minus, self.size.width - line.cell_len), paint.fore("muted"))
        return [line]


class HorizontalAxis(ManifoldText):
    """One line below the points: what grows to the left, and to the right."""

    def lines(self) -> list[Text]:
        paint, cloud = self.paint, self.manifold.cloud
        if not len(cloud):
            return [Text("")]
        if self.manifold.on_map:
            return [self._of_map()]
        muted, arrow = paint.fore("muted"), paint.fore("primary", bold=True)
        plus, minus = cloud.projection.directions(0)
        middle = f"PC1 {cloud.projection.explained[0]:.0%}"
        room = (self.size.width - len(middle) - 10) // 2
        left, right = _fitting(minus, room), _fitting(plus, room)
        line = Text().append(" ← ", arrow).append(left, muted)
        line.append(" " * max(2, (self.size.width - len(middle)) // 2 - line.cell_len))
        line.append(middle, paint.fore("primary"))
        line.append(" " * max(2, self.size.width - line.cell_len - len(right) - 3))
        return [line.append(right, muted).append(" → ", arrow)]

    def _of_map(self) -> Text:
        classifier = self.manifold.learned.classifier
        assert classifier is not None
        if classifier.artifacts.manifest.map == "umap":
            said = "UMAP: what lies close together is alike; directions mean nothing"
        else:
            said = "the first two principal components of the discovery"
        return Text(said.center(self.size.width).rstrip(), self.paint.fore("muted"))


class Legend(ManifoldText):
    """How many points each zone has, what the marks mean; two lines."""

    def lines(self) -> list[Text]:
        rows, width = max(1, self.size.height), self.size.width
        lines = [Text(" ")]
        for item in self._items():
            if lines[-1].cell_len + item.cell_len > width and len(lines) < rows:
                lines.append(Text(" "))
            lines[-1].append_text(item).append("   ")
        for line in lines:
            line.rstrip()
            line.truncate(max(1, width), overflow="ellipsis")
        return lines

    def _items(self) -> Iterator[Text]:
        paint, manifold, muted = self.paint, self.manifold, self.paint.fore("muted")
        total = len(manifold.cloud)
        if not total:
            return
        if manifold.on_map and manifold.grouping.shown:
            yield from learned_lines.legend_items(manifold, paint)
        elif manifold.grouping.drawn and not manifold.on_map:
            yield from self._clusters(manifold.grouping.labels(manifold.cloud))
        else:
            for zone, count in manifold.cloud.zone_counts():
                name = "unknown (no threshold met)" if zone == UNKNOWN else zone_label(zone)
                item = Text().append(f"{ZONE_GLYPHS[zone]} ", paint.zone_mark(zone)).append(f"{name} ", muted)
                yield item.append(f"{count:,} {count / total:.0%}", paint.fore("foreground"))
            if manifold.on_map:
                yield from learned_lines.legend_items(manifold, paint)
            elif manifold.grouping.found:
                last = cluster_name(len(manifold.grouping.found) - 1)
                letters = Text("A" if last == "A" else f"A–{last}", paint.fore("foreground", bold=True, underline=True))
                yield letters.append(" clusters", muted)
        if manifold.here() is not None:
            yield Text().append(f"{HERE} ", paint.fore("accent", bold=True)).append("you are here", muted)
        if manifold.values() is not None:
            yield Text(f"shaded by {self.session.overlay.value}", muted)
        elif self.session.overlay is Overlay.INFLUENCE:
            yield Text("influence is a value of tokens, not of traces", muted)

    def _clusters(self, labels: Labels) -> Iterator[Text]:
        """Each cluster with the zone that most of its points have, and how many there are."""
        paint, manifold, muted = self.paint, self.manifold, self.paint.fore("muted")
        grouping, zones = manifold.grouping, manifold.cloud.zones
        for label in [*range(len(grouping.found or ())), NOISE]:
            inside = labels == label
            count = int(inside.sum())
            if not count:
                continue
            item = Text().append(
                f"{cluster_name(label)} ", paint.zone_mark(grouping.colour(label)) + Style(bold=label >= 0)
            )
            most = ZONE_NAMES[int(np.bincount(zones[inside]).argmax())]
            name = "in no cluster" if label == NOISE else f"mostly {zone_label(most)}"
            item.append(f"{name} ", muted)
            yield item.append(f"{count:,} {count / len(labels):.0%}", paint.fore("foreground"))


def _fitting(directions: str, room: int) -> str:
    """As many of the directions, strongest first, as there is room for; an ellipsis for the rest."""
    if len(directions) <= room:
        return directions
    parts = directions.split(", ")
    for count in range(len(parts) - 1, 0, -1):
        kept = ", ".join(parts[:count]) + ", …"
        if len(kept) <= room:
            return kept
    return parts[0][: max(0, room - 1)] + "…"
