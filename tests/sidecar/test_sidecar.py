"""The sidecar from end to end: real sockets, a real process, a real store."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zmq
from sklearn.metrics import adjusted_rand_score

from geomcli.discovery import artifacts
from geomcli.discovery.pipeline import Parameters, discover
from geomcli.sidecar.counters import Counters
from geomcli.sidecar.memory import resident
from geomcli.sidecar.messages import Message, encode
from geomcli.sidecar.receiver import Receiver
from tests.conftest import GEOM
from tests.discovery.made_points import planted, points
from tests.sidecar.running import HEALTHY, SECONDS, messages, send, sender, sidecar

QUIET = ("--recluster-interval", "3600")


def test_messages_are_stored_grouped_and_classified(tmp_path: Path) -> None:
    fingerprints, labels = planted(200)
    with sidecar(tmp_path, *QUIET) as running:
        assert running.get("/centroids")["clusters"] == []
        assert running.post("/predict", {"vector": fingerprints[0].tolist()})["cluster"] is None
        send(running.zmq_url, messages(fingerprints))
        running.received(len(fingerprints))
        assert running.post("/storage/flush") == {"stored": len(fingerprints), "waiting": 0}
        rows = running.rows("SELECT * FROM fingerprints ORDER BY id")
        assert [row["fingerprint"] for row in rows] == [m.fingerprint for m in messages(fingerprints)]
        (session,) = running.rows("SELECT * FROM sessions WHERE request_id = 'r3'")
        assert (session["fingerprints"], session["max_drift"]) == (10, 0.1)
        grouped = running.post("/recluster")
        assert (grouped["clusters"], grouped["n"]) == (5, len(fingerprints))
        found = running.get("/centroids")
        assert [c["cluster"] for c in found["clusters"]] == list(range(5))
        assert found["unit"] == "standard deviations"
        assert all(c["traits"] for c in found["clusters"])
        given = [running.post("/predict", {"vector": f.tolist()})["cluster"] for f in fingerprints[:200]]
        numbers = [-1 if cluster is None else cluster for cluster in given]
        assert adjusted_rand_score(labels[:200], numbers) >= 0.9
        hint = running.post("/predict", {"vector": found["clusters"][0]["centroid"]})["hint"]
        assert set(hint) == {"zone", "temperature", "top_p"}
        assert "geom_sidecar_received_total 1100.0" in running.get("/metrics")
        assert running.end() == 0


def test_online(tmp_path: Path) -> None:
    fingerprints, labels = planted(300)
    with sidecar(tmp_path, "--online", "--recluster-interval", "0.5") as running:
        send(running.zmq_url, messages(fingerprints))
        running.received(len(fingerprints))
        assert running.post("/recluster")["clusters"] == 5
        assert running.get("/centroids")["unit"] == "radians"
        assert running.get("/stats")["online_seen"] == len(fingerprints)
        given = [running.post("/predict", {"vector": f.tolist()})["cluster"] for f in fingerprints[:300]]
        assert adjusted_rand_score(labels[:300], [-1 if c is None else c for c in given]) >= 0.85


def test_hostile_frames_are_counted_and_dropped(tmp_path: Path) -> None:
    good = messages(planted(10, noise=0)[0])
    plain = msgspec.msgpack.decode(encode(good[0]))
    bad = [
        b"", b"\xc1", b"not msgpack", msgspec.msgpack.encode([1, 2, 3]), msgspec.msgpack.encode({"v": 1}),
        *(msgspec.msgpack.encode({**plain, **change}) for change in (
            {"v": 2}, {"model": ""}, {"model": "x" * 600}, {"request_id": 7}, {"decode_step": 0},
            {"decode_step": 2**63},
            {"decode_step": 1.5}, {"ts_ms": -1}, {"fingerprint": b"\0" * 79}, {"fingerprint": "text"},
            {"fingerprint": np.full(20, np.nan, "<f4").tobytes()}, {"fingerprint": np.full(20, 1e9, "<f4").tobytes()},
            {"sink_mass": float("inf")}, {"drift": float("nan")}, {"zone": "z" * 65},
            {"moe": {"3": {"experts": "all"}}},
            {"moe": {"3": {"experts": [1], "weights": [msgspec.msgpack.Ext(5, b"evil")]}}},
        )),
        b"\x81" * 5000,
        b"\xdc\xff\xff" * 1000,
    ]  # fmt: skip
    long = [msgspec.msgpack.encode({**plain, "pad": "x" * size}) for size in (17 << 10, 900 << 10)]
    with sidecar(tmp_path, *QUIET) as running:
        with sender(running.zmq_url) as out:
            for frame in [*bad, *long]:
                out.send(frame)
            out.send_multipart([encode(good[1]), encode(good[2])])
            for m in good:
                out.send(encode(m))
        stats = running.received(len(good))
        counters = stats["counters"]
        assert (counters["malformed"], counters["oversized"]) == (len(bad) + 1, len(long))
        assert "2 frames in one message" in stats["last_malformed"][-1]
        # One too long for ZMQ itself costs its sender the connection, and nobody else anything.
        with sender(running.zmq_url) as out:
            out.set(zmq.LINGER, 0)
            out.send(b"\x90" * (2 << 20))
            time.sleep(0.5)
        send(running.zmq_url, messages(planted(10, noise=0)[0], start=1000))
        running.received(2 * len(good))
        assert running.get("/health") == HEALTHY
        assert running.post("/storage/flush")["stored"] == 2 * len(good)


def test_frames_without_an_end_cost_their_sender_the_connection(tmp_path: Path) -> None:
    """ZMQ keeps every frame of a message until the last one is there."""
    taken: list[Message] = []
    counters = Counters()
    receiver = Receiver("tcp://127.0.0.1:*", counters, taken.extend, most_memory=128 << 20)
    some = messages(planted(10, noise=0)[0])
    before = resident()
    try:
        with sender(receiver.url) as good, sender(receiver.url) as evil:
            evil.set(zmq.LINGER, 0)
            deadline, most = time.monotonic() + SECONDS, 0
            while not counters.oversized and time.monotonic() < deadline:
                with contextlib.suppress(zmq.Again):
                    evil.send(b"x" * (1 << 19), zmq.SNDMORE | zmq.NOBLOCK)
                most = max(most, resident() - before)
                if len(taken) < len(some):
                    good.send(encode(some[len(taken)]))
            assert counters.oversized == 1
            assert most < 600 << 20
            assert "without an end" in receiver.reasons[-1]
            assert "may be lost" in receiver.notices[-1]
            assert receiver.alive
            sent = len(taken)
            for m in some:  # the honest sender connects again by itself
                good.send(encode(m))
            while len(taken) < sent + len(some) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert len(taken) >= sent + len(some)
    finally:
        assert receiver.close()


def test_the_same_message_again_is_no_second_row(tmp_path: Path) -> None:
    some = messages(planted(60, noise=0)[0])
    with sidecar(tmp_path, *QUIET) as running:
        send(running.zmq_url, [*some, *some])
        running.received(2 * len(some))
        assert running.post("/storage/flush")["stored"] == len(some)
        assert running.get("/stats")["counters"]["duplicates"] == len(some)
        assert sum(row["fingerprints"] for row in running.rows("SELECT * FROM sessions")) == len(some)
        assert running.post("/recluster")["n"] == len(some)
        assert running.get("/stats")["models"][0]["seen"] == len(some)


def test_what_has_arrived_is_stored_at_the_end(tmp_path: Path) -> None:
    fingerprints, _ = planted(600)
    with sidecar(tmp_path, *QUIET) as running:
        send(running.zmq_url, messages(fingerprints))
        running.received(len(fingerprints))
        running.end()
        assert running.rows("SELECT count(*) AS n FROM fingerprints") == [{"n": len(fingerprints)}]


def test_kill_9_loses_at_most_the_last_second(tmp_path: Path) -> None:
    fingerprints, _ = planted(400)
    some = messages(fingerprints)
    with sidecar(tmp_path, *QUIET) as running:
        sent: list[float] = []
        with sender(running.zmq_url) as out:
            for m in some:
                out.send(encode(m))
                sent.append(time.time())
                time.sleep(0.001)
        killed = time.time()
        running.end(signal.SIGKILL)
        (stored,) = running.rows("SELECT count(*) AS n, max(id) AS last FROM fingerprints")
        assert stored["n"] == stored["last"]  # none missing between them
        assert stored["n"] >= sum(at <= killed - 1 for at in sent)
        assert running.rows("PRAGMA integrity_check") == [{"integrity_check": "ok"}]
    with sidecar(tmp_path, *QUIET) as again:
        send(again.zmq_url, some)
        again.received(len(some))
        assert again.post("/storage/flush")["stored"] == len(some) - stored["n"]


def test_classify_reloads_and_keeps_what_is_sound(tmp_path: Path) -> None:
    root = tmp_path / "discovery"
    learnt = discover(points(100)[0], Parameters(umap=False))
    with sidecar(tmp_path, *QUIET, "--discovery-dir", str(root), "--auto-reload-interval", "0.3") as running:
        vector = {"vector": planted(1)[0][0].tolist()}
        status, said = running.ask("POST", "/classify", vector)
        assert status == 409
        assert "geom discover" in said["detail"]
        assert running.get("/discovery/status")["loaded"] is False
        run = artifacts.write(learnt, root)
        deadline = time.monotonic() + 20
        while not running.get("/discovery/status")["loaded"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        answer = running.post("/classify", vector)
        assert answer["run_id"] == run.name
        assert len(answer["results"]) == 1
        many = running.post("/classify", {"vectors": planted(20)[0].tolist()})["results"]
        assert {one["cluster"] for one in many} >= {0, 1, 2, 3, 4}
        second = artifacts.write(learnt, root)
        assert running.post("/discovery/reload")["status"]["run_id"] == second.name
        third = artifacts.write(learnt, root)
        (third / "model.npz").write_bytes(b"broken")
        said = running.post("/discovery/reload")
        assert said["status"]["run_id"] in (second.name, third.name)
        assert running.post("/classify", vector)["results"]
        for body in ({}, {**vector, "vectors": [vector["vector"]]}, {"vector": [0.5] * 19}, {"vector": [2.0] * 20}):
            assert running.ask("POST", "/classify", body)[0] == 422


def test_artifacts_that_are_replaced_where_they_lie_are_taken(tmp_path: Path) -> None:
    """As a volume of a container is: one folder, whose files become those of another run."""
    root = tmp_path / "discovery"
    first, second = (
        artifacts.save(discover(points(100, seed=seed)[0], Parameters(umap=False)), tmp_path / "runs")
        for seed in (0, 1)
    )
    shutil.copytree(first, root)
    with sidecar(tmp_path, *QUIET, "--discovery-dir", str(root)) as running:
        assert running.get("/discovery/status")["run_id"] == first.name
        assert not running.post("/discovery/reload")["reloaded"]
        shutil.copytree(second, root, dirs_exist_ok=True)
        assert running.post("/discovery/reload") == {
            "reloaded": True, "status": {**running.get("/discovery/status"), "run_id": second.name},
        }  # fmt: skip


def test_what_is_wrong_with_a_body_is_said_once_and_briefly(tmp_path: Path) -> None:
    with sidecar(tmp_path, *QUIET) as running:
        status, said = running.ask("POST", "/classify", {"vector": [0.5] * 19})
        assert status == 422
        assert [problem["loc"] for problem in said["detail"]] == [["body", "vector"]]
        status, said = running.ask("POST", "/classify", {"vectors": [[2.0] * 20] * 1000})
        assert status == 422
        assert len(said["detail"]) == 11
        assert said["detail"][0]["loc"] == ["body", "vectors", 0, 0]
        assert said["detail"][-1]["msg"] == "19990 more of the kind"
        status, said = running.ask("POST", "/classify", {"vector": [0.5] * 20})
        assert status == 409
        assert said["detail"].count("Try:") == 1


def test_the_key_and_where_it_is_needed(tmp_path: Path) -> None:
    done = subprocess.run([GEOM, "sidecar", "--host", "0.0.0.0"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--api-key" in done.stderr
    with sidecar(tmp_path, *QUIET, GEOM_SIDECAR_KEY="secret") as running:
        assert running.ask("GET", "/health")[0] == 200
        assert running.ask("GET", "/stats")[0] == 401
        assert running.ask("GET", "/stats", Authorization="Bearer wrong")[0] == 401
        assert running.ask("GET", "/stats", Authorization="Bearer secret")[0] == 200


@pytest.mark.parametrize("flag", [("--zmq-bind", "tcp://256.1.1.1:1"), ("--port", "1"), ("--zmq-bind", "nonsense")])
def test_what_cannot_be_bound_is_named(tmp_path: Path, flag: tuple[str, str]) -> None:
    words = {"--zmq-bind": "tcp://127.0.0.1:*", "--port": "0", flag[0]: flag[1]}
    host = ("--host", "203.0.113.1", "--api-key", "k") if flag[0] == "--port" else ()
    flags = [word for pair in words.items() for word in pair]
    done = subprocess.run(
        [GEOM, "sidecar", "--db", str(tmp_path / "s.db"), *flags, *host], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2, done.stderr
    assert flag[0] in done.stderr
    assert "Traceback" not in done.stderr


def test_it_ends_soon_while_messages_go_on_coming(tmp_path: Path) -> None:
    some = [encode(m) for m in messages(planted(400)[0])]
    with sidecar(tmp_path, *QUIET) as running:
        stop = threading.Event()

        def flood() -> None:
            with sender(running.zmq_url) as out:
                out.set(zmq.LINGER, 0)
                out.set(zmq.SNDTIMEO, 100)
                for frame in itertools.cycle(some):
                    if stop.is_set():
                        return
                    with contextlib.suppress(zmq.Again):
                        out.send(frame)

        thread = threading.Thread(target=flood)
        thread.start()
        try:
            running.received(100)
            began = time.monotonic()
            assert running.end() == 0
            assert time.monotonic() - began < 15
        finally:
            stop.set()
            thread.join(SECONDS)
            assert not thread.is_alive()
        assert "Traceback" not in (tmp_path / "sidecar.log").read_text()


def test_half_a_request_does_not_keep_it_alive(tmp_path: Path) -> None:
    with sidecar(tmp_path, *QUIET) as running:
        host, port = running.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as half:
            half.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 500\r\n\r\n{")
            time.sleep(0.5)
            began = time.monotonic()
            assert running.end() == 0
            assert time.monotonic() - began < 20


def test_what_another_writer_keeps_it_from_storing_is_said(tmp_path: Path) -> None:
    some = messages(planted(20, noise=0)[0])
    with sidecar(tmp_path, *QUIET) as running:
        with sqlite3.connect(running.db, isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            send(running.zmq_url, some)
            running.received(len(some))
            assert running.end() == 1
            other.execute("ROLLBACK")
        assert f"{len(some)} messages were not stored" in (tmp_path / "sidecar.log").read_text().replace("\n", " ")
    with sidecar(tmp_path, *QUIET) as again:
        with sqlite3.connect(again.db, isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            send(again.zmq_url, some)
            again.received(len(some))
            time.sleep(1)
            other.execute("ROLLBACK")
        assert again.end() == 0
        assert again.rows("SELECT count(*) AS n FROM fingerprints") == [{"n": len(some)}]


def test_a_grouping_process_that_was_killed_is_replaced(tmp_path: Path) -> None:
    with sidecar(tmp_path, *QUIET) as running:
        send(running.zmq_url, messages(planted(60)[0]))
        running.received(330)
        assert running.post("/recluster")["clusters"] == 5
        (worker,) = running.children("spawn_main")
        os.kill(worker, signal.SIGKILL)
        time.sleep(0.5)
        status, said = running.ask("POST", "/recluster")
        assert status in (200, 503), said
        assert running.post("/recluster")["clusters"] == 5
        assert running.ask("GET", "/health") == (200, HEALTHY)


@pytest.mark.parametrize("body", [b'{"vector": [NaN]}', b'{"vector": [1e400]}', b'{"vector": ["\\ud800"]}'])
def test_bodies_that_no_answer_could_repeat(tmp_path: Path, body: bytes) -> None:
    with sidecar(tmp_path, *QUIET) as running:
        for path in ("/predict", "/classify"):
            request = urllib.request.Request(running.url + path, body, {"Content-Type": "application/json"})
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=SECONDS)
            assert refused.value.code in (400, 409, 422)
            assert b"Traceback" not in refused.value.read()
