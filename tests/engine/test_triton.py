"""The device path end to end: SGLang's Triton backend in Triton's interpreter gives the entries of torch_native."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.engine.harness import TWO_LAYERS, Server, started_directly

ASK = {"return_attention_tokens": True}
FINGERPRINTS = {**ASK, "attention_fingerprint_mode": True}
SHARED = "The harbour log of the northern sea lists ships and masters."
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    (SHARED, {**ASK, "top_k_attention": 8, "attention_head_stats": True, "attention_derotate": True}),
    (SHARED + " Entry", {**FINGERPRINTS, "attention_mask_prefix": 5, "attention_logit_stats": True}),
    ("Short", {**ASK, "attention_sketch_mode": True, "attention_tokens_window": 6}),
    ("Two words", {**ASK, "attention_capture_head_ids": [1, 4, 8], "attention_capture_layer_ids": [0]}),
    (
        "Three more words",
        {**ASK, "attention_capture_layer_ids": [0], "attention_tokens_stride": 2, "attention_derotate": True},
    ),
    (SHARED[:30], {**ASK, "attention_tokens_stride": 2, "attention_tokens_max": 2, "attention_logit_stats": True}),
    (SHARED, {}),
]
TOKENS = 5
COMMON = (*TWO_LAYERS, "--context-length", "256", "--max-total-tokens", "1024", "--max-running-requests", "4")
INTERPRETED = {"TRITON_INTERPRET": "1"}


def answers(server: Server) -> list[dict[str, Any]]:
    """All at once, more than run at a time: rows move between slots, and prompts hit the prefix cache."""

    def ask(request: tuple[str, dict[str, Any]]) -> dict[str, Any]:
        prompt, fields = request
        sampling = {"max_new_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
        response = server.post("/generate", {"text": prompt, "sampling_params": sampling, **fields})
        assert response.status_code == 200, response.text
        return dict(response.json())

    with ThreadPoolExecutor(len(REQUESTS)) as pool:
        return list(pool.map(ask, REQUESTS))


def halted(server: Server) -> list[dict[str, Any]]:
    """Answers under a firewall that halts soon: with entries, without, and one that is only logged."""
    low = {"window_size": 2, "variance_threshold": 1e-4}
    made = []
    for action, asking in (("early_stop", ASK), ("re_route", {}), ("log_only", ASK)):
        body = {
            "text": SHARED, "sampling_params": {"max_new_tokens": TOKENS, "temperature": 0, "ignore_eos": True},
            "attention_firewall": {"action": action, **low}, **asking,
        }  # fmt: skip
        answer = server.post("/generate", body).json()
        entries = [entry["firewall"] for entry in answer.get("attention_tokens", ())]
        made.append({"text": answer["text"], "end": answer["meta_info"]["finish_reason"], "firewall": entries})
    return made


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("native") / "e"
    with started_directly(folder, "--attention-capture-layers", "auto", "--", *COMMON) as server:
        return [*answers(server), *halted(server)]


def assert_same(found: Any, expected: Any, where: str) -> None:
    if isinstance(expected, dict):
        assert set(found) == set(expected), where
        for key, value in expected.items():
            assert_same(found[key], value, f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for n, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert_same(a, b, f"{where}[{n}]")
    elif isinstance(expected, float):
        # The model's logits carry the rounding of every layer; attention's numbers are of one.
        tolerance = 1e-4 if ".logit_stats." in where else 1e-5
        assert abs(found - expected) <= tolerance * max(1.0, abs(expected)), (where, found, expected)
    else:
        assert found == expected, where


@pytest.mark.parametrize(("source", "overlap"), [("tap", True), ("probe", False)])
def test_the_triton_backend_gives_the_same_entries(
    tmp_path: Path, native: list[dict[str, Any]], source: str, overlap: bool
) -> None:
    flags = ("--attention-capture-layers", "auto", "--attention-capture-source", source)
    # A tap keeps queries only where it is told to.
    flags += ("--attention-derotate",) if source == "tap" else ()
    without = ("--disable-overlap-schedule",) if overlap else ()
    # Prompts in pieces, of which only the last one's last row gives a token.
    chunks = ("--chunked-prefill-size", "8") if overlap else ()
    arguments = (*flags, "--", *COMMON, "--attention-backend", "triton", *chunks)
    with started_directly(tmp_path / "e", *arguments, without=without, environment=INTERPRETED) as server:
        found = answers(server)
        document = server.get("/v1/attention/capabilities")
        log = server.log.read_text()
        ended = halted(server)
    assert (document["backend"], document["source"]) == ("triton", source)
    assert document["features"]["derotation"] is True
    assert document["counters"]["errors"] == 0, log[-3000:]
    assert "geom:" not in log
    for (prompt, fields), mine, reference in zip(REQUESTS, found, native, strict=False):
        assert mine["text"] == reference["text"], prompt
        assert ("attention_tokens" in mine) is bool(fields)
        assert_same(mine.get("attention_tokens"), reference.get("attention_tokens"), prompt)
    assert_same(ended, native[len(REQUESTS) :], "firewall")
    assert [one["end"].get("matched") for one in ended] == ["attention_drift", "attention_reroute", None]
    assert len(ended[0]["firewall"]) == 3 < len(ended[2]["firewall"]) == TOKENS
    assert all(entry["logit_stats"]["logprob"] <= 0 for entry in found[1]["attention_tokens"])
    assert "derotated" in found[0]["attention_tokens"][-1]["layers"]["0"]
    steps = [e["decode_step"] for e in found[5]["attention_tokens"]]
    assert steps == [1, 3, 5]


def test_the_same_text_without_the_plugin(tmp_path: Path, native: list[dict[str, Any]]) -> None:
    arguments = ("--no-return-attention-tokens", "--", *COMMON, "--attention-backend", "triton")
    environment = {**INTERPRETED, "SGLANG_PLUGINS": "none"}
    with started_directly(tmp_path / "e", *arguments, environment=environment) as server:
        assert [a["text"] for a in answers(server)] == [a["text"] for a in native[: len(REQUESTS)]]
