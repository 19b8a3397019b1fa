"""Every name of every flag of docs/reference.md on a running server, by what it changes there.

The servers are started by all three commands, from command lines and from --config files.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from geomcli.detectors.calibration import About, Calibration, save
from geomcli.server_patch import reference
from tests.conftest import GEOM
from tests.engine.harness import TWO_LAYERS, Server, chat_body, end, launch, served, started_directly

ASK = {"return_attention_tokens": True}
CAPABILITIES = "/v1/attention/capabilities"
KEY = "a-key-of-attention"
WITH_KEY = {"X-Attention-Key": KEY}
ORIGIN = "https://a.example"
LEVEL = 2.5  # of the mean of -log p, in nats
SGLANG_SERVE = f"{GEOM.parent / 'sglang'} serve"
SIZES = (*TWO_LAYERS, "--context-length", "2048")
TOP_K, MOST, STRIDE, WINDOW, STEPS = 5, 6, 2, 12, 7
RETENTION = 0.5
LENGTHS = f"""
return-attention-tokens: true
attention-sketch-mode: true
attention-tokens-top-k: {TOP_K}
attention-tokens-max: {MOST}
attention-capture-stride: {STRIDE}
attention-tokens-window: {WINDOW}
attention-capture-layers: "0"
attention-fingerprint-max-steps: {STEPS}
context-length: 2048
"""
WATCHED_WINDOW, WATCHED_THRESHOLD = 6, 0.01
WEIGHT = 0.4
SINKS, CHUNK, CAPTURES, GUARDED_STRIDE = 8, 256, 2, 3
# A rotation by three positions at once, as models of images have it; there is no way back from it.
UNDONE = json.dumps(
    {
        "num_hidden_layers": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e5, "mrope_section": [8, 12, 12]},
    }
)


@contextlib.contextmanager
def lengths(folder: Path) -> Iterator[Server]:
    config = folder / "server.yaml"
    config.write_text(LENGTHS)
    arguments = ("--no-return-attention-tokens", "--", *TWO_LAYERS, "--config", str(config))
    with started_directly(folder / "e", *arguments) as server:
        yield server


@contextlib.contextmanager
def guarded(folder: Path) -> Iterator[Server]:
    arguments = (
        "--attention-fingerprint-mode", "--attention-api-key", KEY, "--attention-cors-origins", ORIGIN,
        "--attention-max-concurrent-capture", str(CAPTURES), "--attention-mask-system-prompt",
        "--attention-sink-tokens", str(SINKS), "--attention-chunk-size", str(CHUNK),
        "--attention-tokens-stride", str(GUARDED_STRIDE), "--", *SIZES,
    )  # fmt: skip
    with served(folder, *arguments) as server:
        yield server


@contextlib.contextmanager
def private(folder: Path) -> Iterator[Server]:
    with started_directly(folder / "e", "--attention-fingerprint-only", "--", *SIZES, program=SGLANG_SERVE) as server:
        yield server


@contextlib.contextmanager
def pushing(folder: Path) -> Iterator[Server]:
    about = About(model="smollm2", detector="logprob", threshold=LEVEL, false_alarms=0.1, n=20)
    save(Calibration(about), folder / "logprob.npz")
    arguments = (
        "--attention-sidecar-url", f"ipc://{folder}/nobody", "--attention-calibration", str(folder / "logprob.npz"),
        "--attention-firewall", "log_only", "--attention-firewall-detector", "logprob",
        "--spectral-evict-decode", "--spectral-retention-ratio", str(RETENTION), "--", *SIZES,
    )  # fmt: skip
    with served(folder, *arguments) as server:
        yield server


@contextlib.contextmanager
def watching(folder: Path) -> Iterator[Server]:
    arguments = (
        "--attention-firewall", "early_stop", "--attention-firewall-window", str(WATCHED_WINDOW),
        "--attention-firewall-threshold", str(WATCHED_THRESHOLD), "--attention-auto-sampling", "--spectral-weight",
        str(WEIGHT), "--", *SIZES, "--radix-eviction-policy", "spectral",
    )  # fmt: skip
    with served(folder, *arguments) as server:
        yield server


@contextlib.contextmanager
def production(folder: Path) -> Iterator[Server]:
    config = folder / "server.yaml"
    config.write_text(
        "return-attention-tokens: true\nattention-disable-in-production: true\nattention-fingerprint-only: true\n"
        "attention-max-concurrent-capture: 2\nattention-cors-origins:\n  - https://a.example\n"
    )
    arguments = ("--no-return-attention-tokens", "--", *SIZES, "--config", str(config))
    with started_directly(folder / "e", *arguments, program=SGLANG_SERVE) as server:
        yield server


@contextlib.contextmanager
def probing(folder: Path) -> Iterator[Server]:
    sizes = ("--context-length", "256", "--max-total-tokens", "512", "--max-running-requests", "2")
    arguments = ("--attention-capture-source", "probe", "--", *TWO_LAYERS, *sizes, "--attention-backend", "triton")
    with started_directly(folder / "e", *arguments, environment={"TRITON_INTERPRET": "1"}) as server:
        yield server


def sampled(server: Server, count: int = 20, **fields: Any) -> list[dict[str, Any]]:
    """Entries of an answer of `count` tokens."""
    body = chat_body("Tell a long story of the sea.", max_tokens=count, ignore_eos=True, **ASK, **fields)
    return entries(server.post("/v1/chat/completions", body, headers=WITH_KEY))


def completed(server: Server, prompt: str, **fields: Any) -> list[dict[str, Any]]:
    body = {"model": "smollm2", "prompt": prompt, "max_tokens": 1, "temperature": 0, **ASK, **fields}
    return entries(server.post("/v1/completions", body, headers=WITH_KEY))


def bodies() -> dict[str, dict[str, Any]]:
    """A body of two tokens for every way in."""
    return {
        "/v1/chat/completions": chat_body("Hi", max_tokens=2),
        "/v1/completions": {"model": "smollm2", "prompt": "Hi", "max_tokens": 2},
        "/generate": {"text": "Hi", "sampling_params": {"max_new_tokens": 2}},
    }


def entries(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    return list(response.json()["attention_tokens"])


def document(server: Server) -> dict[str, Any]:
    return dict(httpx.get(server.url + CAPABILITIES, headers=WITH_KEY).raise_for_status().json())


def captures(server: Server) -> None:
    assert document(server)["supported"] is True
    assert sampled(server, 1)[0]["decode_step"] == 1


def sketches_unless_told_otherwise(server: Server) -> None:
    assert document(server)["default_mode"] == "sketch"
    assert {entry["mode"] for entry in sampled(server, 3)} == {"sketch"}


def gives_so_many_links(server: Server) -> None:
    found = sampled(server, 3, attention_sketch_mode=False)
    assert {len(entry["token_positions"]) for entry in found} == {TOP_K}


def stops_at_the_most_entries(server: Server) -> None:
    assert document(server)["guardrails"]["max_entries"] == MOST
    assert [e["flags"] == ["capture_stopped"] for e in sampled(server)] == [False] * MOST + [True]


def steps_by_the_alias(server: Server) -> None:
    assert document(server)["guardrails"]["stride"] == STRIDE
    assert [entry["decode_step"] for entry in sampled(server, 6)] == [1, 3, 5]


def sees_the_last_keys_only(server: Server) -> None:
    for entry in sampled(server, 3):
        seen = sorted(position for position, _ in entry["layer_sketches"]["0"]["top_hubs"])
        assert seen == list(range(entry["query_position"] + 1 - WINDOW, entry["query_position"] + 1))


def captures_the_first_layer(server: Server) -> None:
    assert document(server)["layers_captured"] == [0]
    (entry,) = sampled(server, 1)
    assert (entry["layer_id"], set(entry["layer_sketches"])) == (0, {"0"})


def stops_fingerprints_after_their_steps(server: Server) -> None:
    *captured, last = sampled(server, attention_fingerprint_mode=True)
    assert [entry["decode_step"] for entry in captured] == list(range(1, STEPS + 1, STRIDE))
    assert (last["decode_step"], last["flags"]) == (STEPS + STRIDE, ["capture_stopped"])


def fingerprints_unless_told_otherwise(server: Server) -> None:
    assert document(server)["default_mode"] == "fingerprint"
    assert {entry["mode"] for entry in sampled(server, 4)} == {"fingerprint"}
    assert {entry["mode"] for entry in sampled(server, 4, attention_fingerprint_mode=False)} == {"raw"}


def steps_by_the_first_name(server: Server) -> None:
    assert [entry["decode_step"] for entry in sampled(server, 8)] == [1, 4, 7]


def wants_its_key(server: Server) -> None:
    assert httpx.get(server.url + CAPABILITIES).status_code == 401
    assert server.post("/v1/chat/completions", chat_body("Hi", **ASK)).status_code == 401
    captures(server)


def lets_pages_of_its_origins_read(server: Server) -> None:
    allowed = [
        httpx.get(server.url + CAPABILITIES, headers={**WITH_KEY, "Origin": origin}).headers.get(
            "access-control-allow-origin"
        )
        for origin in (ORIGIN, "https://b.example")
    ]
    assert allowed == [ORIGIN, None]


def captures_so_many_at_once(server: Server) -> None:
    body = chat_body("Hi", temperature=1, **ASK)
    assert server.post("/v1/chat/completions", {**body, "n": CAPTURES}, headers=WITH_KEY).status_code == 200
    refused = server.post("/v1/chat/completions", {**body, "n": CAPTURES + 1}, headers=WITH_KEY)
    assert refused.status_code == 400
    assert f"--attention-max-concurrent-capture {CAPTURES}" in refused.text


def masks_the_system_prompt(server: Server) -> None:
    (entry,) = sampled(server, 1, top_k_attention=64, attention_prompt_tokens=True)
    masked = entry["prompt_tokens"].count(None)
    assert entry["prompt_tokens"] == [None] * masked + entry["prompt_tokens"][masked:]
    assert min(entry["token_positions"]) == masked > 0


def counts_so_many_sinks(server: Server) -> None:
    (entry,) = completed(server, "The harbour log of the northern sea lists ships and masters", top_k_attention=64)
    logits = dict(zip(entry["token_positions"], entry["topk_logits"], strict=True))
    p = [math.exp(logits[n] - entry["logsumexp_candidates"]) for n in range(entry["query_position"] + 1)]
    assert len(p) > SINKS
    assert sum(p[:SINKS]) == pytest.approx(entry["sink_mass"], abs=1e-5)


def handles_so_many_keys_at_a_time(server: Server) -> None:
    assert document(server)["chunk_size"] == CHUNK
    (entry,) = completed(server, "The log of the sea. " * CHUNK, top_k_attention=64)
    assert entry["query_position"] > 3 * CHUNK
    p = [math.exp(logit - entry["logsumexp_candidates"]) for logit in entry["topk_logits"]]
    assert sum(p) == pytest.approx(entry["topk_mass"], abs=1e-5)
    assert {position // CHUNK for position in entry["token_positions"]} >= {0, entry["query_position"] // CHUNK}


def lets_only_fingerprints_out(server: Server) -> None:
    found = document(server)
    assert (found["modes"], found["max_top_k"]) == (["fingerprint"], 0)
    more = {"token_positions", "attention_scores", "topk_logits", "head_stats", "entropy_bits"}
    assert all(not more & set(entry) and "fingerprint" in entry for entry in sampled(server, 3))
    for loosening in (
        {"top_k_attention": 4}, {"attention_sketch_mode": True}, {"attention_head_stats": True},
        {"attention_fingerprint_mode": False}, {"attention_prompt_tokens": True}, {"attention_derotate": True},
    ):  # fmt: skip
        refused = server.post("/v1/chat/completions", chat_body("Hi", **ASK, **loosening))
        assert refused.status_code == 400, loosening
        assert "lets only fingerprints out" in refused.text
    command = [GEOM, "run", "Hi", "--max-tokens", "5", "--base-url", server.url, "--no-save"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "fingerprint, layers 1" in run.stderr


def captures_nothing_in_production(server: Server) -> None:
    found = document(server)
    assert (found["supported"], found["modes"], found["max_top_k"]) == (False, [], 0)
    assert found["guardrails"]["disabled_in_production"] is True
    assert found["guardrails"]["cors_origins"] == [ORIGIN]
    assert not any(found["features"].values())
    for path, body in bodies().items():
        for stream in (False, True):
            refused = server.post(path, {**body, **ASK, "stream": stream})
            assert refused.status_code == 403, refused.text
            assert "--attention-disable-in-production" in refused.text
            assert "GEOM_DEBUG=1" in refused.text
        assert server.post(path, body).status_code == 200
    command = [GEOM, "run", "Hi", "--base-url", server.url, "--no-save"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 3
    assert "--attention-disable-in-production" in run.stderr
    assert "geom_" not in httpx.get(server.url + "/metrics").text


def pushes_fingerprints(server: Server) -> None:
    """Only of requests that ask; what nobody takes is counted."""
    sampled(server, 4)
    assert document(server)["sidecar"] == {"sent": 0, "dropped": 4}
    server.chat(max_tokens=4)
    assert document(server)["sidecar"] == {"sent": 0, "dropped": 4}


def watches_every_answer(server: Server) -> None:
    found = server.chat("Tell a long story of the sea.", max_tokens=40, ignore_eos=True)
    assert found["choices"][0]["matched_stop"] == "attention_drift"


def takes_drift_over_so_many_tokens(server: Server) -> None:
    """The first score comes with the window's last token; two of them halt."""
    scores = [entry["firewall"]["score"] for entry in sampled(server, 40)]
    assert [score is None for score in scores] == [True] * (WATCHED_WINDOW - 1) + [False] * (
        len(scores) - WATCHED_WINDOW + 1
    )


