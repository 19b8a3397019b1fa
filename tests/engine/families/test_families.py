"""The real engine on a tiny model of each family: every number equals transformers' of the same weights."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import GEOM
from tests.engine import transformers_oracle as oracle
from tests.engine.families import table
from tests.engine.families.cases import CASES, Case
from tests.engine.families.comparison import TOLERANCE, TOP_K, ask, largest_difference
from tests.engine.families.tiny_models import FAMILIES, LAYERS, WINDOW, make
from tests.engine.harness import Server, second_plugin, started_directly

COLD = list(b"The harbour log lists ships and masters.")
# Begins like the first: its keys come from the prefix cache, but for the last tokens'.
SHARED = COLD + list(b" Entry")
RAW = {"top_k_attention": TOP_K, "attention_head_stats": True}
SMALL = ("--context-length", "256", "--max-total-tokens", "1024", "--max-running-requests", "4")
ROUTED = "--enable-return-routed-experts"

# SGLang pins the host's copy of routed experts, which a machine without CUDA cannot.
_UNPINNED = """
if in_child:
    from sglang.srt.mem_cache.pool_host import common
    common._cuda_host_register = lambda *_, **__: None
"""

_ran: list[table.Ran] = []


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case.family}-{case.backend}")
def case(request: pytest.FixtureRequest) -> Case:
    made: Case = request.param
    return made


@pytest.fixture(scope="module")
def folder(case: Case, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make(case.family, tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def server(case: Case, folder: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    environment = {"TRITON_INTERPRET": "1"} if case.backend == "triton" else {}
    layers = ",".join(map(str, range(LAYERS)))
    extra: tuple[str, ...] = ()
    if case.family == "Qwen3-MoE":
        extra = (ROUTED,)
        environment |= second_plugin(tmp_path_factory.mktemp("plugin") / "p", _UNPINNED)
    with started_directly(
        tmp_path_factory.mktemp("engine") / "e", folder, "--attention-capture-layers", layers,
        "--", *SMALL, "--attention-backend", case.backend, *extra, environment=environment,
    ) as running:  # fmt: skip
        yield running


def test_a_family(server: Server, case: Case, folder: str, home: dict[str, str]) -> None:
    compared = ["links", "entropy", "masses", "head statistics", "fingerprints"]
    asked = dict(RAW)
    document = server.get("/v1/attention/capabilities")
    assert document["backend"] == case.backend
    assert document["engine_deviations"] == [case.deviation] * bool(case.deviation)
    routed = document["features"]["moe_routing"]
    assert routed is (case.family == "Qwen3-MoE")
    if routed:
        asked["return_moe_routing"] = True

    worst = 0.0
    for name, prompt, fields in (
        ("cold", COLD, asked),
        ("prefix-cache hit", SHARED, asked),
        ("fingerprint", COLD[:9], {"attention_fingerprint_mode": True}),
        ("sketch", COLD[3:], {"attention_sketch_mode": True}),
    ):
        if name == "sketch" and case.backend == "triton":
            continue  # the same kernels; each prompt takes the interpreter half a minute
        (answer,) = ask(server, [prompt], **fields)
        if name == "prefix-cache hit":
            assert answer["meta_info"]["cached_tokens"] >= len(COLD)
            compared.append("prefix-cache hit")
        if name == "sketch":
            compared.append("sketches")
        worst = max(worst, largest_difference(folder, prompt, answer, case.windows, **case.configuration))
        if fields is asked and routed:
            worst = max(worst, largest_routing_difference(folder, prompt, answer))
        else:
            assert not any("moe" in entry for entry in answer["attention_tokens"])
    if case.windowed:
        assert len(COLD) > 2 * WINDOW
        compared.append("prompts longer than the window")
    if routed:
        compared.append("expert routing")
        if case.backend == "torch_native":
            assert_geom_run_keeps_routing(server, home)
    assert server.get("/v1/attention/capabilities")["counters"]["errors"] == 0
    print(f"{case.family} on {case.backend}: largest difference {worst:.1e}")
    architecture = json.loads((Path(folder) / "config.json").read_text())["architectures"][0]
    _ran.append(table.Ran(case, architecture, document["source"], compared))


def largest_routing_difference(folder: str, prompt: list[int], answer: dict[str, Any]) -> float:
    """Of any weight to those that transformers' routers give; the experts have to be the same."""
    k = FAMILIES["Qwen3-MoE"][1]["num_experts_per_tok"]
    ids = prompt + answer["output_ids"][:-1]
    by_layer = oracle.routing(folder, ids, len(prompt) - 1, k)
    worst = 0.0
    for i, entry in enumerate(answer["attention_tokens"]):
        assert list(entry["moe"]) == [str(layer) for layer in range(LAYERS)]
        for layer, rows in enumerate(by_layer):
            experts, weights = rows[i]
            found = entry["moe"][str(layer)]
            assert found["experts"] == experts
            worst = max(worst, *(abs(a - b) for a, b in zip(found["weights"], weights, strict=True)))
    assert worst <= TOLERANCE
    return worst


def test_routing_that_cannot_be_had_is_refused(server: Server, case: Case) -> None:
    body = {"text": "a", "sampling_params": {"max_new_tokens": 1}, "return_moe_routing": True}
    if case.family == "Qwen3-MoE":
        sentence = "return_moe_routing: routing comes with attention entries, ask for return_attention_tokens too"
    else:
        body["return_attention_tokens"] = True
        sentence = "return_moe_routing: this model has no experts"
    response = server.post("/generate", body)
    assert response.status_code == 400
    assert sentence in response.text


def assert_geom_run_keeps_routing(server: Server, home: dict[str, str]) -> None:
    environment = {**home, "GEOM_BASE_URL": server.url + "/v1"}
    run = [str(GEOM), "run", "--no-stdin", "--max-tokens", "3", "The harbour"]
    subprocess.run(run, env=environment, check=True, capture_output=True)
    exported = subprocess.run(
        [str(GEOM), "traces", "export", "last"], env=environment, check=True, capture_output=True, text=True
    ).stdout
    steps = [r for line in exported.splitlines() if (r := json.loads(line))["record_type"] == "step"]
    assert len(steps) == 3
    for step in steps:
        assert [len(of_layer["experts"]) for of_layer in step["moe"].values()] == [3] * LAYERS


def test_the_table_says_what_was_run() -> None:
    """Runs last; of a selection of cases only those lines are compared."""
    lines = [ran.line for ran in _ran]
    if os.environ.get(table.WRITE):
        assert len(_ran) == len(CASES), "the table is written when every case has passed"
        table.write(lines)
    documented = table.documented()
    assert [line for line in lines if line not in documented] == [], "make compatibility"
    if len(_ran) == len(CASES):
        assert documented == lines, "make compatibility"
