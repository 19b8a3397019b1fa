"""The plugin pushes fingerprints to a real sidecar; one that dies, hangs or returns does not touch the engine."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from geomcli.fingerprint import pack, unpack
from tests.engine.harness import TWO_LAYERS, Server, chat_body, free_port, served
from tests.sidecar.running import Sidecar, sidecar

ASK = {"return_attention_tokens": True}
THINKING = "<think>Well.</think>Yes"


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[Server]:
    url = f"tcp://127.0.0.1:{port}"
    arguments = ("--attention-sidecar-url", url, "--", *TWO_LAYERS, "--enable-metrics", "--reasoning-parser", "qwen3")
    with served(tmp_path_factory.mktemp("engine"), *arguments) as running:
        yield running


def started(folder: Path, port: int) -> Any:
    folder.mkdir(exist_ok=True)
    return sidecar(folder, "--zmq-bind", f"tcp://127.0.0.1:{port}", "--recluster-interval", "3600")


def counts(server: Server) -> dict[str, int]:
    found: dict[str, int] = server.get("/v1/attention/capabilities")["sidecar"]
    return found


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def asked(server: Server, tokens: int = 6, **fields: Any) -> dict[str, Any]:
    return server.chat("Tell a story.", max_tokens=tokens, ignore_eos=True, **ASK, **fields)


def connected(server: Server, running: Sidecar) -> None:
    """Once fingerprints arrive."""

    def arrived() -> bool:
        asked(server, 1)
        return bool(running.get("/stats")["counters"]["received"])

    wait_for(arrived)


def stored(running: Sidecar, request: str) -> list[dict[str, Any]]:
    running.post("/storage/flush")
    return running.rows(f"SELECT * FROM fingerprints WHERE request_id = '{request}' ORDER BY decode_step")


def test_what_a_request_is_told_is_stored(server: Server, port: int, tmp_path: Path) -> None:
    with started(tmp_path, port) as running:
        connected(server, running)
        for fields in ({}, {"attention_fingerprint_mode": True}, {"attention_sketch_mode": True, "stream": False}):
            answer = asked(server, **fields)
            found = answer["attention_tokens"]
            wait_for(lambda: len(stored(running, answer["id"])) == len(found))  # noqa: B023
            for row, entry in zip(stored(running, answer["id"]), found, strict=True):
                assert row["decode_step"] == entry["decode_step"]
                assert row["model"] == answer["model"]
                assert (row["zone"], row["phase"]) == (entry["zone"], entry["think_phase"])
                assert (row["sink_mass"], row["drift"]) == (entry["sink_mass"], entry["drift"])
                if "fingerprint" in entry:
                    np.testing.assert_array_equal(unpack(row["fingerprint"]), unpack(pack(entry["fingerprint"])))
                assert abs(row["created"] - time.time() * 1000) < 120_000
        silent = server.chat("Not asked.", max_tokens=3)
        time.sleep(0.5)
        assert stored(running, silent["id"]) == []
        # Both choices of a request, each under its own name.
        both = asked(server, 3, n=2, temperature=1)
        assert len(both["attention_tokens"]) == 6
        before = running.get("/stats")["counters"]["received"]
        wait_for(lambda: running.get("/stats")["counters"]["received"] >= before)


def test_a_phase_is_the_one_that_was_told(server: Server, port: int, tmp_path: Path) -> None:
    with started(tmp_path, port) as running:
        connected(server, running)
        answer = asked(server, 4)
        wait_for(lambda: len(stored(running, answer["id"])) == 4)
        assert [row["phase"] for row in stored(running, answer["id"])] == [
            entry["think_phase"] for entry in answer["attention_tokens"]
        ]


def test_a_sidecar_that_dies_and_returns(server: Server, port: int, tmp_path: Path) -> None:
    with started(tmp_path / "first", port) as first:
        connected(server, first)
        before = counts(server)
        tokens = 0
        with httpx.stream(
            "POST", server.url + "/v1/chat/completions",
            json=chat_body("Tell a long story.", max_tokens=120, ignore_eos=True, stream=True, **ASK), timeout=120,
        ) as stream:  # fmt: skip
            for line in stream.iter_lines():
                # A client that reads late is given several tokens in one line.
                if line.startswith("data: {"):
                    tokens += len(json.loads(line[6:]).get("attention_tokens", ()))
                if tokens >= 20 and first.process.poll() is None:
                    first.end(signal.SIGKILL)
        assert tokens == 120
    answers = 0
    while answers < 3 or counts(server)["dropped"] == before["dropped"]:
        assert len(asked(server)["attention_tokens"]) == 6
        answers += 1
        assert answers < 100
    after = counts(server)
    assert after["sent"] + after["dropped"] == before["sent"] + before["dropped"] + 120 + 6 * answers
    with started(tmp_path / "second", port) as second:
        connected(server, second)
        answer = asked(server)
        wait_for(lambda: len(stored(second, answer["id"])) == 6)
    metrics = httpx.get(server.url + "/metrics").text
    assert f"geom_push_dropped_total {counts(server)['dropped']}.0" in metrics


def test_a_sidecar_that_hangs_is_not_waited_for(server: Server, port: int, tmp_path: Path) -> None:
    with started(tmp_path, port) as running:
        connected(server, running)
        os.kill(running.process.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            assert len(asked(server, 40)["attention_tokens"]) == 40
            hung = time.monotonic() - began
        finally:
            os.kill(running.process.pid, signal.SIGCONT)
        began = time.monotonic()
        answer = asked(server, 40)
        assert hung < 10 * (time.monotonic() - began) + 5
        wait_for(lambda: len(stored(running, answer["id"])) == 40)