def halts_at_the_threshold(server: Server) -> None:
    entries_of = sampled(server, 40)
    over = [(entry["firewall"]["score"] or 0) >= WATCHED_THRESHOLD for entry in entries_of]
    assert over[-2:] == [True, True]
    assert not any(pair == (True, True) for pair in itertools.pairwise(over[:-1]))
    assert (
        server.post("/generate", {"text": "Hi", "attention_firewall": {"variance_threshold": 0.9}}).status_code == 400
    )


def samples_by_zone_what_sets_neither_value(server: Server) -> None:
    body = {"text": "A long story of the sea", "return_attention_tokens": True}
    for sampling, steered in (({}, True), ({"temperature": 0.5}, False), ({"top_p": 0.5}, False)):
        asked = {**body, "sampling_params": {"max_new_tokens": 8, "ignore_eos": True, **sampling}}
        entries_of = server.post("/generate", asked).json()["attention_tokens"]
        assert all(("sampling" in entry) is steered for entry in entries_of)
    assert document(server)["auto_sampling"] is True


def watches_with_the_detector(server: Server) -> None:
    watched = [entry["firewall"] for entry in sampled(server, 8)]
    assert {found["detector"] for found in watched} == {"logprob"}
    assert [found["score"] is None for found in watched] == [True] * 3 + [False] * 5


