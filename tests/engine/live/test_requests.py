"""Every way in and out of the server: modes, streams, choices, many requests at once, and what is refused."""

from __future__ import annotations

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from geomcli import models
from geomcli.compass import drift
from geomcli.fingerprint import pack, unpack
from geomcli.zones import classify
from tests.engine.harness import Server, chat_body, sse

ASK = {"return_attention_tokens": True}


def entries_of(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for event in events for entry in event.get("attention_tokens", [])]


def check_complete(entries: list[dict[str, Any]], count: int, prompt_len: int) -> None:
    assert [e["decode_step"] for e in entries] == list(range(1, count + 1))
    assert [e["query_position"] for e in entries] == list(range(prompt_len - 1, prompt_len + count - 1))
    assert not any("error" in e["flags"] for e in entries)


def test_capabilities_say_what_runs(server: Server) -> None:
    document = httpx.get(server.url + "/v1/attention/capabilities").json()
    assert document["supported"] is True
    assert document["layers_captured"] == [0, 1]
    assert document["layers_total"] == 2
    assert document["heads"] == {"seen": 9, "total": 9}
    assert document["backend"] == "torch_native"
    assert document["hooks"]["missing"] == []
    assert len(document["hooks"]["applied"]) == 30
    assert document["features"]["logit_lens"] is False


@pytest.mark.parametrize(
    ("fields", "mode"),
    [
        ({"top_k_attention": 5}, "raw"),
        ({"attention_sketch_mode": True}, "sketch"),
        ({"attention_fingerprint_mode": True}, "fingerprint"),
        ({"attention_fingerprint_only": True}, "fingerprint"),
        ({}, "raw"),
    ],
)
def test_a_stream_carries_each_entry_on_the_chunk_of_its_token(
    server: Server, fields: dict[str, Any], mode: str
) -> None:
    body = chat_body("Tell me about the sea.", stream=True, stream_options={"include_usage": True}, **ASK, **fields)
    events = sse(server.post("/v1/chat/completions", body))
    entries = entries_of(events)
    usage = events[-1]["usage"]
    check_complete(entries, usage["completion_tokens"], usage["prompt_tokens"])
    assert {e["mode"] for e in entries} == {mode}
    for event in events:
        text = (event["choices"][0]["delta"].get("content") or "") if event["choices"] else ""
        shown = "".join(e["token"] for e in event.get("attention_tokens", []) if e["token"] != "<|im_end|>")
        assert text == shown
    links = {"token_positions", "topk_logits", "layers"} if mode != "fingerprint" else set()
    for entry in entries:
        if mode == "raw":
            assert links <= set(entry)
        elif mode == "sketch":
            sketch = entry["layer_sketches"]["1"]
            assert len(sketch["top_hubs"]) == min(32, entry["query_position"] + 1)
            assert abs(sum(sketch["dist_hist"]) - 1) < 1e-5
            assert 0 < sketch["mass_captured"] <= 1 + 1e-6
        else:
            assert not {"token_positions", "topk_logits", "layer_sketches", "entropy_bits", "attention_scores"} & set(
                entry
            )
            assert entry["bytes"] == 160  # two layers of 80 bytes


def test_an_entry_agrees_with_itself(server: Server) -> None:
    entries = server.chat("Count to ten.", max_tokens=30, ignore_eos=True, attention_fingerprint_mode=True, **ASK)[
        "attention_tokens"
    ]
    for i, entry in enumerate(entries):
        fingerprint = np.array(entry["fingerprint"], dtype=np.float32)
        assert (unpack(pack(fingerprint)) == fingerprint).all()
        decision = classify(fingerprint, entry["ripple"])
        assert entry["manifold"] == entry["zone"] == decision.zone
        assert abs(entry["zone_confidence"] - decision.confidence) < 1e-4
        layers = np.array([entry["layers"][n]["fingerprint"][4:] for n in ("0", "1")])
        assert np.abs(layers.mean(axis=0) - fingerprint[4:]).max() < 1e-5
        assert (entry["ripple"] is None) == (i < 15)
        if i >= 9:
            window = np.array([e["fingerprint"][4:] for e in entries[i - 9 : i + 1]])
            assert abs(entry["drift"] - drift(window)) < 1e-5
        else:
            assert entry["drift"] is None


