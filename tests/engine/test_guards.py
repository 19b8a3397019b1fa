"""Keys, CORS, the limit of concurrent captures and metrics, and that nothing stays behind when clients leave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import openapi
from tests.conftest import GEOM
from tests.engine.harness import TWO_LAYERS, Server, chat_body, second_plugin, served, sse
from tests.engine.storm import ASK, COLLECTING, PATHS, bodies, memory, storm

KEY = "only-those-who-know"
RUNNING = 8
STORM = 200
# MB that a process may keep after every storm: no more than 5 kB of each request.
GROWTH = {"main": 1.0, "scheduler": 1.0, "worker": 1.0}
LIMIT = 10  # more than run at once: some wait in the engine's queue
CAPABILITIES = "/v1/attention/capabilities"
ORIGINS = ("https://a.example", "http://localhost:8443")
WITH_KEY = {"X-Attention-Key": KEY}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("guarded")
    environment = second_plugin(folder / "plugin", COLLECTING)
    arguments = (
        "--attention-api-key", KEY, "--attention-max-concurrent-capture", str(LIMIT),
        "--attention-cors-origins", ",".join(ORIGINS),
        "--", *TWO_LAYERS, "--enable-metrics", "--context-length", "2048", "--max-running-requests", str(RUNNING),
    )  # fmt: skip
    with served(folder, *arguments, environment=environment) as running:
        yield running


def document(server: Server) -> dict[str, Any]:
    return dict(httpx.get(server.url + CAPABILITIES, headers=WITH_KEY).raise_for_status().json())


def metrics(server: Server) -> dict[str, float]:
    text = httpx.get(server.url + "/metrics").raise_for_status().text
    found = re.findall(r"^(geom_\S+) (\S+)$", text, re.MULTILINE)
    assert found
    return {name: float(value) for name, value in found}


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def active(server: Server) -> int:
    return int(document(server)["counters"]["active_captures"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_asking_needs_the_key_and_nothing_else_does(server: Server, path: str, stream: bool) -> None:
    assert server.post(path, bodies(stream=stream)[path]).status_code == 200
    before = document(server)["counters"]["refused"].get("key", 0)
    asking = bodies(stream=stream, **ASK)[path]
    wrong = [{}, {"X-Attention-Key": "wrong"}, {"X-Attention-Key": ""}, {"Authorization": f"Basic {KEY}"}]
    for headers in wrong:
        response = server.post(path, asking, headers=headers)
        assert response.status_code == 401, response.text
        said = response.json()
        message = said.get("message") or said["error"]["message"]
        assert "X-Attention-Key" in message
        assert "--attention-api-key" in message
        assert KEY not in response.text
        assert response.headers["www-authenticate"] == "Bearer"
    assert document(server)["counters"]["refused"]["key"] == before + len(wrong)
    for headers in (WITH_KEY, {"Authorization": f"Bearer {KEY}"}, {"authorization": f"bearer {KEY}"}):
        response = server.post(path, asking, headers=headers)
        assert response.status_code == 200, response.text
        assert "attention_tokens" in response.text


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("field", ["attention_firewall", "attention_auto_sampling", "return_moe_routing"])
def test_every_field_that_asks_needs_the_key(server: Server, path: str, field: str) -> None:
    assert server.post(path, bodies(**{field: True})[path]).status_code == 401
    assert server.post(path, bodies(**{field: False})[path]).status_code == 200


@pytest.mark.parametrize("path", PATHS)
def test_an_odd_spelling_of_the_field_needs_the_key_too(server: Server, path: str) -> None:
    text = json.dumps(bodies(**ASK)[path]).replace("return_attention_tokens", "\\u0072eturn_attention_tokens")
    headers = {"content-type": "application/json"}
    response = httpx.post(server.url + path, content=text, headers=headers, timeout=60)
    assert 400 <= response.status_code < 500
    assert "X-Attention-Key" in response.text
    assert "attention_tokens" not in response.text.replace("return_attention_tokens", "")


def test_capabilities_need_the_key_and_say_what_holds(server: Server) -> None:
    refused = httpx.get(server.url + CAPABILITIES)
    assert refused.status_code == 401
    assert "X-Attention-Key" in refused.text
    assert "supported" not in refused.text
    found = document(server)
    assert found["supported"] is True
    assert found["hooks"]["missing"] == []
    assert found["guardrails"] == {
        "max_concurrent_capture": LIMIT,
        "requires_api_key": True,
        "attention_key_header": "X-Attention-Key",
        "disabled_in_production": False,
        "cors_origins": list(ORIGINS),
        "system_prompt_masked": False,
        "fingerprint_only": False,
        "max_entries": 4096,
        "max_fingerprint_steps": 256,
        "stride": 1,
        "window": 0,
    }
    assert found["counters"].keys() == {
        "requests", "entries", "errors", "refused", "active_captures", "waiting_requests",
    }  # fmt: skip


def test_answers_are_those_of_the_openapi_page(server: Server, tmp_path: Path) -> None:
    page = httpx.get(server.url + "/openapi.json").json()
    operation = page["paths"][CAPABILITIES]["get"]
    assert set(operation["responses"]) == {"200", "401"}
    assert len(operation["security"]) == 2, "either of two headers"
    openapi.conforms(server.url, tmp_path, f"X-Attention-Key: {KEY}", least=openapi.EXAMPLES)
    openapi.conforms(server.url, tmp_path, least=5)


@pytest.mark.parametrize("origin", [*ORIGINS, "https://evil.example", "https://a.example:444", "null"])
def test_pages_of_named_origins_may_read_capabilities(server: Server, origin: str) -> None:
    allowed = origin in ORIGINS
    asked = {"Origin": origin, "Access-Control-Request-Method": "GET"}
    asked["Access-Control-Request-Headers"] = "x-attention-key"
    preflight = httpx.options(server.url + CAPABILITIES, headers=asked)
    assert preflight.status_code == (204 if allowed else 403)
    assert preflight.headers["vary"] == "Origin"
    read = httpx.get(server.url + CAPABILITIES, headers={"Origin": origin, **WITH_KEY})
    assert read.status_code == 200
    assert read.headers["vary"] == "Origin"
    refused = httpx.get(server.url + CAPABILITIES, headers={"Origin": origin})
    for response in (preflight, read, refused):
        assert response.headers.get_list("access-control-allow-origin") == ([origin] if allowed else [])
        assert "access-control-allow-credentials" not in response.headers
    if allowed:
        assert "X-Attention-Key" in preflight.headers["access-control-allow-headers"]
        assert "GET" in preflight.headers["access-control-allow-methods"]
    # Everywhere else SGLang's own rule stays.
    elsewhere = httpx.get(server.url + "/v1/models", headers={"Origin": "https://evil.example"})
    assert elsewhere.headers["access-control-allow-origin"] in ("*", "https://evil.example")


class Held:
    """Requests that go on until they are let go."""

    def __init__(self, server: Server) -> None:
        self._client = httpx.Client(base_url=server.url, headers=WITH_KEY, timeout=60, limits=httpx.Limits())
        self._stack = contextlib.ExitStack()
        self.open: list[contextlib.ExitStack] = []

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        for stack in self.open:
            stack.close()
        self._client.close()

    def add(self, rid: str) -> None:
        sampling = {"max_new_tokens": 1500, "ignore_eos": True}
        body = {"text": "Tell a story.", "rid": rid, "stream": True, "sampling_params": sampling, **ASK}
        stack = contextlib.ExitStack()
        response = stack.enter_context(self._client.stream("POST", "/generate", json=body))
        self.open.append(stack)
        assert response.status_code == 200

    def leave(self) -> None:
        self.open.pop().close()


def test_one_capture_more_than_the_limit_is_answered_429(server: Server) -> None:
    wait_for(lambda: active(server) == 0)
    with Held(server) as held:
        for n in range(LIMIT):
            held.add(f"held-{n}")
        assert active(server) == LIMIT
        assert metrics(server)["geom_active_captures"] == LIMIT
        for stream in (False, True):
            for path, body in bodies(stream=stream, **ASK).items():
                response = server.post(path, body, headers=WITH_KEY)
                assert response.status_code == 429, response.text
                assert f"--attention-max-concurrent-capture {LIMIT}" in response.text
                assert response.headers["retry-after"] == "1"
        with httpx.stream("POST", server.url + "/generate", json=bodies(stream=True)["/generate"]) as response:
            assert response.status_code == 200, "who does not ask is not refused"
        run = subprocess.run(
            [GEOM, "run", "Hi", "--no-save", "--base-url", server.url],
            capture_output=True, text=True, env={**os.environ, "GEOM_ATTENTION_KEY": KEY},
        )  # fmt: skip
        assert run.returncode == 3, run.stderr
        assert "is busy" in run.stderr
        # A client that leaves, and one whose request is aborted, running or waiting, make room.
        held.leave()
        wait_for(lambda: active(server) == LIMIT - 1)
        for rid in (f"held-{RUNNING}", "held-0"):
            assert server.post("/abort_request", {"rid": rid}).status_code == 200
        wait_for(lambda: active(server) == LIMIT - 3)
        answer = server.post(PATHS[0], chat_body("Hi", n=3, **ASK), headers=WITH_KEY)
        assert answer.status_code == 200, answer.text
        assert {entry["index"] for entry in answer.json()["attention_tokens"]} == {0, 1, 2}
        wait_for(lambda: active(server) == LIMIT - 3)
        assert server.post(PATHS[0], chat_body("Hi", n=4, **ASK), headers=WITH_KEY).status_code == 429
    wait_for(lambda: active(server) == 0)


def test_choices_and_prompts_of_a_batch_count_each(server: Server) -> None:
    batch = {"text": ["Hi"] * 4, "sampling_params": {"n": 3, "max_new_tokens": 1}, **ASK}
    refused = server.post("/generate", batch, headers=WITH_KEY)
    assert refused.status_code == 400
    assert "12 captures in one request" in refused.text
    assert f"--attention-max-concurrent-capture {LIMIT}" in refused.text
    prompts = {"model": "smollm2", "prompt": ["Hi"] * (LIMIT + 1), "max_tokens": 1, **ASK}
    assert server.post("/v1/completions", prompts, headers=WITH_KEY).status_code == 400
    prompts["prompt"] = ["Hi"] * LIMIT
    assert server.post("/v1/completions", prompts, headers=WITH_KEY).status_code == 200
    # SGLang takes these for numbers too.
    for spelled in (str(LIMIT + 1), LIMIT + 1.0):
        refused = server.post(PATHS[0], chat_body("Hi", n=spelled, **ASK), headers=WITH_KEY)
        assert refused.status_code == 400, refused.text
        assert f"{LIMIT + 1} captures in one request" in refused.text
    wait_for(lambda: active(server) == 0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_a_request_that_fails_holds_nothing(server: Server, path: str, stream: bool) -> None:
    """Behind the guards: a prompt that is too long, sampling that cannot be."""
    long = bodies(stream=stream, **ASK)[path]
    long |= {name: "x " * 5000 for name in ("prompt", "text") if name in long}
    if "messages" in long:
        long["messages"] = [{"role": "user", "content": "x " * 5000}]
    odd = bodies(stream=stream, temperature=-1, **ASK)[path]
    if "sampling_params" in odd:
        odd["sampling_params"]["temperature"] = -1
    for body in (long, odd):
        response = server.post(path, body, headers=WITH_KEY)
        assert response.status_code == 400 or '"error"' in response.text, response.text
    assert server.post(path, bodies(top_k_attention=65, **ASK)[path], headers=WITH_KEY).status_code == 400
    wait_for(lambda: active(server) == 0, seconds=10)


@pytest.mark.parametrize("stream", [False, True])
def test_a_beam_search_is_refused_and_counted(server: Server, stream: bool) -> None:
    before = document(server)["counters"]["refused"].get("invalid", 0)
    body = {"text": "Hi", "sampling_params": {"beam_width": 2, "max_new_tokens": 2}, "stream": stream, **ASK}
    refused = server.post("/generate", body, headers=WITH_KEY)
    assert refused.status_code == 400
    assert "beam search cannot be captured, leave beam_width out" in refused.text
    assert document(server)["counters"]["refused"]["invalid"] == before + 1
    assert active(server) == 0


def test_a_field_that_is_wrong_has_its_status_in_a_stream_too(server: Server) -> None:
    body = bodies(stream=True, top_k_attention=65, **ASK)["/generate"]
    response = server.post("/generate", body, headers=WITH_KEY)
    assert response.status_code == 400
    assert "top_k_attention must be 1..64" in response.json()["error"]["message"]


def test_metrics_count_what_was_served(server: Server) -> None:
    before = metrics(server)
    whole = server.post(PATHS[0], chat_body("Hi", max_tokens=20, ignore_eos=True, **ASK), headers=WITH_KEY).json()
    small = {"attention_fingerprint_mode": True, **ASK}
    server.post("/generate", bodies(3, **small)["/generate"], headers=WITH_KEY)
    assert server.post("/generate", bodies(top_k_attention=0, **ASK)["/generate"], headers=WITH_KEY).status_code == 400
    assert server.post("/generate", bodies(**ASK)["/generate"]).status_code == 401
    assert httpx.get(server.url + CAPABILITIES).status_code == 401
    after = metrics(server)
    moved = {name: value - before[name] for name, value in after.items() if value != before[name]}
    zones = Counter(f'geom_zone_entries_total{{zone="{e["zone"]}"}}' for e in whole["attention_tokens"])
    assert moved['geom_requests_total{mode="raw"}'] == 1
    assert moved['geom_requests_total{mode="fingerprint"}'] == 1
    assert moved["geom_entries_total"] == 23
    assert sum(value for name, value in moved.items() if name.startswith("geom_zone_entries")) == 23
    assert all(moved[name] >= count for name, count in zones.items())
    assert moved["geom_engine_bytes_total"] == sum(e["bytes"] for e in whole["attention_tokens"]) + 3 * 80
    assert moved["geom_json_bytes_total"] > len(json.dumps(whole["attention_tokens"])) * 0.8
    assert moved['geom_refused_requests_total{reason="invalid"}'] == 1
    assert moved['geom_refused_requests_total{reason="key"}'] == 2
    assert after["geom_entry_errors_total"] == after["geom_faults_total"] == 0
    assert after["geom_max_concurrent_captures"] == LIMIT
    assert after["geom_active_captures"] == 0


def test_geom_run_sends_the_key(server: Server, home: dict[str, str]) -> None:
    command = [GEOM, "run", "Hi", "--max-tokens", "3", "--base-url", server.url, "--no-save"]
    refused = subprocess.run(command, capture_output=True, text=True, env=home)
    assert refused.returncode == 2
    assert "GEOM_ATTENTION_KEY=" in refused.stderr
    for more, environment in (((), {"GEOM_ATTENTION_KEY": KEY}), (("--attention-key", KEY), {})):
        done = subprocess.run([*command, *more], capture_output=True, text=True, env={**home, **environment})
        assert done.returncode == 0, done.stderr
        assert KEY not in done.stdout + done.stderr


def running_requests(server: Server) -> int:
    loads = server.get("/v1/loads")["loads"]
    return sum(load["num_running_reqs"] + load["num_waiting_reqs"] for load in loads)


def weather(server: Server) -> dict[str, float]:
    """A storm and the calm after it; the memory that is left in use."""
    ends = asyncio.run(storm(server.url, STORM, at_once=LIMIT + 2, headers=WITH_KEY))
    refused = ends.pop("429")
    assert refused > 0
    assert sum(ends.values()) == STORM
    assert set(ends) <= {"finish", "left", "leave", "abort", "aborted", "vanished"}, ends
    assert min(ends["finish"], ends["left"], ends["aborted"], ends["vanished"]) > 5, ends
    wait_for(lambda: running_requests(server) == 0)
    wait_for(lambda: active(server) == 0)
    wait_for(lambda: document(server)["counters"]["waiting_requests"] == 0)
    found = metrics(server)
    assert found["geom_active_captures"] == found["geom_waiting_requests"] == 0
    return memory(server)


def test_nothing_stays_behind_when_clients_leave_and_abort(server: Server) -> None:
    wait_for(lambda: active(server) == 0)
    first, second, third = (weather(server) for _ in range(3))
    # What leaks grows with every storm; the first one fills pools and caches, and one more may need another arena.
    for name, most in GROWTH.items():
        grown = [second[name] - first[name], third[name] - second[name]]
        print(f"{name}: {first[name]:.1f} MB, then {grown[0]:+.1f}, {grown[1]:+.1f}")
        assert min(grown) <= most, (name, first, second, third)
    # All places are there again, and whoever comes gets every entry.
    body = chat_body("Count.", max_tokens=30, ignore_eos=True, stream=True, **ASK)

    def ask(_: int) -> list[int]:
        response = server.post(PATHS[0], body, headers=WITH_KEY)
        assert response.status_code == 200, response.text
        return [e["decode_step"] for event in sse(response) for e in event.get("attention_tokens", [])]

    with ThreadPoolExecutor(LIMIT) as pool:
        assert list(pool.map(ask, range(LIMIT))) == [list(range(1, 31))] * LIMIT
    time.sleep(1.5)  # SGLang checks its memory when idle, and ends when that does not add up
    assert running_requests(server) == 0
    log = server.log.read_text()
    assert "leak" not in log
    assert "Traceback" not in log


def test_the_key_is_nowhere_to_be_read(server: Server) -> None:
    """Last: after all the others have left their traces in the log."""
    for path in ("/server_info", "/get_server_info", "/metrics", "/model_info", "/openapi.json"):
        assert KEY not in httpx.get(server.url + path, timeout=30).text
    assert KEY not in httpx.get(server.url + CAPABILITIES, headers=WITH_KEY).text
    assert KEY not in server.log.read_text()
    assert KEY not in server.output.read_text()
    assert "geom:" not in server.log.read_text()
    dry = subprocess.run(
        [GEOM, "serve", "--attention-api-key", KEY, "--dry-run", "--", f"--api-key={KEY}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert KEY not in dry.stdout + dry.stderr
    assert "--attention-api-key" in dry.stdout
