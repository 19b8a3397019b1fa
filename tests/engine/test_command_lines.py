"""Command lines of the original specification, its model's name replaced: each starts, and is understood as meant.

A flag of the specification that this version does not have is refused by name, never ignored.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import pytest

from geomcli import machine, models
from geomcli.server_patch import flags, reference
from geomcli.server_patch.server_options import ServerOptions
from tests.conftest import GEOM
from tests.engine.harness import TWO_LAYERS, free_port, ready

MODEL = "Qwen/Qwen3-4B"
CAPTURE = ("--return-attention-tokens",)
TRITON = ("--attention-backend", "triton", *CAPTURE)
NO_GRAPHS = (*CAPTURE, "--disable-cuda-graph")
Line = tuple[tuple[str, ...], dict[str, Any]]
# What follows `python -m sglang.launch_server --model-path MODEL`, and what our options are then, beside capture.
WRITTEN: list[Line] = [
    ((*TRITON, "--attention-tokens-top-k", "32"), {"top_k": 32}),
    ((*TRITON, "--attention-tokens-top-k", "16"), {"top_k": 16}),
    (
        (*CAPTURE, "--attention-fingerprint-mode", "--attention-fingerprint-max-steps", "256", "--disable-cuda-graph"),
        {"fingerprint_mode": True, "max_steps": 256},
    ),
    ((*NO_GRAPHS, "--reasoning-parser", "qwen3"), {}),
    ((*NO_GRAPHS, "--tp", "1"), {}),
    ((*CAPTURE, "--attention-mask-system-prompt"), {"mask_system_prompt": True}),
    (
        (
            *CAPTURE,
            "--attention-fingerprint-mode",
            "--attention-sidecar-url",
            "tcp://localhost:9001",
            "--disable-cuda-graph",
        ),
        {"fingerprint_mode": True, "sidecar_url": "tcp://localhost:9001"},
    ),
    # One of them without its words for eviction, which are below.
    ((*TRITON, "--attention-fingerprint-mode", "--port", "30000"), {"fingerprint_mode": True}),
]
# Without those that differ from another line by one value that every other test of the engine has.
STARTED = [(line, changed) for line, changed in WRITTEN if not {"16", "--tp"} & {*line}]
# The flags of its lists, each with a value that is named there.
ACCEPTED: list[Line] = [
    *WRITTEN,
    *((((*NO_GRAPHS, "--reasoning-parser", name), {})) for name in (
        "qwen3-thinking", "deepseek-r1", "deepseek-v3", "kimi", "glm45", "step3", "minimax",
    )),
    ((*NO_GRAPHS, "--tp", "2"), {}),
    ((*CAPTURE, "--attention-fingerprint-only"), {"fingerprint_only": True}),
    ((*CAPTURE, "--attention-fingerprint-max-steps", "0"), {"max_steps": 0}),
    ((*CAPTURE, "--attention-tokens-top-k", "5"), {"top_k": 5}),
    ((*CAPTURE, "--attention-tokens-max", "4096"), {"max_entries": 4096}),
    ((*CAPTURE, "--attention-tokens-max", "0"), {"max_entries": 0}),
    ((*CAPTURE, "--attention-tokens-stride", "1"), {"stride": 1}),
    ((*CAPTURE, "--attention-capture-stride", "2"), {"stride": 2}),
    ((*CAPTURE, "--attention-tokens-window", "8192"), {"window": 8192}),
    ((*CAPTURE, "--attention-capture-layers", "last"), {"layers": "last"}),
    ((*CAPTURE, "--attention-capture-layers", "auto"), {"layers": "auto"}),
    ((*CAPTURE, "--attention-capture-layers", "0,10,20,30"), {"layers": "0,10,20,30"}),
    ((*CAPTURE, "--attention-sketch-mode"), {"sketch_mode": True}),
    ((*CAPTURE, "--attention-chunk-size", "2048"), {"chunk_size": 2048}),
    ((*CAPTURE, "--attention-api-key", "KEY"), {"api_key": ""}),  # kept where nothing shows it
    ((*CAPTURE, "--attention-cors-origins", "*"), {"cors_origins": "*"}),
    ((*CAPTURE, "--attention-max-concurrent-capture", "10"), {"max_concurrent": 10}),
    ((*CAPTURE, "--radix-eviction-policy", "spectral"), {"spectral_radix": True}),
    ((*CAPTURE, "--spectral-weight", "0.7"), {}),
    ((*CAPTURE, "--spectral-retention-ratio", "0.3"), {}),
    (
        (*TRITON, "--attention-fingerprint-mode", "--radix-eviction-policy", "spectral", "--spectral-retention-ratio",
         "0.3", "--port", "30000"),
        {"fingerprint_mode": True, "spectral_radix": True},
    ),
    (
        (*CAPTURE, "--attention-disable-in-production"),
        {"disable_in_production": True, "enabled": False},
    ),
]  # fmt: skip
# What a machine without a GPU needs beside any of them, and what keeps the engine small.
SMALL = (
    "--device", "cpu", "--dtype", "float32", "--disable-overlap-schedule", "--mem-fraction-static", "0.5",
    "--context-length", "256", "--max-total-tokens", "512", "--max-running-requests", "2", *TWO_LAYERS,
)  # fmt: skip
# Programs that this version does not have.
MODULES = [
    ("sglang.srt.attention_sidecar", "--db", "./a.db", "--discovery-dir", "./artifacts", "--auto-reload-interval", "3"),
]

PARSER = """
import contextlib, io, json, msgspec, sys
sys.argv = ["sglang.launch_server", "--return-attention-tokens"]
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.server_args import prepare_server_args
from geomcli.server_patch.startup import options_of
found = []
for words in json.load(sys.stdin):
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options = options_of(prepare_server_args(words))
        found.append([msgspec.to_builtins(options), ""])
    except SystemExit as error:
        found.append([None, said.getvalue() or str(error.code)])
