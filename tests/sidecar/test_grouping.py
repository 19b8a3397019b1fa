"""Clusters of live traffic: a model by itself, as it is when asked, and no process of it left behind."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from geomcli.discovery import artifacts
from geomcli.discovery.pipeline import Parameters, discover
from geomcli.discovery.traits import traits_of
from geomcli.errors import GeomError
from geomcli.fingerprint import pack, unpack
from geomcli.sidecar.amounts import Amounts
from geomcli.sidecar.grouping import Grouping
from geomcli.sidecar.online import OnlineClusters
from geomcli.sidecar.traffic import Traffic
from tests.discovery.made_points import planted, points
from tests.sidecar.running import SECONDS, Sidecar, messages, send, sidecar

QUIET = ("--recluster-interval", "3600")


def as_sent(fingerprints: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return np.array([unpack(pack(row)) for row in fingerprints])


@pytest.mark.parametrize("flags", [QUIET, ("--online",)])
def test_each_model_is_grouped_by_itself(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """Two models of the same shape, one with five clusters and one with three of them: neither has the other's."""
    five, _ = planted(100, noise=0)
    labels = planted(100, noise=0, seed=1)[1]
    three = planted(100, noise=0, seed=1)[0][labels < 3]
    with sidecar(tmp_path, *flags) as running:
        mixed = messages(five, model="five") + messages(three, model="three")
        mixed.sort(key=lambda m: m.ts_ms)
        last = mixed[-1].model
        send(running.zmq_url, mixed)
        running.received(len(mixed))
        for model, clusters, n in (("five", 5, 500), ("three", 3, 300)):
            found = running.post(f"/recluster?model={model}")
            assert (found["model"], found["clusters"]) == (model, clusters)
            assert found["n"] == pytest.approx(n, rel=0.02)  # online they fade
            assert [c["cluster"] for c in running.get(f"/centroids?model={model}")["clusters"]] == list(range(clusters))
        newest = running.get("/centroids")
        assert newest["model"] == last == "five"
        alone = five[planted(100, noise=0)[1] == 4][0].tolist()  # of the cluster that only one of them has
        assert running.post("/predict", {"vector": alone, "model": "five"})["on_manifold"]
        said = running.post("/predict", {"vector": alone, "model": "three"})
        assert (said["model"], said["on_manifold"]) == ("three", False)
        assert running.post("/predict", {"vector": alone})["model"] == "five"
        for method, path, body in (
            ("GET", "/centroids?model=none", None),
            ("POST", "/recluster?model=none", None),
            ("POST", "/predict", {"vector": alone, "model": "none"}),
        ):
            status, said = running.ask(method, path, body)
            assert status == 404
            assert "none" in said["detail"]
            assert "five, three" in said["detail"]
        assert f'geom_sidecar_clusters{{model="three"}} {3.0}' in running.get("/metrics")


def test_models_of_the_fewest_fingerprints_make_room_and_are_counted(tmp_path: Path) -> None:
    """A server with a long name for a model is not pushed out by eight that nobody serves."""
    some, more = planted(10, noise=0)[0], planted(20, noise=0)[0]
    with sidecar(tmp_path, *QUIET) as running:
        send(running.zmq_url, messages(more, model="served"))
        running.received(len(more))
        for number in range(9):
            send(running.zmq_url, messages(some, model=f"m{number}"))
            running.received(len(more) + len(some) * (number + 1))
        stats = running.get("/stats")
        kept = [*(f"m{number}" for number in range(8, 1, -1)), "served"]
        assert [one["model"] for one in stats["models"]] == kept
        assert (stats["most_models"], stats["models_dropped"], stats["last_models_dropped"]) == (8, 2, ["m0", "m1"])
        assert stats["models"][-1]["seen"] == len(more)
        # All of them are in the store.
        assert running.post("/storage/flush")["stored"] == len(more) + 9 * len(some)


