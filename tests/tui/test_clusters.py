"""Clusters on the manifold: found beside the app, named, drawn, and gone with their points."""

from __future__ import annotations

import json
import sys

import pytest

from geomcli import config
from geomcli.clusters import Clusters
from geomcli.tui.app import GeomApp
from tests.library.made_traces import LOCAL, LONG
from tests.tui.conftest import WIDE, MakeApp
from tests.tui.made_stores import filled, made, noisy
from tests.tui.test_manifold import at_store, pane, picture, text_of
from tests.tui.waiting import until


async def grouped(app: GeomApp, points: int) -> Clusters:
    """The clusters of as many points, once nothing more is looked for."""
    app.flush()
    grouping = pane(app).manifold.grouping
    await until(lambda: grouping.found is not None and len(grouping.found.labels) == points and not grouping.busy)
    assert grouping.found is not None
    return grouping.found


async def test_clusters_are_found_named_and_drawn(make_app: MakeApp, settings: config.Settings) -> None:
    filled(settings.db_path, 40)
    app = make_app(mode="manifold")
    async with app.run_test(size=WIDE) as pilot:
        await at_store(app)
        found = await grouped(app, 40)
        # Traces of four shapes, ten of each.
        assert found.sizes.tolist() == [10, 10, 10, 10]
        await until(lambda: "HDBSCAN: 4 clusters, 0% in none" in text_of(app, "#scopes"))
        await until(lambda: "No discovery artifacts" in text_of(app, "#scopes"))
        assert "A–D clusters" in text_of(app, "#legend")
        cloud = pane(app).manifold.cloud
        letters = {}
        for number, trace in enumerate(cloud.traces):
            pane(app).scatter.select(number)
            await pilot.pause()
            said = text_of(app, "#point")
            (letter,) = [name for name in "ABCD" if f"cluster {name}" in said]
            letters.setdefault(int(trace.trace_id[1:]) % 4, set()).add(letter)
            assert json.loads(pane(app).manifold.as_json() or "")["cluster"] == letter
        assert sorted("".join(names) for names in letters.values()) == ["A", "B", "C", "D"]
        zones = "".join(picture(app))
        await pilot.press("v")
        drawn = "".join(picture(app))
        assert drawn != zones
        # As many letters as there are cells with points, but for the cursor's mark and a label of another cluster.
        assert sum(drawn.count(letter) for letter in "ABCD") >= (pane(app).scatter.grid.counts > 0).sum() - 1
        assert "A mostly" in text_of(app, "#legend")
        assert "in no cluster" not in text_of(app, "#legend")
        await pilot.press("v")
        assert "".join(picture(app)) == zones


async def test_clusters_grow_with_the_session_and_go_with_it(make_app: MakeApp) -> None:
    app = make_app(mode="manifold")
    near, far = noisy(LOCAL, 1, tokens=40), noisy(LONG, 2, tokens=40)
    trace = made("long", [hist for pair in zip(near, far, strict=True) for hist in pair])
    async with app.run_test(size=WIDE):
        # A pane that is shown for the first time chooses its scope itself.
        await until(lambda: pane(app)._begun)
        app.session.show([trace[: 2 + 2 * 20]], title="long")
        pane(app).choose_scope("session")
        await grouped(app, 20)
        app.session.feed(app.session.turns[0], trace[2 + 2 * 20 : 2 + 2 * 21])
        app.flush()
        # One token more is given to a cluster without looking again.
        await until(lambda: len(pane(app).manifold.cloud) == 21)
        found = pane(app).manifold.grouping.found
        assert found is not None
        assert len(found.labels) == 20
        assert len(pane(app).manifold.grouping.labels(pane(app).manifold.cloud)) == len(pane(app).manifold.cloud)
        app.session.feed(app.session.turns[0], trace[2 + 2 * 21 :])
        app.flush()
        await until(lambda: len(pane(app).manifold.cloud) == 80)
        found = await grouped(app, 80)
        assert found.sizes.tolist() == [40, 40]
        assert len(set(found.labels[::2].tolist())) == len(set(found.labels[1::2].tolist())) == 1
        app.session.show([made("one", [LOCAL])], title="one")
        app.flush()
        await until(lambda: len(pane(app).manifold.cloud) == 1)
        await until(lambda: pane(app).manifold.cluster_labels() == [])


async def test_without_scikit_learn_the_manifold_says_so(
    make_app: MakeApp, settings: config.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    filled(settings.db_path)
    app = make_app(mode="manifold")
    async with app.run_test(size=WIDE) as pilot:
        await at_store(app)
        await until(lambda: "No scikit-learn, no clusters" in text_of(app, "#scopes"))
        await pilot.press("v")
        assert "geomcli[discover]" in " ".join(n.message for n in app._notifications)
