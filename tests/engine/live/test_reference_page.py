"""Every field of docs/reference.md, by its own example, on every way in; and every example of an endpoint."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from geomcli.server_patch import reference
from tests.engine.harness import Server, chat_body

ASK = {"return_attention_tokens": True}
TOKENS = 3
CHANGED = {
    "top_k_attention": lambda entry: len(entry["token_positions"]) == 16,
    "attention_fingerprint_mode": lambda entry: entry["mode"] == "fingerprint",
    "attention_fingerprint_only": lambda entry: entry["mode"] == "fingerprint",
    "attention_sketch_mode": lambda entry: entry["mode"] == "sketch",
    "attention_capture_layer_ids": lambda entry: (entry["layer_id"], "layers" in entry) == (0, False),
    "attention_capture_head_ids": lambda entry: entry["heads"] == {"seen": 2, "total": 9},
    "attention_mask_prefix": lambda entry: "masked" in entry["flags"] and min(entry["token_positions"]) >= 12,
    "attention_tokens_window": lambda entry: min(entry["token_positions"]) == entry["query_position"] - 7,
    "attention_head_stats": lambda entry: len(entry["head_stats"]["1"]["entropy"]) == 9,
    "attention_logit_stats": lambda entry: entry["logit_stats"]["logprob"] <= 0,
    "attention_auto_sampling": lambda entry: entry["sampling"]["zone"] == "unknown",
    "attention_firewall": lambda entry: entry["firewall"]["action"] == "log_only",
    "attention_prompt_tokens": lambda entry: len(entry["prompt_tokens"]) == entry["prompt_len"],
    "attention_derotate": lambda entry: len(entry["derotated"]["content"]) == len(entry["token_positions"]),
}
# What this server does not have: tests/engine/families and test_eviction.py have servers that do.
REFUSED = {
    "return_moe_routing": "this model has no experts",
    "spectral_retention_ratio": "this server evicts nothing from running requests",
}
TEXT = "The harbour log of the northern sea lists ships and their masters, year by year."


def bodies(fields: dict[str, Any]) -> dict[str, dict[str, Any]]:
    sampling = {"max_new_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    return {
        "/v1/chat/completions": chat_body(TEXT, max_tokens=TOKENS, ignore_eos=True, **fields),
        "/v1/completions": {"model": "smollm2", "prompt": TEXT, "max_tokens": TOKENS, "ignore_eos": True, **fields},
        "/generate": {"text": TEXT, "sampling_params": sampling, **fields},
    }


@pytest.mark.parametrize("path", bodies({}))
@pytest.mark.parametrize("field", reference.FIELDS)
def test_a_field_does_what_it_says(server: Server, field: str, path: str) -> None:
    value = json.loads(reference.FIELDS[field].example.replace("{layer}", "0"))
    response = server.post(path, bodies({**ASK, field: value})[path])
    if field in REFUSED:
        assert response.status_code == 400
        assert f"{field}: {REFUSED[field]}" in response.text
        return
    assert response.status_code == 200, response.text
    entries = response.json()["attention_tokens"]
    assert not any("error" in entry["flags"] for entry in entries)
    # The stride of the example leaves out all but the first of three tokens; behind its most entries capture stops.
    captured = [entry for entry in entries if entry["flags"] != ["capture_stopped"]]
    assert len(captured) == {"attention_tokens_stride": 1, "attention_tokens_max": 2}.get(field, TOKENS)
    assert (len(entries) > len(captured)) == (field == "attention_tokens_max")
    assert field not in CHANGED or CHANGED[field](entries[0])


@pytest.mark.parametrize("path", [path for path, one in reference.ENDPOINTS.items() if one.example])
def test_an_endpoint_answers_its_example(server: Server, path: str) -> None:
    body = {"max_tokens": 4, **json.loads(reference.ENDPOINTS[path].example)}
    if "sampling_params" in body:
        del body["max_tokens"]
    response = httpx.post(server.url + path.split()[1], json=body, timeout=120)
    assert response.status_code == 200, response.text
    assert response.json()["attention_tokens"]
