"""`geom run` against servers that say odd things: one sentence, an exit code, and what was received is kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from geomcli.cli import run as run_module
from geomcli.cli.output import marked
from geomcli.cli.summary import print_summary
from geomcli.errors import ExitCode
from geomcli.store import Store
from geomcli.trace import Trace
from tests.conftest import GEOM
from tests.stand_in import Answers, listening

CAPABILITIES: dict[str, Any] = {"supported": True, "modes": ["fingerprint"], "features": {}}
FINGERPRINT = [0.5] * 20


def event(text: str, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}}], **more}


def entry(step: int, token: str, **more: Any) -> dict[str, Any]:
    numbers = {"fingerprint": FINGERPRINT, "zone": "diffuse", "zone_confidence": 0.5, "drift": None, "bytes": 80}
    heads = {"layer_id": 0, "heads": {"seen": 1, "total": 1}, "mode": "fingerprint"}
    return {"decode_step": step, "token_id": step, "token": token, "prompt_len": 1, "flags": [], **numbers, **heads,
            **more}  # fmt: skip


@contextmanager
def answering(*events: Any, capabilities: Any = CAPABILITIES, model: str = "m") -> Iterator[str]:
    """A server whose chat streams these events, then ends; its base URL."""

    class Handler(Answers):
        def do_GET(self) -> None:
            known = {"/v1/models": {"data": [{"id": model}]}, "/v1/attention/capabilities": capabilities}
            self.send("application/json", json.dumps(known[self.path]))

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            lines = [f"data: {e if isinstance(e, str) else json.dumps(e)}\n\n" for e in events]
            self.send("text/event-stream", "".join(lines))

    with listening(Handler) as url:
        yield url


def geom(*arguments: str | bytes, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [GEOM, *arguments],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=env,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


def exported(env: dict[str, str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in geom("traces", "export", "last", env=env).stdout.splitlines()]


GOOD = event("a", attention_tokens=[entry(1, "a")])


@pytest.mark.parametrize(
    "odd",
    [
        {"error": {"message": "bad [/INST]"}},
        {"choices": [None]},
        {"choices": 5},
        event("b", attention_tokens=5),
        event("b", attention_tokens=[1]),
        event("b", attention_tokens=[{"decode_step": None}]),
        event("b", attention_tokens=[entry(2, "b", think_phase="musing")]),
        event("b", attention_tokens=[entry(2, "b", fingerprint=[])]),
        event("b", attention_tokens=[entry(2, "b", heads=[1])]),
        event("b", attention_tokens=[entry(10**30, "b")]),
        event("b", usage={"completion_tokens": None}),
        {"choices": [{"delta": {"content": 7}}]},
    ],
)
def test_an_odd_event_is_one_sentence_and_what_came_before_is_kept(home: dict[str, str], odd: Any) -> None:
    with answering(GOOD, odd, "[DONE]") as url:
        done = geom("run", "Hi", "--base-url", url, env=home)
    assert done.returncode == ExitCode.UNREACHABLE, done.stderr
    assert done.stdout == "a\n"
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("geom: ")]
    assert len(said) == 1
    assert said[0].startswith("geom: the server ")
    records = exported(home)
    assert records[-1]["record_type"] == "metrics"
    assert records[-1]["error"] == said[0].removeprefix("geom: ")
    assert [r["token"] for r in records if r["record_type"] == "step"] == ["a"]


def test_a_bug_keeps_what_was_received(home: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(run_module.TokenPrinter, "show", broken)
    db = tmp_path / "t.db"
    with answering(GOOD, "[DONE]") as url, pytest.raises(RuntimeError, match="a bug"):
        run_module.run("Hi", base_url=url, db=db, stdin=False)
    with Store(db) as store:
        records = list(store.records(store.find("last")))
    assert records[-1]["error"] == "broke off"


def test_capabilities_that_cannot_be_read_are_a_sentence(home: dict[str, str]) -> None:
    odd_ones: tuple[dict[str, Any], ...] = (
        {"modes": 5}, {"features": [1]}, {"eviction": True}, {"eviction": {}}, {"eviction": {"retention_ratio": "x"}},
    )  # fmt: skip
    for odd in ({"supported": True, **more} for more in odd_ones):
        with answering(capabilities=odd) as url:
            done = geom("run", "Hi", "--base-url", url, env=home)
        assert done.returncode == ExitCode.UNREACHABLE
        assert "capabilities that geom cannot read" in done.stderr
        assert "Traceback" not in done.stderr


def test_nothing_of_a_server_or_a_model_acts_as_markup_or_on_the_terminal(home: dict[str, str]) -> None:
    wild = "[/INST] :smile: [red]\x1b]0;t\x07\x9b2J"
    odd = entry(1, wild, zone="[/z]", mode="[/m]", compass="[/c]", flags=["[/f]\x1b"])
    end = {"choices": [{"delta": {}, "finish_reason": "[/stop]\x1b"}], "usage": {"completion_tokens": 1}}
    with answering(event(wild, attention_tokens=[odd]), end, "[DONE]", model="m[/]\x1b\x9b") as url:
        done = geom("run", wild, "--base-url", url, env=home)
    assert done.returncode == 0, done.stderr
    for shown in ("[/z]", "[/m]", "[/f]␛", "[/stop]␛"):
        assert shown in done.stderr
    listed, table = geom("traces", "ls", env=home), geom("traces", "show", env=home)
    for shown in (done.stderr, listed.stdout, table.stdout, table.stderr):
        assert not {"\x1b", "\x07", "\x9b"} & set(shown)
    assert "m[/]␛�" in listed.stdout
    assert "[/INST] :smile: [red]␛]0;t␇�2J" in listed.stdout
    assert table.returncode == 0, table.stderr
    assert "user [/INST] :smile: [red]␛]0;t␇�2J" in table.stdout
    assert "[/z]" in table.stdout
    assert "[/f]␛" in table.stdout


def test_a_summary_of_any_stored_values() -> None:
    print_summary(Trace([{"record_type": "metrics", "error": "bad [/INST]"}]))
    assert marked("[/x]\x7f") == "\\[/x]␡"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_of_another_encoding(home: dict[str, str], tmp_path: Path, encoding: str) -> None:
    env = {**home, "PYTHONIOENCODING": encoding}
    plain = {**env, "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    with answering(event("→🦜", attention_tokens=[entry(1, "→🦜")]), "[DONE]") as url:
        done = geom("run", "→", "--base-url", url, env=env)
        assert done.returncode == 0, done.stderr
        assert "\\u2192\\U0001f99c" in done.stdout
        for arguments in (["traces", "ls"], ["traces", "show"]):
            shown = geom(*arguments, env=env)
            assert shown.returncode == 0, shown.stderr
            assert "\\u2192" in shown.stdout
        # JSON is UTF-8, on a terminal of any encoding and in a file.
        piped = geom("run", "→", "--base-url", url, "--jsonl", env=env)
        assert json.loads(piped.stdout.splitlines()[2])["text"] == "→🦜"
    assert json.loads(geom("traces", "ls", "--json", env=env).stdout)[0]["title"] == "→"
    out = tmp_path / "x.jsonl"
    assert geom("traces", "export", "last", "-o", str(out), env=plain).returncode == 0
    assert out.read_text(encoding="utf-8") == geom("traces", "export", "last", env=env).stdout


def test_after_the_answer_a_kill_reaches_the_command_again() -> None:
    def ours(_signal: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    async def answer() -> ExitCode:
        return ExitCode.OK

    before = signal.signal(signal.SIGTERM, ours)
    try:
        assert run_module._await(answer()) == ExitCode.OK
        assert signal.getsignal(signal.SIGTERM) is ours
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_store_is_opened_before_the_engine_is_started(home: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x" * 5000)
    done = geom("run", "Hi", "--serve", "--db", str(tmp_path / "file"), env=home)
    assert done.returncode == 1
    assert "cannot be opened" in done.stderr
    assert "Starting" not in done.stderr