def test_what_comes_now_outgrows_what_came_long_ago() -> None:
    """Two servers that take turns keep their place against seven that are gone."""
    now = [0.0]
    amounts = Amounts(lambda: now[0])
    kept = {f"old{n}" for n in range(8)}
    for name in kept:
        amounts.add(name, 2000)
    dropped = []
    for _ in range(200):
        for name in ("a", "b"):
            now[0] += 5
            amounts.add(name, 40)
            if name not in kept:
                dropped.append(amounts.least(kept))
                kept = (kept - {dropped[-1]}) | {name}
    assert {"a", "b"} <= kept
    assert dropped[-1].startswith("old")
    assert len(dropped) < 100
    for n in range(5000):
        amounts.add(f"junk{n}", 1)
    assert len(amounts._of) <= 1000
    assert amounts["a"] > 100


def test_a_batch_larger_than_the_buffer_keeps_the_newest() -> None:
    some = messages(planted(60)[0])
    traffic = Traffic("m", 100)
    traffic.put(some[:130])
    traffic.put(some[130:310])
    np.testing.assert_array_equal(traffic.newest(), as_sent(planted(60)[0][210:310]))


def test_many_who_ask_for_a_grouping_get_one_and_hold_nobody_up(tmp_path: Path) -> None:
    fingerprints = planted(900)[0]
    with sidecar(tmp_path, *QUIET) as running:
        send(running.zmq_url, messages(fingerprints))
        running.received(len(fingerprints))
        with ThreadPoolExecutor(60) as askers:
            asked = [askers.submit(running.post, "/recluster") for _ in range(60)]
            time.sleep(0.5)
            began = time.monotonic()
            assert running.post("/storage/flush")["stored"] == len(fingerprints)
            assert time.monotonic() - began < 5
            assert {one.result()["n"] for one in asked} == {len(fingerprints)}
        metrics = running.get("/metrics")
        (groupings,) = (line for line in metrics.splitlines() if line.startswith("geom_sidecar_groupings_total"))
        assert float(groupings.split()[1]) <= 3


def test_whoever_waits_for_a_grouping_is_told_that_the_sidecar_ends(tmp_path: Path) -> None:
    with sidecar(tmp_path, *QUIET) as running:
        answers: list[tuple[int, Any]] = []
        with grouping(running, answers):
            assert running.end(signal.SIGTERM) == 0
        assert [status for status, _ in answers] == [503]
        assert "ends" in answers[0][1]["detail"]
        assert "Traceback" not in (tmp_path / "sidecar.log").read_text()


def test_artifacts_of_another_model_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "discovery"
    artifacts.write(discover(points(100)[0], Parameters(umap=False)), root)
    vector = planted(1)[0][0].tolist()
    with sidecar(tmp_path, *QUIET, "--discovery-dir", str(root)) as running:
        assert running.post("/classify", {"vector": vector})["model"] == "made"
        assert running.post("/classify", {"vectors": [vector], "model": "made"})["model"] == "made"
        status, said = running.ask("POST", "/classify", {"vector": vector, "model": "another"})
        assert status == 409
        assert "made" in said["detail"]
        assert "another" in said["detail"]


def test_online_answers_are_those_of_the_micro_clusters_when_asked(tmp_path: Path) -> None:
    fingerprints = as_sent(planted(300)[0])
    ours = OnlineClusters()
    with sidecar(tmp_path, "--online", *QUIET) as running:
        for start in (0, 800):
            some = fingerprints[start : start + 800]
            ours.add(some)
            send(running.zmq_url, messages(some, start=start))
            running.received(min(start + 800, len(fingerprints)))
            found = running.get("/centroids")
            assert found["n"] == round(float(ours.snapshot().weights.sum()))
            expected, angles = ours.snapshot().nearest(fingerprints[:200])
            said = [running.post("/predict", {"vector": row.tolist()}) for row in fingerprints[:200]]
            given = np.array([-1 if one["cluster"] is None else one["cluster"] for one in said])
            assert adjusted_rand_score(expected, given) == 1
            assert ((given == -1) == (expected == -1)).all()
            assert {one["radius"] for one in said} == {ours.threshold}
            assert np.allclose([one["distance"] for one in said], angles, atol=1e-6)
        assert running.get("/stats")["models"][0]["micro_clusters"] > 5


