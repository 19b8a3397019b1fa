"""The discovery beside the store: read in a thread, its map on the plane, and what the panes say of tokens by it."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from geomcli import config
from geomcli.clusters import NOISE
from geomcli.discovery import artifacts
from geomcli.discovery.calibration import Calibration, Curve
from geomcli.discovery.classification import Classifier
from geomcli.discovery.reading import read
from geomcli.schema import Record
from geomcli.store import Store
from geomcli.tui import learned as module
from geomcli.tui.app import GeomApp
from geomcli.tui.learned import Learned
from geomcli.tui.mapping import ELSEWHERE
from geomcli.tui.session import Changed, Place
from geomcli.tui.turn import Turn
from geomcli.tui.widgets.learned_words import ALERT
from tests.library.made_traces import LONG
from tests.tui.conftest import NARROW, WIDE, MakeApp
from tests.tui.made import said
from tests.tui.made_discovery import FAR, MIDDLE, NEAR, discovery, learned
from tests.tui.made_stores import made, noisy
from tests.tui.test_manifold import at_store, pane, picture, text_of
from tests.tui.waiting import until

NAMES = ("syntax floor, local attention", "semantic bridge, retrieval heavy", "long range, context aware")


async def loaded(app: GeomApp) -> Learned:
    await until(lambda: app.learned.looked)
    app.flush()
    return app.learned


async def placed(app: GeomApp) -> None:
    """Every point has its place on the map."""
    manifold = pane(app).manifold
    await until(
        lambda: manifold.on_map and len(manifold.mapping.xy) == len(manifold.cloud) and not manifold.mapping.busy
    )


def test_the_pane_has_names_for_every_case(settings: config.Settings) -> None:
    found = Classifier(artifacts.load(learned(settings.db_path)))
    names = [cluster.name.replace("_", " ") for cluster in found.artifacts.manifest.clusters]
    assert len(names) == 4
    assert names[:3] == list(NAMES)


async def test_the_key_goes_to_the_learned_map_and_back(
    make_app: MakeApp, settings: config.Settings, demo: list[list[Record]]
) -> None:
    learned(settings.db_path)
    app = make_app(demo, mode="manifold")
    async with app.run_test(size=WIDE) as pilot:
        await loaded(app)
        await until(lambda: "Learned map: t" in text_of(app, "#scopes"))
        components = pane(app).manifold.xy()
        await pilot.press("t")
        await placed(app)
        await pilot.pause()
        assert "PCA of 650 fingerprints, 4 clusters" in text_of(app, "#scopes")
        drawn = picture(app)
        for letter, name in zip("ABC", NAMES, strict=False):
            assert any(letter in line for line in drawn)
            assert any(name.split(",")[0] in line for line in drawn)
            assert f"{name} " in text_of(app, "#legend")
        assert "noise 8%" in text_of(app, "#legend")
        assert "first two principal components of the discovery" in text_of(app, "#axis-across")
        # Braille dots of the map lie behind the glyphs of the tokens.
        assert any("⠀" < cell <= "⣿" for line in drawn for cell in line)
        assert any("▂" in line for line in drawn)
        assert not np.allclose(pane(app).manifold.xy(), components)
        await pilot.press("v")
        letters = "".join(picture(app))
        assert letters.count("A") > 10
        assert "off manifold" in text_of(app, "#legend")
        await pilot.press("t")
        assert np.array_equal(pane(app).manifold.xy(), components)
        assert "two axes hold" in text_of(app, "#scopes")


@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_the_token_s_line_says_what_the_classifier_says(
    make_app: MakeApp, settings: config.Settings, demo: list[list[Record]], size: tuple[int, int]
) -> None:
    classifier = Classifier(artifacts.load(learned(settings.db_path)))
    app = make_app(demo, mode="manifold")
    async with app.run_test(size=size) as pilot:
        await loaded(app)
        await pilot.press("t")
        await placed(app)
        reading = read(app.session.turns[0].trace, classifier)
        assert reading is not None
        kinds = {}
        for token, found, off in zip(reading.tokens, reading.classified, reading.off, strict=True):
            kinds[found.on_manifold] = (token, found, off)
        assert set(kinds) == {True, False}
        for on, (token, found, off) in kinds.items():
            pane(app).scatter.select(pane(app).manifold.cloud.index(Place(0, token)))
            await pilot.pause()
            shown = text_of(app, "#point")
            assert ("on manifold" if on else "off manifold") in shown
            assert f"{found.distance:.2f}" in shown
            assert f"{found.radius:.2f}" in shown
            assert f"{found.confidence:.2f}".removeprefix("0") in shown
            assert ("noise" in shown) != on
            assert off is None or f"{off.angle:.2f}".removeprefix("0") in shown
            if on:
                assert NAMES["AB".index("A" if found.cluster == 0 else "B")] in shown
            document = json.loads(pane(app).manifold.as_json() or "")
            assert document["token"]["index"] == token
            assert document["classification"]["cluster"] == found.cluster
            assert document["classification"]["on_manifold"] is on
            assert document["classification"]["confidence"] == pytest.approx(found.confidence)
            assert document["classification"]["discovery"] == classifier.artifacts.manifest.run_id
            assert document["learned_map"] == pytest.approx(pane(app).manifold.xy()[pane(app).manifold.chosen].tolist())
            assert (document.get("off_manifold") or {}).get("angle") == (
                None if off is None else pytest.approx(off.angle)
            )


async def test_tokens_are_classified_as_they_arrive(make_app: MakeApp, settings: config.Settings) -> None:
    classifier = Classifier(artifacts.load(learned(settings.db_path)))
    app = make_app(mode="manifold")
    shapes = [NEAR] * 20 + [MIDDLE] * 15 + [np.full(16, 1 / 16)] * 5 + [FAR] * 30
    trace = made("live", [0.97 * shape + 0.03 * NEAR for shape in shapes], model="smollm2")
    async with app.run_test(size=WIDE) as pilot:
        await loaded(app)
        await until(lambda: pane(app)._begun)
        pane(app).choose_scope("session")
        turn = app.session.begin()
        app.session.feed(turn, trace[:12])
        app.flush()
        await pilot.press("t")
        for end in range(12, len(trace) + 1, 9):
            app.session.feed(turn, trace[end : end + 9])
            app.flush()
            await until(lambda: len(pane(app).manifold.mapping.xy) == len(pane(app).manifold.cloud))
            tally = app.learned.tally(turn)
            reading = read(turn.trace, classifier)
            assert tally is not None
            assert reading is not None
            assert tally.n == len(reading.tokens) == len(pane(app).manifold.cloud)
            assert [label for label, _ in tally.shares()] == [share.cluster for share in reading.shares]
            assert 1 - tally.off / tally.n == pytest.approx(reading.on_manifold)
            assert tally.confidence == pytest.approx(reading.confidence)
            assert pane(app).manifold.mapping.labels.tolist() == [c.cluster for c in reading.classified]
            newest = app.learned.off(turn, turn.tokens[reading.tokens[-1]])
            expected = reading.off[-1]
            assert (newest is None) == (expected is None)
            assert newest is None or expected is None or newest.angle == pytest.approx(expected.angle, abs=1e-9)
        assert np.isfinite(pane(app).manifold.mapping.xy).all()
        assert set(pane(app).manifold.mapping.labels.tolist()) == {0, 1, 2, NOISE}
        # Other turns are other points.
        app.session.show([made("one", [NEAR], model="smollm2")], title="one")
        app.flush()
        await until(lambda: len(pane(app).manifold.mapping.xy) == 1)


async def test_a_move_that_was_not_heard_of_yet_is_not_lost_when_the_discovery_comes(
    make_app: MakeApp, settings: config.Settings, demo: list[list[Record]]
) -> None:
    learned(settings.db_path)
    app = make_app(demo, mode="manifold")
    async with app.run_test(size=WIDE) as pilot:
        await loaded(app)
        await until(lambda: len(pane(app).manifold.cloud) == 80)
        pane(app).scatter.select(3)
        app.session.touch(Changed.VIEW)
        app.flush()
        await pilot.pause()
        assert pane(app).manifold.chosen == 3


async def test_a_long_trace_is_placed_beside_the_app_and_stays_responsive(
    make_app: MakeApp, settings: config.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned(settings.db_path)
    app = make_app(mode="manifold")
    trace = made("long", noisy(NEAR, 2, tokens=4100), model="smollm2")
    async with app.run_test(size=WIDE) as pilot:
        await loaded(app)
        await until(lambda: pane(app)._begun)
        app.session.show([trace[: 2 + 2 * 4000]], title="long")
        pane(app).choose_scope("session")
        await pilot.pause()
        threads: list[int] = []
        before = module.Learned.assign

        def seen(self: Learned, fingerprints: Any) -> Any:
            threads.append(threading.get_ident())
            return before(self, fingerprints)

        with monkeypatch.context() as patched:
            patched.setattr(module.Learned, "assign", seen)
            await pilot.press("t")
            await placed(app)
        assert threads
        assert threading.get_ident() not in threads
        rest = iter(range(2 + 2 * 4000, len(trace), 10))
        times = []
        for _ in range(7):
            began = time.process_time()
            start = next(rest)
            app.session.feed(app.session.turns[0], trace[start : start + 10])
            app.flush()
            await pilot.pause()
            times.append(time.process_time() - began)
        # As in tests/tui/test_manifold.py: several times what a quiet machine needs.
        assert sorted(times)[3] < 0.08
        assert len(pane(app).manifold.mapping.xy) == len(pane(app).manifold.cloud)


async def test_it_is_read_in_a_thread_after_the_first_paint_and_keys_work_meanwhile(
    make_app: MakeApp, settings: config.Settings, demo: list[list[Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    learned(settings.db_path)
    may, threads, painted = threading.Event(), [], []
    before = module._read

    def slow(root: Path) -> module.Found:
        painted.append(app.screen._compositor.render_strips() != [])
        threads.append(threading.get_ident())
        may.wait(30)
        return before(root)

    monkeypatch.setattr(module, "_read", slow)
    app = make_app(demo, mode="manifold")
    async with app.run_test(size=WIDE) as pilot:
        await until(lambda: bool(threads))
        assert threads[0] != threading.get_ident()
        assert painted == [True]
        assert "eading the discovery …" in text_of(app, "#scopes")
        await pilot.press("t")
        assert "still being read" in said(app)
        await pilot.press("3", "1")
        assert app.current_mode == "chat"
        assert "off " not in text_of(app, "#hud")
        may.set()
        await loaded(app)
        assert len(threads) == 1
        assert "off ." in text_of(app, "#hud")


def _damaged(root: Path) -> None:
    (root / "latest" / "model.npz").write_bytes(b"no archive")


def _without_map(root: Path) -> None:
    (root / "latest" / "embeddings.parquet").write_bytes(b"no table")


def _empty(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()


@pytest.mark.parametrize(
    ("spoil", "words", "classified"),
    [
        (_damaged, "are damaged", False),
        (_empty, "holds no discovery artifacts", False),
        (_without_map, "is damaged", True),
    ],
)
@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_what_cannot_be_used_is_one_line(
    make_app: MakeApp, settings: config.Settings, demo: list[list[Record]], spoil: Any, words: str,
    classified: bool, size: tuple[int, int],
) -> None:  # fmt: skip
    learned(settings.db_path)
    spoil(config.discovery_path(settings.db_path))
    app = make_app(demo, mode="manifold")
    async with app.run_test(size=size) as pilot:
        state = await loaded(app)
        await until(lambda: "Discovery not used" in text_of(app, "#scopes"))
        lines = text_of(app, "#scopes").splitlines()
        assert len(lines) == 3
        await until(lambda: app.screen.query_one("#scopes").size.height == 3)
        assert len(lines[2]) <= size[0]
        await pilot.press("t")
        assert words in said(app)
        assert "geom discover" in said(app)
        assert not pane(app).manifold.on_map
        assert (state.classifier is not None) == classified
        assert ("on manifold" in text_of(app, "#point")) == classified
        await pilot.press("3", "1")
    assert app._exception is None


async def test_of_another_model_and_without_any(
    make_app: MakeApp, settings: config.Settings, demo: list[list[Record]]
) -> None:
    app = make_app(demo, mode="manifold")
    async with app.run_test(size=WIDE) as pilot:
        await loaded(app)
        await until(lambda: "No discovery artifacts" in text_of(app, "#scopes"))
        assert "not used" not in text_of(app, "#scopes")
        await pilot.press("t")
        assert "There are no discovery artifacts" in said(app)
        # Somebody runs `geom discover` meanwhile: another pane, and back.
        learned(settings.db_path, "llama")
        await pilot.press("3", "4")
        await until(lambda: "The discovery is of llama, this is of smollm2" in text_of(app, "#scopes"))
        assert "manifold  " not in text_of(app, "#point")
        assert "off ." not in text_of(app, "#hud")
        await pilot.press("t")
        assert "geom discover --model smollm2" in said(app)
        learned(settings.db_path)
        await pilot.press("3", "4")
        await until(lambda: "Learned map: t" in text_of(app, "#scopes"))
        await pilot.press("t")
        await placed(app)
        shutil.rmtree(config.discovery_path(settings.db_path))
        await pilot.press("3", "4")
        await until(lambda: not pane(app).manifold.on_map and "No discovery artifacts" in text_of(app, "#scopes"))


async def test_without_pyarrow_the_map_says_what_to_install_and_tokens_are_classified(
    make_app: MakeApp, settings: config.Settings, demo: list[list[Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    learned(settings.db_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    app = make_app(demo, mode="manifold")
    async with app.run_test(size=WIDE) as pilot:
        await loaded(app)
        await until(lambda: "needs pyarrow" in text_of(app, "#scopes"))
        await pilot.press("t")
        assert "pip install 'geomcli[discover]'" in said(app)
        assert "confidence" in text_of(app, "#point")
        assert not pane(app).manifold.on_map


async def test_traces_of_the_store_are_on_the_map_and_those_of_other_models_are_not(
    make_app: MakeApp, settings: config.Settings
) -> None:
    learned(settings.db_path)
    with Store(settings.db_path) as store:
        store.add(made("near", [NEAR] * 4, model="smollm2"))
        store.add(made("middle", [MIDDLE] * 4, model="smollm2"))
        store.add(made("other", [LONG] * 4, model="llama"))
    app = make_app(mode="manifold")
    async with app.run_test(size=WIDE) as pilot:
        await loaded(app)
        await at_store(app)
        await pilot.press("t")
        await placed(app)
        manifold = pane(app).manifold
        labels = dict(zip(manifold.cloud.keys, manifold.mapping.labels.tolist(), strict=True))
        assert labels == {"near": 0, "middle": 1, "other": ELSEWHERE}
        assert "2 of 2 traces on the manifold" in text_of(app, "#scopes")
        assert np.isnan(manifold.xy()[manifold.cloud.index("other")]).all()
        pane(app).scatter.select(manifold.cloud.index("near"))
        await pilot.pause()
        assert "distance of its mean" in text_of(app, "#point")
        assert json.loads(manifold.as_json() or "")["classification"]["letter"] == "A"
        pane(app).scatter.select(manifold.cloud.index("other"))
        await pilot.pause()
        assert "classification" not in json.loads(manifold.as_json() or "")
        await pilot.press("left", "right", "plus", "minus", "0", "b", "g", "v", "s")
    assert app._exception is None


@pytest.mark.parametrize("size", [WIDE, NARROW, (120, 24)])
async def test_the_router_shows_the_clusters_of_the_trace(
    make_app: MakeApp, settings: config.Settings, demo: list[list[Record]], size: tuple[int, int]
) -> None:
    classifier = Classifier(artifacts.load(learned(settings.db_path)))
    app = make_app(demo, mode="router")
    async with app.run_test(size=size):
        await loaded(app)
        reading = read(app.session.turns[-1].trace, classifier)
        assert reading is not None
        evidence = app.screen.query_one("#router-evidence")
        # Drawn once more when the pane has its size, after which nothing of it is cut off.
        names = [share.name.replace("_", " ") for share in reading.shares[:2] if size is not NARROW]
        await until(lambda: all(name in text_of(app, "#router-evidence") for name in ["MANIFOLD", *names]))
        await until(lambda: len(text_of(app, "#router-evidence").splitlines()) <= evidence.content_size.height)
        shown = text_of(app, "#router-evidence")
        assert f"{reading.on_manifold:.0%} on it" in shown
        assert f"confidence {reading.confidence:.2f}".replace("0.", ".") in shown
        assert ALERT == "off-manifold alert"
        assert ALERT in shown
        for share in reading.shares[:2]:
            assert f"{share.share:.0%}" in shown
        assert "threshold" in shown
        assert "drift" in shown


async def test_without_a_discovery_the_router_is_as_it_was(make_app: MakeApp, demo: list[list[Record]]) -> None:
    app = make_app(demo, mode="router")
    async with app.run_test(size=WIDE):
        await loaded(app)
        assert "MANIFOLD" not in text_of(app, "#router-evidence")
        assert not app.screen.has_class("-learned")


async def test_confidences_that_rest_on_nothing_are_called_so(
    make_app: MakeApp, settings: config.Settings, demo: list[list[Record]]
) -> None:
    nothing = Curve(np.zeros(0), np.zeros(0))
    made_one = replace(discovery(), calibration=Calibration(nothing, nothing, 0, 0.0, None))
    artifacts.write(made_one, config.discovery_path(settings.db_path))
    app = make_app(demo, mode="manifold")
    async with app.run_test(size=WIDE) as pilot:
        await loaded(app)
        await until(lambda: "uncalibrated" in text_of(app, "#point"))
        assert json.loads(pane(app).manifold.as_json() or "")["classification"]["confidence"] is None
        await pilot.press("3")
        await until(lambda: "on it  uncalibrated" in text_of(app, "#router-evidence"))


async def test_the_line_at_the_top_and_the_lens_say_how_far_off_a_window_is(
    make_app: MakeApp, settings: config.Settings
) -> None:
    learned(settings.db_path)
    shapes = [NEAR] * 12 + [np.full(16, 1 / 16)] * 12
    app = make_app([made("off", shapes, model="smollm2")])
    async with app.run_test(size=WIDE) as pilot:
        await loaded(app)
        await pilot.press("t", "end")
        seen = {}
        for token in (3, 11, 23):
            app.session.go(Place(0, token))
            await pilot.pause()
            off = app.learned.off(app.session.turns[0], app.session.turns[0].tokens[token])
            seen[token] = off
            for where in (text_of(app, "#hud"), text_of(app, "#lens-body")):
                if off is None:
                    assert "off " not in where
                else:
                    assert f"{off.angle:.2f}".removeprefix("0") in where
                    assert ("✓" if off.inside else "!") in where
        assert seen[3] is None
        assert seen[11] is not None
        assert seen[23] is not None
        assert seen[11].inside
        assert not seen[23].inside


def test_a_root_that_may_not_be_read_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_self: Path, **_more: Any) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", refused)
    assert "Permission denied" in module._read(tmp_path / "discovery").problem
    assert "Permission denied" in cast(str, module.stamp_of(tmp_path / "discovery"))


def test_a_turn_s_tokens_are_counted_once_and_late_numbers_too(settings: config.Settings) -> None:
    learned(settings.db_path)
    state = Learned(config.discovery_path(settings.db_path))
    _, found = module._look(state.root, "")
    assert found is not None
    state.classifier, state.plane, state.problem, state.plane_problem = found
    trace = made("x", [NEAR] * 100, model="smollm2")
    turn = Turn(trace[:3])  # the first token, without its numbers
    tally = state.tally(turn)
    assert tally is not None
    assert tally.n == 0
    turn.take(trace[3:])
    assert state.tally(turn) is tally
    assert tally.n == 100
    state.tally(turn)
    assert tally.n == 100
    assert state.tally(Turn(made("y", [NEAR], model="llama"))) is None