def test_streamed_and_whole_answers_are_the_same(server: Server) -> None:
    server.chat("What is tea?")  # both below start from the same cached prefix, so they agree to the last digit
    whole = server.chat("What is tea?", top_k_attention=3, **ASK)
    events = sse(server.post("/v1/chat/completions", chat_body("What is tea?", stream=True, top_k_attention=3, **ASK)))
    assert entries_of(events) == whole["attention_tokens"]


@pytest.mark.parametrize("stream", [False, True])
def test_completions(server: Server, stream: bool) -> None:
    body = {"model": "smollm2", "prompt": "The sky is", "max_tokens": 6, "temperature": 0, "stream": stream, **ASK}
    response = server.post("/v1/completions", body)
    events = sse(response) if stream else [response.json()]
    entries = entries_of(events)
    check_complete(entries, 6, 3)
    text = "".join(event["choices"][0]["text"] for event in events if event["choices"])
    assert "".join(e["token"] for e in entries) == text


def test_several_choices_and_prompts_keep_their_index(server: Server) -> None:
    body = {"model": "smollm2", "prompt": ["One", "Two words"], "n": 2, "max_tokens": 3, "temperature": 1, **ASK}
    document = server.post("/v1/completions", body).json()
    for choice in document["choices"]:
        mine = [e for e in document["attention_tokens"] if e["index"] == choice["index"]]
        assert "".join(e["token"] for e in mine) == choice["text"]
        check_complete(mine, 3, 1 if choice["index"] < 2 else 2)
    events = sse(server.post("/v1/chat/completions", chat_body("Hi", n=2, temperature=1, stream=True, **ASK)))
    for index in (0, 1):
        mine = [e for e in entries_of(events) if e["index"] == index]
        text = "".join(
            c["delta"].get("content") or "" for event in events for c in event["choices"] if c["index"] == index
        )
        assert "".join(e["token"] for e in mine if e["token"] != "<|im_end|>") == text


@pytest.mark.parametrize("stream", [False, True])
def test_native_generate(server: Server, stream: bool) -> None:
    body = {"text": "Hello there", "sampling_params": {"max_new_tokens": 4, "temperature": 0}, "stream": stream, **ASK}
    response = server.post("/generate", body)
    events = sse(response) if stream else [response.json()]
    check_complete(entries_of(events), 4, 2)
    assert all("geom" not in event["meta_info"] for event in events)
    batch = server.post("/generate", {**body, "text": ["Hello there", "Go"], "stream": False}).json()
    assert [len(item["attention_tokens"]) for item in batch] == [4, 4]
    assert {e["index"] for e in batch[1]["attention_tokens"]} == {1}


def test_stride_max_and_prompt_tokens(server: Server) -> None:
    prompt = "List three colours."
    answer = server.chat(
        prompt, max_tokens=12, ignore_eos=True, attention_tokens_stride=3, attention_tokens_max=3,
        attention_prompt_tokens=True, **ASK,
    )  # fmt: skip
    entries = answer["attention_tokens"]
    assert [e["decode_step"] for e in entries] == [1, 4, 7, 10]
    assert [e["flags"] for e in entries] == [[], [], [], ["capture_stopped"]]
    assert "fingerprint" not in entries[-1]
    assert answer["usage"]["completion_tokens"] == 12
    assert len(entries[0]["prompt_tokens"]) == entries[0]["prompt_len"]
    assert prompt in "".join(entries[0]["prompt_tokens"])
    assert all("prompt_tokens" not in e for e in entries[1:])