def halts_at_the_calibrations_threshold(server: Server) -> None:
    found = document(server)
    assert (found["firewall"]["variance_threshold"], found["firewall"]["calibrated"]) == (LEVEL, True)
    assert found["detectors"] == {"compass": False, "logprob": True, "rauq": False, "heads": False, "received": False}


def reads_keys_again(server: Server) -> None:
    """Left to itself, the backend's own logits are taken where they fit: they do here."""
    found = document(server)
    assert (found["backend"], found["source"]) == ("triton", "probe")
    assert "fingerprint" in completed(server, "Hi")[0]


def ranks_the_prefix_cache(server: Server) -> None:
    # The firewall of this server looks at every token.
    assert document(server)["prefix_cache"] == {"weight": WEIGHT, "stride": 1}


def lets_tokens_go(server: Server) -> None:
    assert document(server)["features"]["spectral_decode"] is True
    assert sampled(server, 120)[-1]["kv"]["freed"] > 0


def keeps_its_share(server: Server) -> None:
    assert document(server)["eviction"]["retention_ratio"] == RETENTION
    late = [entry["kv"] for entry in sampled(server, 240)][-40:]
    assert all(kv["freed"] for kv in late)
    # A tenth, or 16, above its share until tokens leave again, and two steps until they have left.
    assert all(kv["kept"] <= RETENTION * (kv["kept"] + kv["freed"]) + 16 + 2 for kv in late)


