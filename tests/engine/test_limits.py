"""The server's capture flags, from SGLang's --config file, are what a request gets and the most that it may ask for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine.harness import TWO_LAYERS, Server, chat_body, served

ASK = {"return_attention_tokens": True}
WINDOW, STRIDE, MOST, STEPS, SINKS = 40, 2, 150, 7, 2
CONFIG = f"""
attention-sketch-mode: true
attention-capture-layers: 0,1
attention-tokens-top-k: 5
attention-tokens-max: {MOST}
attention-tokens-stride: {STRIDE}
attention-tokens-window: {WINDOW}
attention-fingerprint-max-steps: {STEPS}
attention-sink-tokens: {SINKS}
attention-chunk-size: 300
context-length: 1024
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("limits")
    config = folder / "server.yaml"
    config.write_text(CONFIG)
    with served(folder, "--", "--config", str(config), *TWO_LAYERS) as running:
        yield running


def ask(server: Server, count: int, **fields: Any) -> list[dict[str, Any]]:
    answer = server.chat("Tell me a long story.", max_tokens=count, ignore_eos=True, **ASK, **fields)
    assert answer["usage"]["completion_tokens"] == count
    return list(answer["attention_tokens"])


def test_a_long_output_in_sketches_stops_at_the_most_entries_and_says_so(server: Server) -> None:
    entries = ask(server, 2 * MOST + 20)
    assert [e["decode_step"] for e in entries] == [1 + STRIDE * n for n in range(MOST + 1)]
    *captured, last = entries
    assert last["flags"] == ["capture_stopped"]
    assert not {"fingerprint", "layer_sketches", "zone"} & set(last)
    for entry in captured:
        assert entry["mode"] == "sketch"
        assert set(entry["layer_sketches"]) == {"0", "1"}
        first = max(0, entry["query_position"] + 1 - WINDOW)
        for sketch in entry["layer_sketches"].values():
            hubs = [position for position, _ in sketch["top_hubs"]]
            assert len(hubs) == 32
            assert first <= min(hubs) <= max(hubs) <= entry["query_position"]
            assert sum(sketch["dist_hist"]) == pytest.approx(1, abs=1e-5)
        assert ("window" in entry["flags"]) == (first > 0)
        assert not {"token_positions", "topk_logits", "entropy_bits"} & set(entry)


def test_fingerprints_stop_after_their_steps_and_the_text_goes_on(server: Server) -> None:
    entries = ask(server, 20, attention_fingerprint_mode=True)
    assert [e["decode_step"] for e in entries] == [1, 3, 5, 7, 9]
    assert [e["flags"] for e in entries] == [
        ["window"] if e["query_position"] >= WINDOW else [] for e in entries[:-1]
    ] + [["capture_stopped"]]
    assert all(set(e["layers"]) == {"0", "1"} and set(e["layers"]["0"]) == {"fingerprint"} for e in entries[:-1])


def test_raw_entries_of_several_layers_and_their_sinks(server: Server) -> None:
    body = {"model": "smollm2", "prompt": "The sky is", "max_tokens": 8, "temperature": 0, "top_k_attention": 64, **ASK}
    entries = server.post("/v1/completions", body).json()["attention_tokens"]
    for entry in entries:
        assert entry["layer_id"] == 1
        assert set(entry["layers"]) == {"0", "1"}
        for layer in entry["layers"].values():
            p = {
                n: math.exp(logit - layer["logsumexp_candidates"])
                for n, logit in zip(layer["token_positions"], layer["topk_logits"], strict=True)
            }
            assert sorted(p) == list(range(entry["query_position"] + 1))
            assert sum(p[n] for n in range(SINKS)) == pytest.approx(layer["sink_mass"], abs=1e-5)
        assert entry["token_positions"] == entry["layers"]["1"]["token_positions"]
        mean = (entry["layers"]["0"]["sink_mass"] + entry["layers"]["1"]["sink_mass"]) / 2
        assert entry["sink_mass"] == pytest.approx(mean, abs=1e-5)
    # The default number of links is the server's.
    few = server.post("/v1/completions", {**body, "top_k_attention": None, "attention_sketch_mode": False}).json()
    assert {len(e["token_positions"]) for e in few["attention_tokens"]} <= {3, 5}


def test_a_request_may_tighten(server: Server) -> None:
    entries = ask(
        server, 20, attention_tokens_stride=6, attention_tokens_max=2, attention_tokens_window=9,
        attention_capture_layer_ids=[0], attention_capture_head_ids=[3],
    )  # fmt: skip
    assert [e["decode_step"] for e in entries] == [1, 7, 13]
    assert entries[2]["flags"] == ["capture_stopped"]
    for entry in entries[:2]:
        assert set(entry["flags"]) == {"window", "partial_heads"}
        assert set(entry["layer_sketches"]) == {"0"}
        hubs = [position for position, _ in entry["layer_sketches"]["0"]["top_hubs"]]
        assert sorted(hubs) == list(range(entry["query_position"] - 8, entry["query_position"] + 1))


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("attention_tokens_stride", STRIDE - 1, f"{STRIDE}.."),
        ("attention_tokens_max", MOST + 1, f"1..{MOST}"),
        ("attention_tokens_max", 0, f"1..{MOST}"),
        ("attention_tokens_window", WINDOW + 1, f"1..{WINDOW}"),
        ("attention_tokens_window", 0, f"1..{WINDOW}"),
        ("attention_capture_layer_ids", [2], "0, 1"),
    ],
)
def test_a_request_may_not_loosen(server: Server, field: str, value: Any, allowed: str) -> None:
    response = server.post("/v1/chat/completions", chat_body("Hi", max_tokens=1, **{**ASK, field: value}))
    assert response.status_code == 400
    assert field in response.text
    assert allowed in response.text


def test_the_document_names_every_ceiling(server: Server) -> None:
    document = server.get("/v1/attention/capabilities")
    guardrails = document["guardrails"]
    assert (guardrails["stride"], guardrails["window"], guardrails["max_entries"]) == (STRIDE, WINDOW, MOST)
    assert (guardrails["max_fingerprint_steps"], guardrails["system_prompt_masked"]) == (STEPS, False)
    assert (document["default_mode"], document["layers_captured"]) == ("sketch", [0, 1])
    assert (document["sink_tokens"], document["chunk_size"]) == (SINKS, 300)
