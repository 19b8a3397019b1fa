"""The command that is copied asks for the same answer: it is run, and the request that it sends is compared."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from geomcli.cli import application
from geomcli.cli.run import attention_fields
from geomcli.errors import GeomError, TraceError
from geomcli.reproduction import command, curl_command, request_body, run_command, token_json
from geomcli.store import Store
from geomcli.trace import Trace
from tests.conftest import GEOM
from tests.library.made_traces import LOCAL, entry, records
from tests.stand_in import Answers, listening

CAPABILITIES: dict[str, Any] = {
    "supported": True,
    "modes": ["raw", "sketch", "fingerprint"],
    "features": {"prompt_tokens": True, "moe_routing": False, "head_stats": True, "logit_stats": True},
}
EVICTING = {**CAPABILITIES, "eviction": {"retention_ratio": 0.8}}
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
prompts = texts.filter(lambda t: t.strip() != "")
numbers = st.floats(0, 2, allow_nan=False)


class Recorder(Answers):
    """Keeps every request body and answers one token."""

    bodies: list[Any] = []  # noqa: RUF012
    capabilities = CAPABILITIES

    def do_GET(self) -> None:
        known = {"/v1/models": {"data": [{"id": "m"}]}, "/v1/attention/capabilities": self.capabilities}
        self.send("application/json", json.dumps(known[self.path]))

    def do_POST(self) -> None:
        self.bodies.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
        event = {"choices": [{"index": 0, "delta": {"content": "a"}}], "attention_tokens": [entry(1, "a", LOCAL)]}
        self.send("text/event-stream", f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with listening(Recorder) as url:
        yield url


def sent(line: str, db: Path) -> Any:
    """The request that a `geom …` line sends, read by the real parser of the command line."""
    Recorder.bodies.clear()
    words = shlex.split(line)
    assert words[0] == "geom"
    before = os.environ.get("GEOM_DB")
    os.environ["GEOM_DB"] = str(db)
    try:
        application()(args=words[1:], standalone_mode=False)
    finally:
        if before is None:
            del os.environ["GEOM_DB"]
        else:
            os.environ["GEOM_DB"] = before
    ((path, body),) = Recorder.bodies
    assert path == "/v1/chat/completions"
    return body


def words_of_a_shell(line: str) -> list[str]:
    """What a POSIX shell makes of a `curl …` line."""
    script = 'curl() { for word in "$@"; do printf \'%s\\0\' "$word"; done; }\n' + line
    done = subprocess.run(["sh", "-c", script], capture_output=True, check=True, env={"GEOM_API_KEY": "k y"})
    return done.stdout.decode().split("\0")[:-1]


def trace_of(messages: list[Any], capture: dict[str, Any], *, model: str = "m", end: bool = True) -> Trace:
    return Trace(records([entry(1, "a", LOCAL)], messages=messages, capture=capture, model=model, end=end))


def fields_of_run(**asked: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {"capture": None, "top_k": None, "layers": None, "derotate": False}
    capabilities = EVICTING if asked.get("retention") else CAPABILITIES
    return attention_fields(capabilities, **{**defaults, **asked})


ASKED = {**fields_of_run(), "max_tokens": 5, "temperature": 0.5}


@st.composite
def asked_by_run(draw: Any) -> tuple[list[Any], dict[str, Any], str]:
    """Messages, fields and model as `geom run` can make them."""
    mode = draw(st.sampled_from([None, "raw", "sketch", "fingerprint"]))
    raw = mode in (None, "raw")
    retention = draw(st.none() | st.floats(0, 0.8, exclude_min=True))
    fields = fields_of_run(
        capture=mode,
        top_k=draw(st.none() | st.integers(-1, 64)) if raw else None,
        layers=draw(st.none() | st.lists(st.integers(-2, 40), min_size=1, max_size=3)),
        derotate=draw(st.booleans()) and raw and not retention,
        statistics=draw(st.booleans()) and not retention,
        retention=retention,
    )
    sampling = {"max_tokens": draw(st.integers(1, 2**31 - 1)), "temperature": draw(numbers | st.integers(0, 2))}
    if draw(st.booleans()):
        sampling["top_p"] = draw(st.floats(0, 1))
    messages = [{"role": "user", "content": draw(prompts)}]
    if draw(st.booleans()):
        messages.insert(0, {"role": "system", "content": draw(texts)})
    return messages, {**fields, **sampling}, draw(texts)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=asked_by_run(), end=st.booleans())
@example(asked=([{"role": "user", "content": "--help"}], ASKED, "-m"), end=True)
@example(asked=([{"role": "system", "content": "-s 'x' $(y)\n`z`"}, {"role": "user", "content": "\"it's\" \\ -- !"}],
                {**ASKED, "temperature": 1e-7}, "m"), end=False)  # fmt: skip
def test_geom_run_sends_the_same_request(
    server: str, tmp_path: Path, asked: tuple[list[Any], dict[str, Any], str], end: bool
) -> None:
    messages, capture, model = asked
    trace = trace_of(messages, capture, model=model, end=end)
    line = run_command(trace, base_url=server)
    assert line is not None
    assert command(trace, base_url=server) == line
    db = tmp_path / f"{time.monotonic_ns()}.db"
    with pytest.MonkeyPatch.context() as patch:
        if "spectral_retention_ratio" in capture:
            patch.setattr(Recorder, "capabilities", EVICTING)
        body = sent(line, db)
    assert body == request_body(trace)
    assert body["messages"] == messages
    # The trace that the command leaves is asked for by the same command.
    with Store(db) as store:
        again = Trace(store.records(store.find("last")))
    assert run_command(again, base_url=server) == line


def test_by_the_installed_command_and_a_real_shell(server: str, home: dict[str, str]) -> None:
    capture = {**fields_of_run(capture="sketch"), "max_tokens": 5, "temperature": 0.7}
    trace = trace_of([{"role": "user", "content": "it's $HOME"}], capture)
    line = run_command(trace, base_url=server)
    Recorder.bodies.clear()
    done = subprocess.run(["sh", "-c", str(line)], env={**home, "PATH": f"{GEOM.parent}:{os.environ['PATH']}"},
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert Recorder.bodies == [("/v1/chat/completions", request_body(trace))]


any_json = (
    st.none() | st.booleans() | st.integers(-5, 5) | numbers | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
)


@settings(max_examples=60)
@given(
    messages=st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "system", "assistant"]), "content": st.text(max_size=12)},
            optional={"name": st.text(max_size=3)},
        ),
        min_size=1,
        max_size=3,
    ),
    capture=st.dictionaries(
        st.sampled_from(["seed", "stop", "max_tokens", "top_p", "attention_mask_prefix"]), any_json
    ),
)
def test_curl_sends_any_request(messages: list[Any], capture: dict[str, Any]) -> None:
    trace = trace_of(messages, capture)
    words = words_of_a_shell(curl_command(trace, base_url="http://h:1/"))
    assert words[:2] == ["-N", "http://h:1/v1/chat/completions"]
    body = json.loads(words[words.index("--data-raw") + 1])
    assert body == request_body(trace)
    assert body["messages"] == messages
    assert {name: body[name] for name in capture} == capture


@pytest.mark.parametrize(
    ("messages", "capture"),
    [
        ([{"role": role, "content": "a"} for role in ("user", "assistant", "user")], {}),
        ([{"role": "user", "content": "a", "name": "n"}], {}),
        ([{"role": "user", "content": "  "}], {}),
        ([{"role": "user", "content": "a\0b"}], {}),
        ([{"role": "user", "content": "a\ud800"}], {}),
        ([{"role": "system", "content": ""}, {"role": "user", "content": "a"}], {}),
        (None, {"seed": 3}),
        (None, {"attention_mask_prefix": 4}),
        (None, {"temperature": -1}),
        (None, {"temperature": float("1e999")}),
        (None, {"max_tokens": True}),
        (None, {"max_tokens": 0}),
        (None, {"top_p": 1.5}),
        (None, {"attention_fingerprint_only": True}),
        (None, {"attention_sketch_mode": False}),
        (None, {"attention_capture_layer_ids": []}),
        (None, {"attention_derotate": False}),
        *((None, {"spectral_retention_ratio": odd}) for odd in (0, 1.5, True, "x")),
        (None, {"return_attention_tokens": False}),
    ],
)  # fmt: skip
def test_what_geom_run_cannot_say_is_left_to_curl(messages: Any, capture: dict[str, Any]) -> None:
    assert run_command(trace_of([{"role": "user", "content": "a"}], ASKED)) is not None
    trace = trace_of(messages or [{"role": "user", "content": "a"}], {**ASKED, **capture})
    assert run_command(trace) is None
    assert command(trace).startswith("curl -N http://127.0.0.1:30000/v1/chat/completions ")


@pytest.mark.parametrize(
    "missing", ["max_tokens", "temperature", "return_attention_tokens", "attention_fingerprint_mode"]
)
def test_a_field_that_geom_run_always_sends_has_to_be_there(missing: str) -> None:
    fields = {name: value for name, value in ASKED.items() if name != missing}
    assert run_command(trace_of([{"role": "user", "content": "a"}], fields)) is None


def test_keys_are_read_and_not_written() -> None:
    line = curl_command(trace_of([{"role": "user", "content": "a"}], {}), keys=True)
    assert "$GEOM_API_KEY" in line
    words = words_of_a_shell(line)
    assert "Authorization: Bearer k y" in words
    assert "X-Attention-Key: " in words


def test_a_trace_without_a_prompt_has_no_request() -> None:
    with pytest.raises(TraceError, match="holds no prompt"):
        command(Trace([{"record_type": "header", "trace_id": "t", "model": "m", "version": "1.0"}]))


def test_a_token_as_json() -> None:
    trace = Trace(records([entry(1, "a"), entry(2, "é", LOCAL, more=[1])], trace_id="t1"))
    document = json.loads(token_json(trace, 1))
    assert (document["trace_id"], document["model"]) == ("t1", "m")
    assert document["token"] == {"index": 1, "text": "é", "segmentId": "assistant-1-main", "tokenId": 233}
    assert document["steps"][0]["more"] == [1]
    assert document["steps"][0]["zone"] == "syntax_floor"
    assert document["segment"]["type"] == "assistant_main"
    assert "é" in token_json(trace, 1)
    with pytest.raises(TraceError, match="no token #2"):
        token_json(trace, 2)


@pytest.mark.parametrize(
    ("capabilities", "asked", "said"),
    [
        (CAPABILITIES, {"retention": 0.5}, "evicts nothing"),
        (EVICTING, {"retention": 0.9}, "--spectral-retention-ratio must be above 0 and at most 0.8"),
        (EVICTING, {"retention": 0.0}, "--spectral-retention-ratio must be"),
        (EVICTING, {"retention": math.nan}, "--spectral-retention-ratio must be"),
        (EVICTING, {"statistics": True}, "--stats cannot be had"),
        (EVICTING, {"derotate": True}, "--derotate cannot be had"),
    ],
)
def test_what_a_server_cannot_do_beside_eviction_is_said_by_its_option(
    capabilities: dict[str, Any], asked: dict[str, Any], said: str
) -> None:
    defaults: dict[str, Any] = {"capture": None, "top_k": None, "layers": None}
    with pytest.raises(GeomError, match=re.escape(said)):
        attention_fields(capabilities, **defaults, **asked)