class Case(NamedTuple):
    server: Callable[[Path], contextlib.AbstractContextManager[Server]]
    check: Callable[[Server], None]


CASES = {
    "--return-attention-tokens": Case(lengths, captures),
    "--attention-sketch-mode": Case(lengths, sketches_unless_told_otherwise),
    "--attention-tokens-top-k": Case(lengths, gives_so_many_links),
    "--attention-tokens-max": Case(lengths, stops_at_the_most_entries),
    "--attention-capture-stride": Case(lengths, steps_by_the_alias),
    "--attention-tokens-window": Case(lengths, sees_the_last_keys_only),
    "--attention-capture-layers": Case(lengths, captures_the_first_layer),
    "--attention-fingerprint-max-steps": Case(lengths, stops_fingerprints_after_their_steps),
    "--attention-fingerprint-mode": Case(guarded, fingerprints_unless_told_otherwise),
    "--attention-tokens-stride": Case(guarded, steps_by_the_first_name),
    "--attention-api-key": Case(guarded, wants_its_key),
    "--attention-cors-origins": Case(guarded, lets_pages_of_its_origins_read),
    "--attention-max-concurrent-capture": Case(guarded, captures_so_many_at_once),
    "--attention-mask-system-prompt": Case(guarded, masks_the_system_prompt),
    "--attention-sink-tokens": Case(guarded, counts_so_many_sinks),
    "--attention-chunk-size": Case(guarded, handles_so_many_keys_at_a_time),
    "--attention-fingerprint-only": Case(private, lets_only_fingerprints_out),
    "--attention-disable-in-production": Case(production, captures_nothing_in_production),
    "--attention-sidecar-url": Case(pushing, pushes_fingerprints),
    "--attention-firewall-detector": Case(pushing, watches_with_the_detector),
    "--attention-calibration": Case(pushing, halts_at_the_calibrations_threshold),
    "--spectral-evict-decode": Case(pushing, lets_tokens_go),
    "--spectral-retention-ratio": Case(pushing, keeps_its_share),
    "--attention-firewall": Case(watching, watches_every_answer),
    "--attention-firewall-window": Case(watching, takes_drift_over_so_many_tokens),
    "--attention-firewall-threshold": Case(watching, halts_at_the_threshold),
    "--attention-auto-sampling": Case(watching, samples_by_zone_what_sets_neither_value),
    "--spectral-weight": Case(watching, ranks_the_prefix_cache),
    "--attention-capture-source": Case(probing, reads_keys_again),
}
STOPS_THE_SERVER = {"--attention-derotate"}


