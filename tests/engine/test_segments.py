"""Parts of a text: thinking and output, the system prompt and the rest; and keys in small chunks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from geomcli import models
from tests.engine import transformers_oracle as oracle
from tests.engine.harness import TWO_LAYERS, Server, chat_body, served, sse

ASK = {"return_attention_tokens": True}
FOLDER = str(models.path_of("smollm2"))
NO_FORCING = {"chat_template_kwargs": {"enable_thinking": False}}
SYSTEM = {"role": "system", "content": "You are a pirate. Your treasure is hidden in the harbour of Port Royal."}
USER = {"role": "user", "content": "Who are you?"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    arguments = ("--attention-mask-system-prompt", "--attention-chunk-size", "256", "--attention-capture-layers", "mid")
    engine = ("--reasoning-parser", "qwen3", "--context-length", "2048")
    with served(tmp_path_factory.mktemp("segments"), *arguments, "--", *TWO_LAYERS, *engine) as running:
        yield running


def split(entries: list[dict[str, Any]]) -> tuple[str, str]:
    """The texts of thinking and of output, of an answer that thinks first."""
    phases = [entry["think_phase"] for entry in entries]
    assert phases == sorted(phases, reverse=True)
    assert [entry["decode_step"] for entry in entries] == list(range(1, len(entries) + 1))
    texts = ["".join(e["token"] for e in entries if e["think_phase"] == phase) for phase in ("think", "output")]
    return texts[0].removesuffix("<|im_end|>"), texts[1].removesuffix("<|im_end|>")


# Text that the model is made to write, and what of it is thinking.
ANSWERS = {
    "thinks": (r"<think>\nTwo and two\.\n</think>\n\nFour\.", "<think>\nTwo and two.\n</think>"),
    "no end": (r"<think>\nTwo and two\.", "<think>\nTwo and two."),
    "none": (r"Four\.", ""),
    "empty": (r"<think>\n\n</think>\n\nFour\.", "<think>\n\n</think>"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ANSWERS)
def test_phases_are_what_sglang_calls_reasoning(server: Server, name: str, stream: bool) -> None:
    pattern, thought = ANSWERS[name]
    body = chat_body("What is 2 + 2?", max_tokens=60, regex=pattern, stream=stream, **NO_FORCING, **ASK)
    response = server.post("/v1/chat/completions", body)
    assert response.status_code == 200, response.text
    if stream:
        events = sse(response)
        entries = [entry for event in events for entry in event.get("attention_tokens", [])]
        deltas = [choice["delta"] for event in events for choice in event["choices"]]
        parts = ["".join(d.get(k) or "" for d in deltas) for k in ("reasoning_content", "content")]
    else:
        entries = response.json()["attention_tokens"]
        message = response.json()["choices"][0]["message"]
        parts = [message["reasoning_content"] or "", message["content"] or ""]
    found = split(entries)
    assert found[0] == thought
    assert found[0].removeprefix("<think>").removesuffix("</think>") == parts[0]
    assert found[1] == parts[1]


def test_a_mark_in_the_middle_is_a_mention(server: Server) -> None:
    pattern = r"The mark <think> opens, </think> closes\."
    answer = server.chat("Which marks?", max_tokens=60, regex=pattern, **NO_FORCING, **ASK)
    assert {entry["think_phase"] for entry in answer["attention_tokens"]} == {"output"}
    assert "</think>" in split(answer["attention_tokens"])[1]


def test_an_answer_that_is_forced_to_think_thinks_until_it_says_otherwise(server: Server) -> None:
    answer = server.chat("What is 2 + 2?", max_tokens=8, **ASK)
    assert [entry["think_phase"] for entry in answer["attention_tokens"]] == ["think"] * 8
    assert not answer["choices"][0]["message"]["content"]
    # One that goes on where it was left inside the block.
    body = chat_body("What is 2 + 2?", max_tokens=60, regex=r" and two\.</think> Four\.", **NO_FORCING, **ASK)
    body["messages"].append({"role": "assistant", "content": "<think>Two"})
    answer = server.post("/v1/chat/completions", {**body, "continue_final_message": True}).json()
    assert split(answer["attention_tokens"]) == (" and two.</think>", " Four.")
    assert answer["choices"][0]["message"]["reasoning_content"] == " and two."


@pytest.mark.parametrize("stream", [False, True])
def test_a_raw_prompt_thinks_if_it_ends_with_the_mark(server: Server, stream: bool) -> None:
    pattern = r"Two\.</think> Four\."
    for prompt, thought in (("2 + 2?\n<think>\n", "Two.</think>"), ("2 + 2?\n", ""), ("<think>a</think>", "")):
        body = {"model": "smollm2", "prompt": prompt, "regex": pattern, "max_tokens": 40, "temperature": 0, **ASK}
        response = server.post("/v1/completions", {**body, "stream": stream})
        events = sse(response) if stream else [response.json()]
        entries = [entry for event in events for entry in event.get("attention_tokens", [])]
        assert split(entries)[0] == thought
    sampling = {"n": 2, "regex": pattern, "max_new_tokens": 40, "temperature": 0}
    body = {"text": ["2 + 2?<think>", "2 + 2?"], "sampling_params": sampling, **ASK}
    thoughts = [split(item["attention_tokens"])[0] for item in server.post("/generate", body).json()]
    assert thoughts == ["Two.</think>"] * 2 + [""] * 2
    forced = {"text": "2 + 2?", "require_reasoning": True, "sampling_params": {"max_new_tokens": 3}, **ASK}
    assert {e["think_phase"] for e in server.post("/generate", forced).json()["attention_tokens"]} == {"think"}


def ids_of(messages: list[dict[str, Any]], *, generation: bool = True) -> list[int]:
    tokenizer, _ = oracle.load(FOLDER, 2)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
    return list(tokenizer.encode(text, add_special_tokens=False))


def before_the_user(ids: list[int]) -> int:
    tokenizer, _ = oracle.load(FOLDER, 2)
    turn = tokenizer.encode("<|im_start|>user", add_special_tokens=False)
    return next(i for i in range(len(ids)) if ids[i : i + len(turn)] == turn)


def chat(server: Server, messages: list[Any], **fields: Any) -> list[dict[str, Any]]:
    response = server.post(
        "/v1/chat/completions", {**chat_body("", max_tokens=6), "messages": messages, **ASK, **fields}
    )
    assert response.status_code == 200, response.text
    return list(response.json()["attention_tokens"])


def test_the_system_prompt_is_masked_as_if_the_client_had_counted_its_tokens(server: Server) -> None:
    ids, count = ids_of([SYSTEM, USER]), len(ids_of([SYSTEM], generation=False))
    for fields in ({"top_k_attention": 64, "attention_head_stats": True}, {"attention_sketch_mode": True}):
        chat(server, [SYSTEM, USER], **fields)  # so that both below find the same cached prefix
        masked = chat(server, [SYSTEM, USER], **fields)
        body = {"model": "smollm2", "prompt": ids, "max_tokens": 6, "temperature": 0, **ASK, **fields}
        body["attention_mask_prefix"] = count
        counted = server.post("/v1/completions", body).json()["attention_tokens"]
        assert [{**e, "think_phase": None} for e in masked] == [{**e, "think_phase": None} for e in counted]
        for entry in masked:
            hubs = entry.get("layer_sketches", {}).get("1", {}).get("top_hubs", [])
            seen = [*entry.get("token_positions", []), *(position for position, _ in hubs)]
            # As many links as there are keys behind the mask, up to the mode's most.
            assert sorted(seen)[0] == count if len(seen) < 32 else min(seen) >= count
            assert len(seen) == min(entry["query_position"] + 1 - count, 64 if "token_positions" in entry else 32)
            assert "masked" in entry["flags"]


@pytest.mark.parametrize(
    ("messages", "leading"),
    [
        ([USER], None),  # the template adds a system prompt of its own
        ([SYSTEM, {"role": "system", "content": "Be brief."}, USER], 2),
        ([SYSTEM, USER, {"role": "assistant", "content": "Arr."}, {"role": "system", "content": "Stop."}, USER], 1),
        ([{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, USER], 1),
    ],
)
def test_every_leading_system_message_is_masked(server: Server, messages: list[Any], leading: int | None) -> None:
    rendered = [
        {**m, "content": m["content"] if isinstance(m["content"], str) else m["content"][0]["text"]} for m in messages
    ]
    whole = ids_of(rendered)
    count = before_the_user(whole) if leading is None else len(ids_of(rendered[:leading], generation=False))
    entries = chat(server, messages, top_k_attention=64, attention_prompt_tokens=True)
    assert entries[0]["prompt_len"] == len(whole)
    assert min(entries[0]["token_positions"]) == count
    pieces = entries[0]["prompt_tokens"]
    assert len(pieces) == len(whole)
    assert pieces[:count] == [None] * count
    assert pieces[count] == "<|im_start|>"
    assert None not in pieces[count:]


def test_the_larger_prefix_wins(server: Server) -> None:
    count = len(ids_of([SYSTEM], generation=False))
    for asked in (1, count + 5):
        entries = chat(server, [SYSTEM, USER], attention_mask_prefix=asked, top_k_attention=64)
        assert min(entries[0]["token_positions"]) == max(asked, count)


def test_a_prompt_without_messages_has_no_system_prompt(server: Server) -> None:
    document = server.get("/v1/attention/capabilities")
    assert document["guardrails"]["system_prompt_masked"] is True
    assert document["layers_captured"] == [1]
    body = {"model": "smollm2", "prompt": "The sky is", "max_tokens": 1, "temperature": 0, **ASK}
    (entry,) = server.post("/v1/completions", body).json()["attention_tokens"]
    assert sorted(entry["token_positions"]) == [0, 1, 2]
    assert "masked" not in entry["flags"]


def test_a_system_prompt_whose_end_cannot_be_told_is_refused(server: Server) -> None:
    body = {**chat_body("Hi"), "input_ids": ids_of([SYSTEM, USER])}
    refused = server.post("/v1/chat/completions", {**body, **ASK})
    assert refused.status_code == 400
    assert "--attention-mask-system-prompt" in refused.text
    assert "treasure" not in refused.text
    assert server.post("/v1/chat/completions", body).status_code == 200  # one that does not ask is none of ours
    assert chat(server, [SYSTEM, USER])


def test_keys_in_chunks_equal_the_oracle(server: Server) -> None:
    long = [{"role": "user", "content": " ".join(f"Boat {i} left at {i % 12} o'clock." for i in range(90))}]
    ids = ids_of(long)
    assert len(ids) > 3 * 256
    heads = [1, 4, 8]
    entries = chat(server, long, attention_capture_head_ids=heads, top_k_attention=16)
    first = before_the_user(ids)
    output = [entry["token_id"] for entry in entries]
    truth = oracle.forward(FOLDER, ids + output[:-1], [1], len(ids) - 1, depth=2)[0][1]
    for i, entry in enumerate(entries):
        rows = truth[i][heads, first : entry["query_position"] + 1]
        mean = (rows / rows.sum(axis=1, keepdims=True)).mean(axis=0)
        for n, logit in zip(entry["token_positions"], entry["topk_logits"], strict=True):
            assert abs(math.exp(logit - entry["logsumexp_candidates"]) - mean[n - first]) <= 1e-5
        assert np.sort(mean)[-16:].sum() == pytest.approx(entry["topk_mass"], abs=1e-5)


def test_nothing_went_wrong_on_the_way(server: Server) -> None:
    assert server.get("/v1/attention/capabilities")["counters"]["errors"] == 0
    assert "geom:" not in server.log.read_text()
