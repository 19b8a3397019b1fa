"""What happens when something dies or breaks: the client, the engine, a hook, a hook's body."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import GEOM
from tests.engine.harness import TWO_LAYERS, Server, chat_body, end, launch, second_plugin, served, sse

ASK = {"return_attention_tokens": True}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with served(tmp_path / "engine", "--", *TWO_LAYERS) as running:
        yield running


def start_long_run(server: Server, home: dict[str, str], db: Path) -> subprocess.Popen[str]:
    command = [str(GEOM), "run", "Tell a very long story.", "--max-tokens", "6000", "--base-url", server.url]
    return subprocess.Popen(
        [*command, "--db", str(db)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=home
    )


def committed(db: Path) -> int:
    if not db.exists():
        return 0
    with sqlite3.connect(f"file:{db}?mode=ro", uri=True) as connection:
        try:
            return int(connection.execute("SELECT count(*) FROM steps").fetchone()[0])
        except sqlite3.OperationalError:
            return 0


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def stored(home: dict[str, str], db: Path) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """The trace list, and the records of the newest trace, as the command line gives them."""
    listed = subprocess.run([GEOM, "traces", "ls", "--json", "--db", db], capture_output=True, env=home, check=True)
    exported = subprocess.run([GEOM, "traces", "export", "last", "--db", db], capture_output=True, env=home, check=True)
    return json.loads(listed.stdout), [json.loads(line) for line in exported.stdout.splitlines()]


def test_kill_9_of_the_client_keeps_what_was_committed(server: Server, home: dict[str, str], tmp_path: Path) -> None:
    db = tmp_path / "traces.db"
    run = start_long_run(server, home, db)
    wait_for(lambda: committed(db) > 40)
    run.send_signal(signal.SIGKILL)
    run.wait()
    before = committed(db)
    traces, records = stored(home, db)
    assert [t["complete"] for t in traces] == [0]
    assert sum(r["record_type"] == "step" for r in records) == before > 40
    assert [r["tokenIndex"] for r in records if r["record_type"] == "step"] == list(range(before))
    # The engine noticed, and serves the next one.
    assert server.chat("Hi", **ASK)["attention_tokens"]
    shown = subprocess.run([GEOM, "traces", "show", "--db", db], capture_output=True, text=True, env=home, check=True)
    assert "cut off" in shown.stderr


def test_kill_9_of_the_engine_ends_the_run_with_a_sentence(
    server: Server, home: dict[str, str], tmp_path: Path
) -> None:
    db = tmp_path / "traces.db"
    run = start_long_run(server, home, db)
    wait_for(lambda: committed(db) > 40)
    os.kill(server.engine_pid(), signal.SIGKILL)
    out, err = run.communicate(timeout=30)
    assert run.returncode == 3, err
    assert "Traceback" not in out + err
    assert "geom: " in err
    assert "try: geom serve" in err.splitlines()[-1]
    traces, records = stored(home, db)
    assert [t["complete"] for t in traces] == [1]
    steps = [r for r in records if r["record_type"] == "step"]
    assert len(steps) > 40
    assert records[-1]["record_type"] == "metrics"
    assert records[-1]["error"]
    # `geom serve` noticed too: it ends by itself and says so.
    assert server.process.wait(30) == 3
    assert "the engine ended" in server.output.read_text()


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (
            """
            from sglang.srt.model_executor.model_runner import ModelRunner
            del ModelRunner.sample
            """,
            "ModelRunner.sample (AttributeError",
        ),
        (
            """
            from sglang.srt.managers.tokenizer_manager import TokenizerManager
            async def generate_request(self, obj):
                yield None
            TokenizerManager.generate_request = generate_request
            """,
            "TokenizerManager.generate_request has no parameter request",
        ),
        (
            """
            if in_child:
                from sglang.srt.model_executor.model_runner import ModelRunner
                del ModelRunner.sample
            """,
            "these hooks did not apply: sglang.srt.model_executor.model_runner.ModelRunner.sample",
        ),
        (
            """
            if in_child:
                import sys
                sys.modules["geomcli.server_patch.hooks"] = None
            """,
            "the plugin did not load in the scheduler process",
        ),
    ],
    ids=["target-gone", "parameter-gone", "gone-in-scheduler", "not-loaded-in-scheduler"],
)
def test_a_hook_that_does_not_apply_stops_the_server(tmp_path: Path, body: str, sentence: str) -> None:
    environment = second_plugin(tmp_path / "plugin", body)
    process, output, log, _ = launch(tmp_path / "engine", "--", *TWO_LAYERS, environment=environment)
    try:
        assert process.wait(180) == 3, output.read_text()
    finally:
        end(process)
    said = output.read_text()
    assert sentence in said, said + log.read_text()[-2000:]
    assert "Traceback" not in said
    assert str(log) in said


def test_a_hook_body_that_raises_flags_the_entry_and_the_text_goes_on(tmp_path: Path) -> None:
    with served(tmp_path / "sound", "--", *TWO_LAYERS) as server:
        sound = server.chat("Count.", max_tokens=12, ignore_eos=True, **ASK)
    environment = second_plugin(
        tmp_path / "plugin",
        """
        calls = {"statistics": 0, "entries": 0}
        def failing(original, name, every):
            def wrapped(*args, **kwargs):
                calls[name] += 1
                if calls[name] % every == 0:
                    raise RuntimeError("a fault put in by a test")
                return original(*args, **kwargs)
            return wrapped
        if in_child:
            from geomcli.server_patch import native
            native.row_statistics = failing(native.row_statistics, "statistics", 3)
        else:
            import types
            from geomcli.server_patch import entries, worker_client
            worker_client.sys = types.SimpleNamespace(executable="/no/such/python")
            entries.classify_many = failing(entries.classify_many, "entries", 5)
        """,
    )
    with served(tmp_path / "faulty", "--", *TWO_LAYERS, environment=environment) as server:
        faulty = server.chat("Count.", max_tokens=12, ignore_eos=True, **ASK)
        document = httpx.get(server.url + "/v1/attention/capabilities").json()
        assert end(server.process) == 130
        log = server.log.read_text()
        assert log.count("a fault put in by a test") >= 5
        assert "could not be started" in log
    assert faulty["choices"][0]["message"]["content"] == sound["choices"][0]["message"]["content"]
    entries = faulty["attention_tokens"]
    assert [e["decode_step"] for e in entries] == list(range(1, 13))
    failed = [e for e in entries if "error" in e["flags"]]
    # A layer of the steps 3, 6, 9 and 12 had no statistics; of the others' entries, built in the main process since the
    # one for them did not start, the fifth could not be built.
    assert [e["decode_step"] for e in failed] == [3, 6, 7, 9, 12]
    assert all("fingerprint" not in e for e in failed)
    assert document["counters"]["errors"] == 5
    for mine, reference in zip(entries, sound["attention_tokens"], strict=True):
        if mine not in failed:
            assert mine["topk_logits"] == pytest.approx(reference["topk_logits"], abs=1e-5)


def test_faults_between_sampling_and_the_answer_lose_no_token_and_no_server(tmp_path: Path) -> None:
    environment = second_plugin(
        tmp_path / "plugin",
        """
        if in_child:
            from sglang.srt.managers import auxiliary_output
            from geomcli.server_patch import publisher, request_state
            def failing(module, name, turn, every):
                original, calls = getattr(module, name), [0]
                def wrapped(*args, **kwargs):
                    calls[0] += 1
                    if calls[0] % every == turn:
                        raise RuntimeError("a fault put in by a test")
                    return original(*args, **kwargs)
                setattr(module, name, wrapped)
            failing(auxiliary_output, "append_auxiliary_output", 2, 12)
            failing(publisher.Publisher, "reserve", 4, 11)
            failing(publisher.Publisher, "publish", 5, 10)  # not reached where a step has no room
            failing(request_state, "RequestState", 0, 3)
        """,
    )
    fields = {"max_tokens": 12, "ignore_eos": True, **ASK}
    with served(tmp_path / "faulty", "--", *TWO_LAYERS, environment=environment) as server:
        whole = server.chat("Count.", **fields)
        events = sse(server.post("/v1/chat/completions", chat_body("Count.", stream=True, **fields)))
        unread = server.chat("Count.", **fields)
        document = server.get("/v1/attention/capabilities")
        assert server.chat("Count.", max_tokens=12, ignore_eos=True)["choices"] == whole["choices"]
    streamed = [entry for event in events for entry in event.get("attention_tokens", [])]
    for entries in (whole["attention_tokens"], streamed, unread["attention_tokens"]):
        assert [e["decode_step"] for e in entries] == list(range(1, 13))
    for entries in (whole["attention_tokens"], streamed):
        assert [e["decode_step"] for e in entries if "error" in e["flags"]] == [2, 5, 7]
        assert all(e["token_id"] is not None for e in entries)
    assert all(e["flags"] == ["error"] for e in unread["attention_tokens"])
    assert document["counters"]["errors"] == 3 + 3 + 12
    text = "".join(c["delta"].get("content") or "" for event in events for c in event["choices"])
    assert text == whole["choices"][0]["message"]["content"] == unread["choices"][0]["message"]["content"]