def test_tokens_inside_a_character_join_to_the_text(server: Server) -> None:
    tokenizer = json.loads((models.path_of("smollm2") / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    # Byte-level BPE spells the four bytes of a grinning face as four tokens; a bias makes the model write them.
    face = [vocabulary[c] for c in "ðŁĺĢ" if c in vocabulary] or []
    assert face, "the vocabulary has no byte tokens"
    answer = server.chat(
        "Smile.", max_tokens=8, logit_bias={str(i): 50 for i in face}, temperature=1, seed=1, ignore_eos=True, **ASK
    )
    joined = "".join(e["token"] for e in answer["attention_tokens"])
    assert len(answer["attention_tokens"]) == 8
    # A character whose last token is cut off may show as one mark on one side and as none on the other.
    content = answer["choices"][0]["message"]["content"]
    assert joined.replace("�", "") == content.replace("�", "")


def test_eight_at_once_each_get_their_own(server: Server) -> None:
    shared = "You are given a long list of facts about ships, harbours and the weather of the northern sea. " * 3
    jobs = [(shared + f"Question {n}: name fact {n}.", n % 2 == 0, 6 + n) for n in range(8)]

    def ask(prompt: str, asks: bool, count: int) -> dict[str, Any]:
        sampling = {"max_new_tokens": count, "temperature": 0, "ignore_eos": True}
        fields = {**ASK, "top_k_attention": 4} if asks else {}
        response = server.post("/generate", {"text": prompt, "sampling_params": sampling, **fields})
        assert response.status_code == 200, response.text
        return dict(response.json())

    alone = [ask(*job) for job in jobs]
    random.Random(0).shuffle(order := list(range(8)))
    with ThreadPoolExecutor(8) as pool:
        together = dict(zip(order, pool.map(lambda n: ask(*jobs[n]), order), strict=True))
    for n, (_, asks, count) in enumerate(jobs):
        answer = together[n]
        assert answer["meta_info"]["cached_tokens"] > 20, "the prompts were meant to share a cached prefix"
        assert answer["text"] == alone[n]["text"]
        assert ("attention_tokens" in answer) == asks
        if asks:
            check_complete(answer["attention_tokens"], count, answer["meta_info"]["prompt_tokens"])
            for mine, reference in zip(answer["attention_tokens"], alone[n]["attention_tokens"], strict=True):
                assert mine["token_id"] == reference["token_id"]
                assert np.allclose(mine["fingerprint"], reference["fingerprint"], atol=1e-5)


def test_requests_that_do_not_ask_look_like_those_of_a_plain_server(server: Server) -> None:
    answer = server.chat("Hi", return_meta_info=True)
    assert "attention_tokens" not in answer
    assert "geom" not in json.dumps(answer)
    off = server.chat("Hi", return_attention_tokens=False)
    assert "attention_tokens" not in off


BAD = [
    ({"return_attention_tokens": "yes"}, ["return_attention_tokens", "true or false"]),
    ({"return_attention_tokens": 1}, ["return_attention_tokens", "true or false"]),
    ({"top_k_attention": 0}, ["top_k_attention", "1..64"]),
    ({"top_k_attention": 10_000}, ["top_k_attention", "1..64"]),
    ({"top_k_attention": 2.5}, ["top_k_attention", "integer"]),
    ({"top_k_attention": "five"}, ["top_k_attention", "integer"]),
    ({"attention_capture_layer_ids": [7]}, ["attention_capture_layer_ids", "0, 1"]),
    ({"attention_capture_layer_ids": []}, ["attention_capture_layer_ids", "non-empty"]),
    ({"attention_capture_layer_ids": "last"}, ["attention_capture_layer_ids", "list of integers"]),
    ({"attention_capture_head_ids": [-1]}, ["attention_capture_head_ids", "0..8"]),
    ({"attention_capture_head_ids": [0, 9]}, ["attention_capture_head_ids", "0..8"]),
    ({"attention_capture_head_ids": [0] * 1_000_000 + [9]}, ["attention_capture_head_ids", "0..8"]),
    ({"attention_mask_prefix": -1}, ["attention_mask_prefix", "0.."]),
    ({"attention_tokens_stride": 0}, ["attention_tokens_stride", "1.."]),
    ({"attention_tokens_max": 5000}, ["attention_tokens_max", "1..4096"]),
    ({"attention_fingerprint_only": True, "attention_fingerprint_mode": False}, ["attention_fingerprint_mode"]),
    ({"attention_fingerprint_only": True, "top_k_attention": 5}, ["top_k_attention", "fingerprint"]),
    ({"attention_fingerprint_mode": True, "attention_sketch_mode": True}, ["attention_sketch_mode"]),
    ({"attention_derotate": 1}, ["attention_derotate", "true or false"]),
    ({"attention_derotate": True, "attention_sketch_mode": True}, ["attention_derotate", "attention_sketch_mode"]),
    ({"attention_derotate": True, "attention_fingerprint_only": True}, ["attention_derotate", "fingerprints"]),
    ({"attention_auto_sampling": "zone"}, ["attention_auto_sampling", "true or false"]),
]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/generate"])
@pytest.mark.parametrize(("fields", "named"), BAD, ids=[str(list(b[0].items()))[:60] for b in BAD])
def test_bad_fields_are_named_and_the_next_request_works(
    server: Server, path: str, fields: dict[str, Any], named: list[str]
) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": chat_body("Hi", max_tokens=1),
        "/v1/completions": {"model": "smollm2", "prompt": "Hi", "max_tokens": 1},
        "/generate": {"text": "Hi", "sampling_params": {"max_new_tokens": 1}},
    }
    response = server.post(path, {**bodies[path], **ASK, **fields})
    assert response.status_code == 400
    assert len(response.text) < 1000
    for word in named:
        assert word in response.text
    assert len(entries_of([server.post(path, {**bodies[path], **ASK}).json()])) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "user", "content": "x " * 5_000_000}]}, "2048"),
        ({"max_tokens": -3}, "max_"),
        ({"temperature": "hot"}, "temperature"),
    ],
    ids=["empty", "text", "10MB", "max_tokens", "temperature"],
)
def test_bad_requests_leave_the_server_standing(
    server: Server, change: dict[str, Any], named: str, stream: bool
) -> None:
    response = server.post("/v1/chat/completions", {**chat_body("Hi", stream=stream, **ASK), **change})
    assert 400 <= response.status_code < 500, response.text[:500]
    assert named in response.text.lower()
    assert len(response.text) < 2000
    assert server.chat("Hi", **ASK)["attention_tokens"]