class Running:
    """The server of the case at hand; another one's is ended first."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._stack = contextlib.ExitStack()
        self._start: Any = None
        self._server: Server | None = None

    def of(self, case: Case) -> Server:
        if self._server is None or self._start is not case.server:
            self.end()
            self._start = case.server
            self._server = self._stack.enter_context(case.server(self._factory.mktemp(case.server.__name__)))
        return self._server

    def end(self) -> None:
        self._server = None
        self._stack.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    servers = Running(tmp_path_factory)
    yield servers
    servers.end()


@pytest.mark.parametrize("flag", CASES)
def test_a_flag_does_what_it_says(running: Running, flag: str) -> None:
    CASES[flag].check(running.of(CASES[flag]))


def test_every_name_of_every_flag_has_its_case() -> None:
    names = {name for action in reference.actions().values() for name in action.option_strings}
    assert {*CASES, *STOPS_THE_SERVER} == names


def test_a_server_that_insists_on_the_derotated_view_stops_where_it_cannot_be_had(tmp_path: Path) -> None:
    arguments = ("--attention-derotate", "--", "--json-model-override-args", UNDONE)
    process, output, log, _ = launch(tmp_path, *arguments)
    try:
        assert process.wait(180) == 3, output.read_text()
    finally:
        end(process)
    assert "leave --attention-derotate out" in output.read_text(), output.read_text() + log.read_text()[-3000:]
    assert "there is no de-rotated view of this model" in output.read_text()


def test_without_the_flag_every_way_of_asking_is_refused_and_nothing_else(tmp_path: Path) -> None:
    """The plugin is there, `--return-attention-tokens` is not; all the others are."""
    arguments = ("--no-return-attention-tokens", "--", *SIZES, "--attention-sketch-mode", "--attention-tokens-max=9")
    with started_directly(tmp_path / "e", *arguments) as server:
        found = document(server)
        assert (found["supported"], found["modes"], found["max_top_k"]) == (False, [], 0)
        assert not any(found["features"].values())
        for path, body in bodies().items():
            for stream in (False, True):
                refused = server.post(path, {**body, **ASK, "stream": stream})
                assert refused.status_code == 400, refused.text
                assert "this server was started without --return-attention-tokens" in refused.text
                # Fields that only say how ask for nothing.
                plain = server.post(path, {**body, "top_k_attention": 5, "stream": stream})
                assert plain.status_code == 200, plain.text
                assert "attention_tokens" not in plain.text
        assert document(server)["counters"]["refused"] == {"invalid": 6}
