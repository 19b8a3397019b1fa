"""Two thousand random requests: each is answered or refused by name, and the engine's memory is whole afterwards."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from geomcli.server_patch.request_options import FIELDS
from tests.engine.harness import TWO_LAYERS, Server, served, sse

REQUESTS = 2000
AT_ONCE = 16
NAMES = FIELDS
DEEP: Any = []
for _ in range(900):
    DEEP = [DEEP]
ODD = (
    None, True, False, 0, 1, 2, -1, 5, 63, 64, 65, 4096, 2**31, 10**30, 0.5, -0.0, 1e300, "", "true", "1", "\x00",
    "ü" * 300, [], [0], [1], [0, 1], [1, 1, 0], [8], [99], [-1], [True], ["0"], [[0]], {}, {"a": 1},
    {"action": "log_only"}, DEEP,
)  # fmt: skip
SOUND: dict[str, tuple[Any, ...]] = {
    "top_k_attention": (1, 16, 64),
    "attention_mask_prefix": (0, 3, 1000),
    "attention_tokens_stride": (1, 2, 3),
    "attention_tokens_max": (0, 1, 2),
    "attention_tokens_window": (0, 1, 5),
    "attention_capture_layer_ids": ([0], [1], [0, 1]),
    "attention_capture_head_ids": ([0], [3, 8]),
}
LEAKS = ("memory leak", "Memory leak", "leak detected", "Traceback")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    arguments = (
        "--attention-capture-layers", "0,1", "--", *TWO_LAYERS, "--context-length", "512",
        "--max-running-requests", "8", "--max-total-tokens", "2048",
    )  # fmt: skip
    with served(tmp_path_factory.mktemp("fuzzed"), *arguments) as running:
        yield running


def request_of(rng: random.Random) -> tuple[str, dict[str, Any], bool]:
    """A path, a body and whether it streams. Half of the values fit their fields."""
    fields: dict[str, Any] = {"return_attention_tokens": True} if rng.random() < 0.8 else {}
    for name in rng.sample(NAMES, rng.choice((0, 1, 1, 2, 3, 5))):
        sound = SOUND.get(name, (True, False))
        fields[name] = rng.choice(sound) if rng.random() < 0.6 else rng.choice(ODD)
    stream, tokens = rng.random() < 0.4, rng.choice((1, 2, 3, 6))
    text = rng.choice(("Hi", "Count to three.", "The harbour log of the northern sea " * rng.choice((1, 4))))
    kind = rng.randrange(3)
    if kind == 0:
        sampling = {"max_new_tokens": tokens, "n": rng.choice((1, 1, 2))}
        return "/generate", {"text": text, "sampling_params": sampling, "stream": stream, **fields}, stream
    body = {"model": "smollm2", "max_tokens": tokens, "n": rng.choice((1, 1, 2)), "stream": stream, **fields}
    if kind == 1:
        return "/v1/completions", {**body, "prompt": text}, stream
    return "/v1/chat/completions", {**body, "messages": [{"role": "user", "content": text}]}, stream


def test_random_requests_are_answered_or_refused_by_name(server: Server) -> None:
    rng = random.Random(20)
    requests = [request_of(rng) for _ in range(REQUESTS)]
    limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=0)
    with httpx.Client(base_url=server.url, timeout=120, limits=limits) as client, ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda one: client.post(one[0], json=one[1]), requests))
    seen = Counter(answer.status_code for answer in answers)
    assert set(seen) <= {200, 400}, seen
    assert min(seen[200], seen[400]) > REQUESTS / 10
    for (_, body, stream), answer in zip(requests, answers, strict=True):
        if answer.status_code == 400:
            assert any(name in answer.text for name in NAMES if name in body), (body, answer.text)
        elif body.get("return_attention_tokens") is True:
            document = [] if stream else answer.json()
            events = sse(answer) if stream else document if isinstance(document, list) else [document]
            entries = [entry for event in events for entry in event.get("attention_tokens", [])]
            assert entries, body
            assert all("error" not in entry["flags"] for entry in entries), body
        else:
            assert "attention_tokens" not in answer.text


@pytest.mark.parametrize("depth", [100, 500, 900])
@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_a_value_that_is_nested_deeply_is_refused_by_name(server: Server, path: str, depth: int) -> None:
    body = '{"text": "Hi", "prompt": "Hi", "model": "smollm2", "top_k_attention": ' + "[" * depth + "]" * depth + "}"
    answer = httpx.post(server.url + path, content=body, headers={"content-type": "application/json"}, timeout=60)
    assert answer.status_code == 400
    assert "top_k_attention must be an integer" in answer.text


def test_nothing_is_left_behind(server: Server) -> None:
    document = server.get("/v1/attention/capabilities")
    assert document["counters"]["errors"] == 0
    assert document["counters"]["active_captures"] == 0
    (load,) = server.get("/v1/loads")["loads"]
    assert (load["num_running_reqs"], load["num_waiting_reqs"]) == (0, 0)
    # SGLang counts its memory when it is idle, says so in its log, and ends when something is missing.
    assert httpx.post(server.url + "/flush_cache", timeout=30).status_code == 200
    assert server.chat("Hi", return_attention_tokens=True)["attention_tokens"]
    log = Path(server.log).read_text(errors="replace")
    assert not [line for line in log.splitlines() if any(word in line for word in LEAKS)]
