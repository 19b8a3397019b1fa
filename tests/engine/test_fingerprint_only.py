"""Fingerprint-only mode behind SGLang's own key, from a --config file: nothing else leaves, however one asks."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import GEOM
from tests.engine.harness import TWO_LAYERS, Server, chat_body, served

OWN_KEY, KEY = "sglangs-own-key", "the-key-of-attention"
HEADERS = {"Authorization": f"Bearer {OWN_KEY}", "X-Attention-Key": KEY}
ASK = {"return_attention_tokens": True}
CONFIG = f"""
attention-fingerprint-only: true
attention-capture-layers: auto
attention-api-key: {KEY}
attention-cors-origins: ["https://a.example", "https://b.example"]
attention-max-concurrent-capture: 5
attention-disable-in-production: true
enable-metrics: true
log-requests: true
log-requests-level: 3
"""
# All that an entry may say.
ENTRY = {
    "index", "decode_step", "step", "token_id", "token", "query_position", "prompt_len", "think_phase", "mode",
    "layer_id", "heads", "ruleset", "schema", "flags", "fingerprint", "manifold", "zone", "zone_confidence",
    "sink_mass", "drift", "compass", "ripple", "bytes", "layers",
}  # fmt: skip
RAW = re.compile(
    r"token_positions|attention_scores|topk_logits|logsumexp|topk_mass|entropy_bits|layer_sketches|top_hubs|dist_hist"
    r"|mass_captured|\"moe\"|\"head_stats\": ?[{\[]|\"prompt_tokens\": ?\[|derotated"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("fingerprints")
    (folder / "server.yaml").write_text(CONFIG)
    arguments = ("--", *TWO_LAYERS, "--api-key", OWN_KEY, "--config", str(folder / "server.yaml"))
    with served(folder / "e", *arguments, environment={"GEOM_ATTENTION_KEY": KEY, "GEOM_DEBUG": "1"}) as running:
        yield running


def asking(path: str, *, stream: bool, **fields: Any) -> dict[str, Any]:
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": chat_body("Hi there", max_tokens=4, logprobs=True, top_logprobs=2),
        "/v1/completions": {"model": "smollm2", "prompt": "Hi there", "max_tokens": 4, "logprobs": 2},
        "/generate": {"text": "Hi there", "sampling_params": {"max_new_tokens": 4}, "return_logprob": True},
    }
    extra = {} if path == "/generate" or stream else {"return_meta_info": True}
    return {**bodies[path], **extra, "stream": stream, **ASK, **fields}


def entries_in(text: str) -> list[dict[str, Any]]:
    """Of a whole response, or of every event of a stream."""
    documents = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")] or [text]
    return list(chain.from_iterable(json.loads(d).get("attention_tokens", []) for d in documents))


SOUND: tuple[dict[str, Any], ...] = (
    {},
    {"attention_fingerprint_mode": True},
    {"attention_fingerprint_only": True, "attention_capture_layer_ids": [0]},
    {"attention_capture_head_ids": [0, 5], "attention_mask_prefix": 2},
    {"attention_tokens_window": 3, "attention_tokens_stride": 2, "attention_tokens_max": 1},
    {"attention_sketch_mode": False, "attention_head_stats": False, "attention_prompt_tokens": False},
)
MORE: tuple[dict[str, Any], ...] = (
    {"attention_fingerprint_mode": False},
    {"attention_fingerprint_only": False, "attention_fingerprint_mode": False},
    {"attention_sketch_mode": True},
    {"top_k_attention": 4},
    {"attention_head_stats": True},
    {"attention_prompt_tokens": True},
    {"attention_derotate": True},
    {"return_moe_routing": True},
)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/generate"])
def test_answers_hold_fingerprints_and_nothing_more(server: Server, path: str, stream: bool) -> None:
    for fields in SOUND:
        response = server.post(path, asking(path, stream=stream, **fields), headers=HEADERS)
        assert response.status_code == 200, response.text
        found = entries_in(response.text)
        assert found
        for entry in found:
            assert set(entry) <= ENTRY, set(entry) - ENTRY
            assert entry["mode"] == "fingerprint"
            if "capture_stopped" not in entry["flags"]:
                assert len(entry["fingerprint"]) == 20
            for layer in entry.get("layers", {}).values():
                assert set(layer) == {"fingerprint"}
        assert not RAW.search(response.text.replace('"prompt_tokens":[', "")), response.text
    for fields in MORE:
        response = server.post(path, asking(path, stream=stream, **fields), headers=HEADERS)
        assert response.status_code == 400, response.text
        assert next(iter(reversed(fields))) in response.text
        assert not entries_in(response.text)
        assert 'fingerprint":' not in response.text


def test_smuggled_options_and_other_endpoints_leak_nothing(server: Server) -> None:
    raw = {"mode": "raw", "top_k": 16, "layers": [0, 1], "heads": None, "heads_total": 9, "mask_prefix": 0, "stride": 1}
    raw |= {"limit": 0, "window": 0, "sink_tokens": 4, "head_stats": True, "prompt_tokens": True}
    smuggled = {"custom_params": {"__geom__": json.dumps(raw)}}
    for path in ("/v1/chat/completions", "/generate"):
        body = asking(path, stream=False)
        if path == "/generate":
            body["sampling_params"] |= smuggled
        else:
            body |= smuggled
        response = server.post(path, body, headers=HEADERS)
        assert response.status_code == 200, response.text
        assert {entry["mode"] for entry in entries_in(response.text)} == {"fingerprint"}
        assert not RAW.search(response.text)
    for path, body in {
        "/v1/messages": {"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4},
        "/v1/completions": {"model": "smollm2", "prompt": ["Hi", "Ho"], "n": 2, "max_tokens": 2},
        "/tokenize": {"model": "smollm2", "prompt": "Hi"},
    }.items():
        response = server.post(path, {**body, **ASK, "attention_prompt_tokens": False}, headers=HEADERS)
        assert response.status_code < 500, response.text
        assert not RAW.search(response.text), response.text


def test_both_keys_are_needed_each_in_its_place(server: Server) -> None:
    body = asking("/v1/chat/completions", stream=False)
    plain = chat_body("Hi", max_tokens=1)
    bearer, ours = {"Authorization": f"Bearer {OWN_KEY}"}, {"X-Attention-Key": KEY}
    post = server.post
    assert post("/v1/chat/completions", plain, headers=bearer).status_code == 200
    assert post("/v1/chat/completions", body, headers=HEADERS).status_code == 200
    assert post("/v1/chat/completions", plain, headers=ours).status_code == 401
    assert post("/v1/chat/completions", body, headers={"Authorization": f"Bearer {KEY}"}).status_code == 401
    refused = post("/v1/chat/completions", body, headers=bearer)
    assert refused.status_code == 401
    assert "X-Attention-Key" in refused.text
    assert "Bearer" not in refused.text
    assert httpx.get(server.url + "/v1/attention/capabilities", headers=bearer).status_code == 401
    run = subprocess.run(
        [GEOM, "run", "Hi", "--max-tokens", "3", "--base-url", server.url, "--no-save"],
        capture_output=True, text=True, env={**os.environ, "GEOM_API_KEY": OWN_KEY, "GEOM_ATTENTION_KEY": KEY},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


def test_capabilities_of_what_the_file_says(server: Server) -> None:
    document = httpx.get(server.url + "/v1/attention/capabilities", headers=HEADERS).raise_for_status().json()
    assert document["supported"] is True
    assert document["modes"] == ["fingerprint"]
    assert document["default_mode"] == "fingerprint"
    assert document["max_top_k"] == 0
    assert document["layers_captured"] == [0, 1]
    guardrails = document["guardrails"]
    assert guardrails["fingerprint_only"] is guardrails["requires_api_key"] is True
    assert guardrails["disabled_in_production"] is False  # GEOM_DEBUG=1 is set
    assert guardrails["max_concurrent_capture"] == 5
    assert guardrails["cors_origins"] == ["https://a.example", "https://b.example"]
    features = document["features"]
    assert not features["head_stats"] | features["prompt_tokens"] | features["derotation"]


def test_neither_metrics_nor_log_nor_other_pages_say_more(server: Server) -> None:
    """Last, after all the asking: the log has had every request and answer in full."""
    pages = {
        path: httpx.get(server.url + path, headers=HEADERS, timeout=30).text
        for path in ("/metrics", "/v1/attention/capabilities", "/server_info", "/v1/loads", "/model_info")
    }
    assert "geom_entries_total" in pages["/metrics"]
    log = server.log.read_text()
    assert "Finish: obj=" in log, "requests were to be logged"
    pages["log"], pages["geom serve"] = log, server.output.read_text()
    for name, text in pages.items():
        # The log repeats what clients asked for, and SGLang counts prompt_tokens.
        assert not RAW.search(text), (name, RAW.search(text))
        assert KEY not in text, name
    assert "geom:" not in log


def test_the_file_itself_is_not_changed(server: Server) -> None:
    assert Path(server.log.parent.parent / "server.yaml").read_text() == CONFIG