@pytest.mark.parametrize("smuggled", ['"not json"', '{"mode": "raw"}', "7", "null"])
def test_a_client_cannot_reach_the_options_of_the_scheduler(server: Server, smuggled: str) -> None:
    custom = {"custom_params": {"__geom__": json.loads(smuggled), "mine": 1}}
    assert "attention_tokens" not in server.chat("Hi", **custom)
    assert server.chat("Hi", **custom, **ASK)["attention_tokens"][0]["mode"] == "raw"
    sampling = {"max_new_tokens": 2, **custom}
    assert "attention_tokens" not in server.post("/generate", {"text": "Hi", "sampling_params": sampling}).json()


def test_a_client_that_leaves_frees_its_request(server: Server) -> None:
    body = chat_body("Tell me a story.", max_tokens=1500, ignore_eos=True, stream=True, **ASK)
    # More than the server runs at once: requests that were not freed would keep the last one waiting.
    for _ in range(12):
        with httpx.stream("POST", server.url + "/v1/chat/completions", json=body, timeout=60) as response:
            next(response.iter_lines())
    answer = server.chat("Hi", **ASK)
    assert len(answer["attention_tokens"]) == answer["usage"]["completion_tokens"]
    deadline = time.monotonic() + 10
    while running_requests(server):
        assert time.monotonic() < deadline, "the requests of clients that left are still running"
        time.sleep(0.2)


def running_requests(server: Server) -> int:
    loads = server.get("/v1/loads")["loads"]
    return sum(load["num_running_reqs"] + load["num_waiting_reqs"] for load in loads)


def test_nothing_went_wrong_on_the_way(server: Server) -> None:
    document = httpx.get(server.url + "/v1/attention/capabilities").json()
    assert document["counters"]["errors"] == 0
    assert document["counters"]["entries"] > 0
    assert "geom:" not in server.log.read_text()
