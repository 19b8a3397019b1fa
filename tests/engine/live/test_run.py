"""`geom run` against the real engine: what goes to stdout, what to stderr, what is kept."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from geomcli.zones import ZONE_NAMES
from tests.conftest import GEOM
from tests.engine.harness import Server

pytestmark = pytest.mark.usefixtures("server")


def run(*arguments: str, env: dict[str, str], stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    source: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    return subprocess.run([GEOM, "run", *arguments], capture_output=True, text=True, env=env, timeout=120, **source)


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_jsonl_is_the_trace_and_nothing_else(home: dict[str, str]) -> None:
    done = run("Count to ten.", "--max-tokens", "20", "--jsonl", env=home)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = records(done.stdout)
    kinds = [r["record_type"] for r in found]
    assert kinds[:2] == ["header", "message"]
    assert kinds[-1] == "metrics"
    assert found[0]["version"] == "1.0"
    steps = [r for r in found if r["record_type"] == "step"]
    tokens = [r for r in found if r["record_type"] == "token"]
    metrics = found[-1]
    assert len(steps) == len(tokens) == metrics["tokens"]
    assert [t["index"] for t in tokens] == [s["tokenIndex"] for s in steps] == list(range(len(tokens)))
    assert metrics["zoneCounts"].keys() <= set(ZONE_NAMES)
    assert sum(metrics["zoneCounts"].values()) == sum("empty" not in s["flags"] for s in steps)
    assert metrics["attentionBytes"] == sum(s["bytes"] for s in steps)
    answer = next(r for r in found if r["record_type"] == "message" and r["role"] == "assistant")
    assert "".join(t["text"] for t in tokens).removesuffix("<|im_end|>") == answer["content"]
    prompt = "".join(steps[0]["prompt_tokens"])
    assert "Count to ten." in prompt


def test_what_was_kept_is_what_was_printed(home: dict[str, str]) -> None:
    done = run("Name a river.", "--max-tokens", "12", "--jsonl", env=home)
    trace_id = records(done.stdout)[0]["trace_id"]
    exported = subprocess.run([GEOM, "traces", "export", trace_id], capture_output=True, text=True, env=home)
    assert records(exported.stdout) == records(done.stdout)
    listed = subprocess.run([GEOM, "traces", "ls", "-q"], capture_output=True, text=True, env=home)
    assert listed.stdout.split() == [trace_id]
    show = [GEOM, "traces", "show", trace_id[:20], "--links", "16"]
    shown = subprocess.run(show, capture_output=True, text=True, env=home)
    assert "Name a river." in shown.stdout
    first = next(r for r in records(done.stdout) if r["record_type"] == "step")
    position = first["attention"]["token_positions"][0]
    assert f"{position} {json.dumps(first['prompt_tokens'][position])} 0." in shown.stdout


def test_plain_output_into_a_pipe_and_colours_on_a_terminal(home: dict[str, str]) -> None:
    plain = run("Count.", "--max-tokens", "16", env=home)
    assert plain.returncode == 0
    assert "\x1b" not in plain.stdout + plain.stderr
    coloured = run("Count.", "--max-tokens", "16", env={**home, "FORCE_COLOR": "1"})
    assert "\x1b[" in coloured.stdout
    stripped = re.sub(r"\x1b\[[0-9;]*m|[▂◆⟷≋░·]", "", coloured.stdout)
    assert stripped.strip() == plain.stdout.strip()
    quiet = run("Count.", "--max-tokens", "16", env={**home, "FORCE_COLOR": "1", "NO_COLOR": "1"})
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", quiet.stdout)
    assert re.search("[▂◆⟷≋░]", quiet.stdout), "the glyphs tell the zones without colours"
    for word in ("zones", "entropy", "drift", "bytes", "tok/s", "trace"):
        assert word in plain.stderr


def test_prompt_from_argument_and_pipe(home: dict[str, str]) -> None:
    both = run("Summarise:", "--max-tokens", "2", "--jsonl", env=home, stdin="A long text.\n")
    assert records(both.stdout)[1]["content"] == "Summarise:\n\nA long text."
    piped = run("--max-tokens", "2", "--jsonl", env=home, stdin="Only this.")
    assert records(piped.stdout)[1]["content"] == "Only this."
    neither = run("--no-stdin", env=home, stdin="Ignored.")
    assert neither.returncode == 2
    assert "there is no prompt" in neither.stderr


@pytest.mark.parametrize("capture", ["raw", "sketch", "fingerprint"])
def test_capture_modes_and_layers(home: dict[str, str], capture: str) -> None:
    done = run("Hi", "--max-tokens", "3", "--capture", capture, "--layers", "0", "--jsonl", "--no-save", env=home)
    steps = [r for r in records(done.stdout) if r["record_type"] == "step"]
    assert {s["mode"] for s in steps} == {capture}
    assert {s["layer_id"] for s in steps} == {0}
    assert not (Path(home["XDG_DATA_HOME"]) / "geom" / "traces.db").exists()


def test_a_refused_request_is_a_sentence_and_keeps_no_trace(home: dict[str, str]) -> None:
    done = run("Hi", "--top-k", "65", env=home)
    assert done.returncode == 2
    assert "top_k_attention must be 1..64, got 65" in done.stderr
    layers = run("Hi", "--layers", "5", env=home)
    assert layers.returncode == 2
    assert "attention_capture_layer_ids: 5 is not one of" in layers.stderr
    listed = subprocess.run([GEOM, "traces", "ls"], capture_output=True, text=True, env=home)
    assert listed.stdout == ""


def test_a_store_that_cannot_be_used_is_said_before_anything_is_asked(home: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x" * 5000)
    done = run("Hi", "--db", str(tmp_path / "file"), env=home)
    assert done.returncode == 1
    assert "cannot be opened" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupting_keeps_the_trace(home: dict[str, str], sign: signal.Signals) -> None:
    process = subprocess.Popen(
        [GEOM, "run", "Tell a long story.", "--max-tokens", "1500"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=home, stdin=subprocess.DEVNULL,
        start_new_session=True,
        # A shell's background jobs ignore SIGINT, nohup's SIGHUP, and this test may run in one.
        preexec_fn=lambda: signal.signal(sign, signal.SIG_DFL),  # noqa: PLW1509
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.read(200)
    os.kill(process.pid, sign)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    exported = subprocess.run([GEOM, "traces", "export", "last"], capture_output=True, text=True, env=home)
    found = records(exported.stdout)
    assert found[-1]["record_type"] == "metrics"
    assert found[-1]["error"] == "interrupted"
    assert sum(r["record_type"] == "step" for r in found) > 20


def test_a_reader_that_goes_away_leaves_a_whole_trace(home: dict[str, str]) -> None:
    done = subprocess.run(
        f"'{GEOM}' run 'Tell a long story.' --max-tokens 300 --jsonl | head -n 3",
        shell=True, capture_output=True, text=True, env=home, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr == ""
    assert len(records(done.stdout)) == 3
    exported = subprocess.run([GEOM, "traces", "export", "last"], capture_output=True, text=True, env=home)
    assert records(exported.stdout)[-1]["error"] == "the reader of the output went away"


@pytest.mark.parametrize("capture", ["raw", "sketch"])
def test_show_says_what_each_token_looked_at(home: dict[str, str], capture: str) -> None:
    assert run("Hi", "--max-tokens", "5", "--capture", capture, env=home).returncode == 0
    shown = subprocess.run([GEOM, "traces", "show", "--links", "2"], capture_output=True, text=True, env=home)
    assert shown.returncode == 0, shown.stderr
    rows = [line for line in shown.stdout.splitlines() if re.match(r"\s*\d+ +\"", line)]
    assert len(rows) == 5
    assert all(len(re.findall(r" [01]\.\d\d\b", row.split("looks")[-1])) >= 2 for row in rows), shown.stdout


def test_the_library_is_usable_without_the_command_line(server: Server) -> None:
    script = (
        "import asyncio, sys\n"
        "from geomcli import Client\n"
        "async def main():\n"
        "    async with Client(sys.argv[1]) as client:\n"
        "        assert (await client.capabilities())['supported']\n"
        "        messages = [{'role': 'user', 'content': 'Hi'}]\n"
        "        fields = {'return_attention_tokens': True, 'max_tokens': 4}\n"
        "        async for chunk in client.chat(messages, model=await client.model(), fields=fields):\n"
        "            for entry in chunk.entries: print(entry['decode_step'], entry['zone'])\n"
        "asyncio.run(main())\n"
        "assert 'torch' not in sys.modules and 'typer' not in sys.modules\n"
    )
    import sys

    done = subprocess.run([sys.executable, "-c", script, server.url], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["1", "2", "3", "4"]
