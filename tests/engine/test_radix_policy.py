"""`--radix-eviction-policy spectral` on the real engine, whose pool is too small for what is asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import geomcli
from tests.engine.harness import TWO_LAYERS, Server, served

POOL = 400
SMALL = (*TWO_LAYERS, "--max-total-tokens", str(POOL), "--context-length", "256", "--max-running-requests", "1")
ASK = {"return_attention_tokens": True}
WEIGHT = 0.9
PREFIX = 60


@pytest.fixture(scope="module")
def spectral(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    words = ("--spectral-weight", str(WEIGHT), "--", *SMALL, "--radix-eviction-policy", "spectral")
    with served(tmp_path_factory.mktemp("spectral"), *words) as running:
        yield running


@pytest.fixture(scope="module")
def lru(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("lru"), "--", *SMALL, "--radix-eviction-policy", "lru") as running:
        yield running


def flush(server: Server) -> None:
    assert server.post("/flush_cache", {}).status_code == 200


def generate(server: Server, ids: list[int], tokens: int = 8, **fields: Any) -> dict[str, Any]:
    sampling = {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}
    response = server.post("/generate", {"input_ids": ids, "sampling_params": sampling, **fields})
    assert response.status_code == 200, response.text
    return dict(response.json())


def ids(base: int, count: int) -> list[int]:
    """Token ids that no other base has."""
    return [1000 + 200 * base + n for n in range(count)]


def found(answer: dict[str, Any]) -> int:
    return int(answer["meta_info"]["cached_tokens"])


def test_capabilities_say_so(spectral: Server, lru: Server) -> None:
    documents = [server.get("/v1/attention/capabilities") for server in (spectral, lru)]
    assert [document["features"]["spectral_radix"] for document in documents] == [True, False]
    assert [document["prefix_cache"] for document in documents] == [{"weight": WEIGHT, "stride": 8}, None]


def test_nodes_are_evicted_and_no_token_changes(spectral: Server, lru: Server) -> None:
    """Twice the pool's size in prompts that share beginnings, asked for twice, with and without entries."""
    prompts = [[*ids(n % 3, 30), *ids(10 + n, 40)] for n in range(12)]
    answers = []
    for server in (spectral, lru):
        flush(server)
        asked = [generate(server, prompt, 12, **(ASK if n % 4 == 0 else {})) for n, prompt in enumerate(prompts * 2)]
        assert any(found(answer) < len(prompt) - 1 for answer, prompt in zip(asked[12:], prompts, strict=True))
        assert any(found(answer) >= 30 for answer in asked)
        answers.append([answer["output_ids"] for answer in asked])
        assert [len(answer.get("attention_tokens", ())) for answer in asked[:5]] == [12, 0, 0, 0, 12]
    assert answers[0] == answers[1]
    assert spectral.get("/v1/attention/capabilities")["counters"]["errors"] == 0
    assert "geom: " not in spectral.log.read_text()


def test_entries_have_the_links_that_were_asked_for(spectral: Server) -> None:
    """64 are captured of each row, whatever leaves the server."""
    raw = generate(spectral, ids(40, 90), top_k_attention=3, **ASK)["attention_tokens"]
    assert [len(entry["token_positions"]) for entry in raw] == [3] * 8
    assert [entry["bytes"] for entry in raw] == [80 + 12 + 3 * 8] * 8
    bare = generate(spectral, ids(40, 90), attention_fingerprint_mode=True, **ASK)["attention_tokens"]
    assert all("token_positions" not in entry and entry["bytes"] == 80 for entry in bare)
    assert [entry["fingerprint"] for entry in bare] == [entry["fingerprint"] for entry in raw]


@pytest.mark.parametrize("attended", [0, 1])
def test_the_prefix_that_was_looked_at_survives_the_one_that_was_not(
    spectral: Server, lru: Server, attended: int
) -> None:
    """Both are used twice, one after the other. Of the other one nothing is seen: its positions are masked."""
    prefixes = [ids(50 + 4 * attended + n, PREFIX) for n in range(2)]
    survivors = []
    for server in (spectral, lru):
        flush(server)
        for turn in range(2):
            for n, prefix in enumerate(prefixes):
                masked = {} if n == attended else {"attention_mask_prefix": PREFIX}
                answer = generate(server, [*prefix, *ids(70 + 2 * turn + n, 16)], **ASK, **masked)
                assert found(answer) == (PREFIX if turn else 0)
        # All but a few slots of the pool.
        for n in range(5):
            generate(server, ids(80 + n, 70))
        survivors.append([found(generate(server, [*prefix, *ids(90, 2)], 2)) == PREFIX for prefix in prefixes])
    assert survivors == [[n == attended for n in range(2)], [False, False]]


PARSER = """
import json, sys
sys.argv = ["sglang.launch_server"]
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.server_args import prepare_server_args
from geomcli.server_patch.startup import options_of
found = []
for words in json.load(sys.stdin):
    try:
        args = prepare_server_args(words)
        options = options_of(args)
        found.append([args.radix_eviction_policy, options.ranks, options.spectral_weight])
    except SystemExit as error:
        found.append(str(error.code))
print(json.dumps(found))
"""


def test_the_words_are_understood_on_the_command_line_and_in_a_file(tmp_path: Path) -> None:
    config = tmp_path / "server.yaml"
    config.write_text("return-attention-tokens: true\nradix-eviction-policy: spectral\nspectral-weight: 0.4\n")
    policy = ["--radix-eviction-policy", "spectral"]
    asking = ["--return-attention-tokens", *policy]
    lines = [
        asking, ["--config", str(config)], [*asking, "--spectral-weight", "0"],
        ["--return-attention-tokens", "--spectral-weight", "0.2"],
        policy, [*asking, "--spectral-weight", "1.1"], [*asking, "--spectral-weight", "nan"],
        [*asking, "--attention-disable-in-production"],
    ]  # fmt: skip
    shim = Path(geomcli.__file__).parent / "server_patch" / "cpu_shim"
    # No empty part: Python takes that for the folder it runs in, whose own folders shadow the installed package.
    path = os.pathsep.join(filter(None, [str(shim), os.environ.get("PYTHONPATH")]))
    ran = subprocess.run(
        [sys.executable, "-P", "-c", PARSER], capture_output=True, text=True,
        input=json.dumps([["--model-path", "Qwen/Qwen3-4B", *line] for line in lines]),
        env={**os.environ, "PYTHONPATH": path, "SGLANG_USE_CPU_ENGINE": "1", "GEOM_DEBUG": "0"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    understood = json.loads(ran.stdout.splitlines()[-1])
    # With weight 0 it is SGLang's own lru, and nothing is captured for it.
    assert understood[:4] == [["spectral", True, 0.7], ["spectral", True, 0.4], ["lru", False, 0], ["lru", False, 0.2]]
    for said, sentence in zip(understood[4:], (
        "ranks by what is captured, and capture is off without --return-attention-tokens",
        "--spectral-weight must be 0..1, got 1.1", "--spectral-weight must be 0..1, got nan",
        "capture is off under --attention-disable-in-production",
    ), strict=True):  # fmt: skip
        assert sentence in said
