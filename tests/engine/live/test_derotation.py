"""Content and position scores of links against transformers, where queries and keys are taken before their rotation."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import numpy as np
import pytest

from geomcli import models
from tests.conftest import GEOM
from tests.engine import transformers_oracle as oracle
from tests.engine.harness import Server, chat_body

LAYERS = [0, 1]
ASK = {"return_attention_tokens": True, "attention_derotate": True}
TOLERANCE = 2e-5
PROMPT = "The red boat left at noon with six sailors on board. Which boat left at noon?"


def truth_of(entries: list[dict[str, Any]], prompt: str) -> dict[int, dict[str, Any]]:
    folder = str(models.path_of("smollm2"))
    tokenizer, _ = oracle.load(folder, 2)
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = list(tokenizer.encode(text, add_special_tokens=False))
    assert entries[0]["prompt_len"] == len(ids)
    return oracle.with_and_without_rope(folder, ids + [e["token_id"] for e in entries[:-1]], LAYERS, 2)


def check(published: dict[str, Any], truth: dict[str, Any], m: int, heads: list[int], first: int) -> float:
    positions = published["token_positions"]
    s, content, p = (truth[name][heads, m] for name in ("s", "content", "p"))
    p = p / p[:, first:].sum(axis=1, keepdims=True)
    s, content, p = s[:, positions], content[:, positions], p[:, positions]
    share = p / p.sum(axis=0)
    expected = {"content": (share * content).sum(axis=0), "position": (share * (s - content)).sum(axis=0)}
    assert published["derotated"].keys() == expected.keys()
    found = {name: np.array(values) for name, values in published["derotated"].items()}
    assert all(len(values) == len(positions) for values in found.values())
    return max(float(np.abs(found[name] - expected[name]).max()) for name in expected)


@pytest.mark.parametrize(("heads", "first"), [(None, 0), ([1, 4, 8], 7)])
def test_scores_equal_those_of_queries_and_keys_before_their_rotation(
    server: Server, heads: list[int] | None, first: int
) -> None:
    fields = {} if heads is None else {"attention_capture_head_ids": heads, "attention_mask_prefix": first}
    answer = server.chat(PROMPT, max_tokens=12, ignore_eos=True, **ASK, **fields)
    entries = answer["attention_tokens"]
    assert len(entries) == 12
    truth = truth_of(entries, PROMPT)
    worst, largest = 0.0, 0.0
    for entry in entries:
        m = entry["query_position"]
        for layer in LAYERS:
            published = entry["layers"][str(layer)]
            worst = max(worst, check(published, truth[layer], m, heads or list(range(9)), first))
            largest = max(largest, *map(abs, published["derotated"]["position"]))
            if m in published["token_positions"]:
                own = published["token_positions"].index(m)
                assert abs(published["derotated"]["position"][own]) <= TOLERANCE
        assert entry["derotated"] == entry["layers"]["1"]["derotated"]
        links = [len(entry["layers"][str(layer)]["token_positions"]) for layer in LAYERS]
        assert entry["bytes"] == 80 + sum(16 * n + 12 for n in links)
    print(f"largest deviation {worst:.2e}, largest position score {largest:.2f}")
    assert worst <= TOLERANCE
    assert largest > 1


def test_nothing_else_of_an_entry_changes(server: Server) -> None:
    # The first of them fills the prefix cache, from which a prompt's last row differs in its last digit.
    _, with_, without = (
        server.chat("Name a river.", max_tokens=6, **{**ASK, "attention_derotate": asked})["attention_tokens"]
        for asked in (False, True, False)
    )
    assert "derotated" not in json.dumps(without)
    for entry in with_:
        del entry["derotated"], entry["bytes"]
        for of_layer in entry["layers"].values():
            del of_layer["derotated"]
    for entry in without:
        del entry["bytes"]
    assert with_ == without


def test_a_row_without_links_and_rows_that_did_not_ask(server: Server) -> None:
    assert server.get("/v1/attention/capabilities")["features"]["derotation"] is True
    everything = server.chat("Hi", max_tokens=2, **ASK, attention_mask_prefix=500)["attention_tokens"]
    assert [entry["derotated"] for entry in everything] == [{"content": [], "position": []}] * 2
    one = server.chat("Hi", max_tokens=1, **ASK, attention_capture_layer_ids=[0])["attention_tokens"][0]
    assert len(one["derotated"]["content"]) == len(one["token_positions"])
    assert "layers" not in one


def test_the_scores_are_kept_with_the_trace(server: Server, home: dict[str, str]) -> None:
    command = [GEOM, "run", "Name a river.", "--max-tokens", "5", "--derotate", "--top-k", "3", "--jsonl", "--no-stdin"]
    done = subprocess.run(command, capture_output=True, text=True, env=home)
    assert done.returncode == 0, done.stderr
    printed = [json.loads(line) for line in done.stdout.splitlines()]
    asked = {**chat_body("Name a river.", max_tokens=5), **ASK, "top_k_attention": 3}
    entries = server.post("/v1/chat/completions", asked).json()["attention_tokens"]
    steps = [record["attention"] for record in printed if record["record_type"] == "step"]
    assert [step["derotated"] for step in steps] == [entry["derotated"] for entry in entries]
    assert [step["layers"]["0"]["derotated"] for step in steps] == [e["layers"]["0"]["derotated"] for e in entries]
    exported = subprocess.run([GEOM, "traces", "export", "last"], capture_output=True, text=True, env=home)
    assert [json.loads(line) for line in exported.stdout.splitlines()] == printed