print(json.dumps(found))
"""
Parsed = dict[tuple[str, ...], tuple[dict[str, Any] | None, str]]


def environment() -> dict[str, str]:
    plugin = find_spec("geomcli.server_patch")
    assert plugin is not None
    assert plugin.origin is not None
    path = os.pathsep.join([str(Path(plugin.origin).parent / "cpu_shim"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "SGLANG_USE_CPU_ENGINE": "1", "GEOM_DEBUG": "0"}


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> Parsed:
    """What SGLang's parser, with the plugin's flags on it, makes of each line: our options, or what it says."""
    lines = [line for line, _ in ACCEPTED]
    given = json.dumps([["--model-path", MODEL, *line] for line in lines])
    done = subprocess.run(
        [sys.executable, "-P", "-c", PARSER],
        input=given, capture_output=True, text=True, env=environment(), cwd=tmp_path_factory.mktemp("parser"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    return {line: (options, said) for line, (options, said) in zip(lines, found, strict=True)}


@pytest.mark.parametrize(("line", "changed"), ACCEPTED, ids=[" ".join(line) for line, _ in ACCEPTED])
def test_a_line_of_the_specification_is_accepted(
    parsed: Parsed, line: tuple[str, ...], changed: dict[str, Any]
) -> None:
    options, said = parsed[line]
    assert options is not None, said
    expected = {**msgspec.json.decode(msgspec.json.encode(ServerOptions(enabled=True))), **changed}
    assert options == expected


@pytest.mark.parametrize("words", MODULES, ids=lambda words: words[0])
def test_a_program_that_is_not_there_is_named(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", *words], capture_output=True, text=True, env=environment(), cwd=tmp_path
    )
    assert done.returncode != 0
    assert f"No module named {words[0]}" in done.stderr


@pytest.mark.parametrize("line", [line for line, _ in ACCEPTED], ids=" ".join)
def test_geom_serve_takes_the_same_words(line: tuple[str, ...]) -> None:
    """Its own words stand before `--`, SGLang's behind."""
    ours: list[str] = []
    theirs: list[str] = []
    for word in line:
        if word.startswith("--"):
            attention = word.startswith(("--attention-", "--spectral-")) and word != "--attention-backend"
            taken = ours if attention or word in CAPTURE else theirs
        taken.append(word)
    command = [GEOM, "serve", MODEL, "--device", "cuda", "--dry-run", *ours, "--", *theirs]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    words = shlex.split(shown.stdout)
    assert [word for word in theirs if word not in words] == []
    given, made = (flags.options_from(reference.parser().parse_known_args(some)[0]) for some in (ours, words))
    assert msgspec.structs.replace(made, api_key=given.api_key) == given


@pytest.mark.engine
@pytest.mark.parametrize(("line", "changed"), STARTED, ids=[" ".join(line) for line, _ in STARTED])
def test_a_line_of_the_specification_starts_an_engine(
    tmp_path: Path, line: tuple[str, ...], changed: dict[str, Any]
) -> None:
    backend = () if "--attention-backend" in line else ("--attention-backend", "torch_native")
    port = int(line[line.index("--port") + 1]) if "--port" in line else free_port()
    meeting = machine.listening_port(port)
    own_port = () if meeting is None else ("--nccl-port", str(meeting))
    own_port += () if "--port" in line else ("--port", str(port))
    command = [
        sys.executable,
        "-P",
        "-m",
        "sglang.launch_server",
        "--model-path",
        str(models.path_of("smollm2")),
        *line,
    ]
    interpreted = {**environment(), "TRITON_INTERPRET": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with ready([*command, *own_port, *backend, *SMALL], tmp_path, port, interpreted) as server:
        document = server.get("/v1/attention/capabilities")
        answer = server.chat(max_tokens=3, ignore_eos=True, return_attention_tokens=True)
    assert document["backend"] == ("torch_native" if backend else "triton")
    found = answer["attention_tokens"]
    assert [entry["decode_step"] for entry in found] == [1, 2, 3]
    raw = not changed.get("fingerprint_mode")
    for entry in found:
        assert ("fingerprint" in entry, "token_positions" in entry) == (True, raw)
        if raw:
            # A prompt of fewer tokens than are asked for gives them all.
            assert 0 < len(entry["token_positions"]) <= changed.get("top_k", ServerOptions().top_k)