def test_online_clusters_are_described_as_their_members_are() -> None:
    fingerprints, _ = planted(2000, noise=0)
    ours = OnlineClusters(half_life=1e9)
    ours.add(fingerprints)
    snapshot = ours.snapshot()
    labels, _ = snapshot.nearest(fingerprints)
    assert set(labels) == {0, 1, 2, 3, 4}
    everything = np.stack([snapshot.mean - snapshot.deviation, snapshot.mean + snapshot.deviation])
    for k in range(5):
        mine = snapshot.labels == k
        mean = snapshot.sums[mine].sum(axis=0) / snapshot.weights[mine].sum()
        members = fingerprints[labels == k]
        assert np.allclose(mean, members.mean(axis=0), atol=0.01)
        expected, found = traits_of(members, fingerprints), traits_of(mean[None], everything)
        assert [trait.name for trait in found] == [trait.name for trait in expected]
        assert np.allclose([t.deviations for t in found], [t.deviations for t in expected], atol=0.05)


def test_an_online_cluster_keeps_its_number_when_another_outgrows_it() -> None:
    fingerprints, labels = planted(400, noise=0)
    ours = OnlineClusters()
    ours.add(fingerprints[labels == 0][:200])
    ours.add(fingerprints[labels == 1][:100])
    probes = np.stack([fingerprints[labels == k][-1] for k in range(3)])
    assert ours.labels(probes).tolist() == [0, 1, -1]
    ours.add(fingerprints[labels == 1][100:])
    ours.add(fingerprints[labels == 2][:399])
    assert ours.labels(probes).tolist() == [0, 1, 2]


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextlib.contextmanager
def grouping(running: Sidecar, answers: list[tuple[int, Any]] | None = None) -> Iterator[list[int]]:
    """The processes of a sidecar that is at work for two seconds on what it is asked to group."""
    fingerprints, _ = planted(1000)
    send(running.zmq_url, messages(fingerprints))
    running.received(len(fingerprints))
    assert running.post("/recluster")["clusters"] == 5

    def ask() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            found = running.ask("POST", "/recluster")
            if answers is not None:
                answers.append(found)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.5)
    processes = running.children()
    assert processes
    assert thread.is_alive()
    try:
        yield processes
    finally:
        thread.join(SECONDS)
        assert not thread.is_alive()
        for process in filter(is_running, processes):
            os.kill(process, signal.SIGKILL)


def ended(processes: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(is_running, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(is_running, processes))


def test_no_process_outlives_a_killed_sidecar(tmp_path: Path) -> None:
    with sidecar(tmp_path, *QUIET) as running:
        send(running.zmq_url, messages(planted(60)[0]))
        running.received(330)
        assert running.post("/recluster")["clusters"] == 5
        left = running.children()
        assert left
        running.end(signal.SIGKILL)
        assert ended(left, 15)


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_a_grouping_ends_with_its_sidecar(tmp_path: Path, sign: int) -> None:
    with sidecar(tmp_path, *QUIET) as running, grouping(running) as processes:
        assert running.end(sign) == (0 if sign == signal.SIGTERM else -sign)
        assert ended(processes, 15)
        assert "Traceback" not in (tmp_path / "sidecar.log").read_text()


def test_a_grouping_that_takes_too_long_is_an_error_and_the_next_one_is_not() -> None:
    some = messages(planted(1000)[0])
    grouping = Grouping(interval=3600, longest=0.2)
    try:
        grouping.put(some)
        with pytest.raises(GeomError, match=r"took longer than 0\.2 s"):
            grouping.recluster()
        grouping.longest = 60
        found = grouping.recluster()
        assert found is not None
        assert len(found.now.clusters) == 5
    finally:
        grouping.close()
