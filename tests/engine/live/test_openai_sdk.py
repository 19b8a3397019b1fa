"""The OpenAI SDK as a client: the program of the original specification, and the typed objects of the SDK."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from geomcli.zones import ZONE_NAMES
from tests.engine.harness import Server

SEED_CLIENT = Path(__file__).parent / "seed_client.py"


def test_the_program_of_the_specification_runs_unchanged(server: Server) -> None:
    done = subprocess.run([sys.executable, SEED_CLIENT], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) > 50
    for line in lines[:256]:
        found = re.fullmatch(r"Zone: (\w+), Coherence: (\d\.\d\d)", line)
        assert found, line
        assert found[1] in ZONE_NAMES
        assert 0 <= float(found[2]) <= 1
    # Fingerprints stop after 256 steps by default; the entry that says so has no zone.
    assert lines[256:] in ([], ["Zone: None, Coherence: 1.00"])


def test_the_sdk_shows_entries_on_whole_answers(server: Server) -> None:
    with openai.Client(base_url=server.url + "/v1", api_key="none") as client:
        answer = client.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": "Hi"}],
            max_tokens=5,
            extra_body={"return_attention_tokens": True, "top_k_attention": 3},
        )
    extra = answer.model_extra or {}
    assert [e["decode_step"] for e in extra["attention_tokens"]] == list(range(1, len(extra["attention_tokens"]) + 1))
    assert len(extra["attention_tokens"]) == answer.usage.completion_tokens  # type: ignore[union-attr]


def test_the_sdk_gets_a_bad_request_error(server: Server) -> None:
    with (
        openai.Client(base_url=server.url + "/v1", api_key="none", max_retries=0) as client,
        pytest.raises(openai.BadRequestError, match=r"top_k_attention must be 1\.\.64"),
    ):
        client.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": "Hi"}],
            stream=True,
            extra_body={"return_attention_tokens": True, "top_k_attention": 0},
        )
