"""The plugin changes no text: the same requests to a server with it and to one without it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from tests.engine.harness import TWO_LAYERS, Server, served, started_directly

ASK = {"return_attention_tokens": True, "top_k_attention": 8}
SHARED = "The harbour log of the northern sea lists ships, their masters and what they carried. " * 3
PROMPTS = [SHARED + f"Entry {n}:" for n in range(8)]


def texts(server: Server, asking: set[int]) -> list[tuple[str, bool]]:
    """Eight at once, two rounds: the second one hits the prefix cache."""

    def ask(n: int) -> tuple[str, bool]:
        sampling = {"max_new_tokens": 24, "temperature": 0, "ignore_eos": True}
        fields: dict[str, Any] = ASK if n in asking else {}
        answer = server.post("/generate", {"text": PROMPTS[n], "sampling_params": sampling, **fields}).json()
        return answer["text"], "attention_tokens" in answer

    with ThreadPoolExecutor(8) as pool:
        return [answer for _ in range(2) for answer in pool.map(ask, range(8))]


def test_the_same_text_with_and_without_the_plugin(tmp_path: Path) -> None:
    asking = {1, 3, 6}
    sizes = (*TWO_LAYERS, "--context-length", "2048")
    with served(tmp_path / "with", "--", *sizes) as server:
        found = texts(server, asking)
        assert httpx.get(server.url + "/v1/attention/capabilities").status_code == 200
    plain_arguments = ("--no-return-attention-tokens", "--", *sizes)
    with started_directly(tmp_path / "without", *plain_arguments, environment={"SGLANG_PLUGINS": "none"}) as server:
        assert httpx.get(server.url + "/v1/attention/capabilities").status_code == 404
        plain = texts(server, asking)
    assert [text for text, _ in found] == [text for text, _ in plain]
    assert [has for _, has in found] == [n in asking for n in range(8)] * 2
    assert not any(has for _, has in plain)
