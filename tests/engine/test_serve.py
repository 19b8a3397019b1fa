"""`geom serve` as a person meets it: a second start, a taken port, Ctrl-C, SGLang's own refusals, `--serve`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from tests import openapi
from tests.conftest import GEOM
from tests.engine.harness import TWO_LAYERS, end, launch, served, wait_until_ready


def processes_of_group(group: int) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True)
    rows = [line.split(None, 2) for line in listed.stdout.splitlines()]
    return [row[2] for row in rows if int(row[0]) == group and not row[1].startswith("Z")]


@pytest.mark.parametrize(
    ("sign", "times"),
    [(signal.SIGINT, 1), (signal.SIGINT, 8), (signal.SIGTERM, 1), (signal.SIGKILL, 1)],
    ids=["Ctrl-C", "impatient Ctrl-C", "SIGTERM", "SIGKILL"],
)
def test_every_process_ends_with_geom_serve(tmp_path: Path, sign: signal.Signals, times: int) -> None:
    process, output, _, port = launch(tmp_path, "--", *TWO_LAYERS)
    wait_until_ready(process, output)
    children = subprocess.run(["ps", "--ppid", str(process.pid), "-o", "pid="], capture_output=True, text=True)
    group = int(children.stdout.split()[0])
    assert len(processes_of_group(group)) >= 3  # server, scheduler, detokenizer

    # A second start on the same port says what is there and what to do; the first one goes on.
    second = subprocess.run(
        [GEOM, "serve", "--port", str(port)],
        capture_output=True, text=True, env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
    )  # fmt: skip
    assert second.returncode == 2
    assert f"an engine of geom already serves smollm2 on port {port} (pid {group})" in second.stderr
    assert re.search(r"geom serve smollm2 --port \d+", second.stderr)
    assert httpx.get(f"http://127.0.0.1:{port}/v1/attention/capabilities").status_code == 200

    for _ in range(times):
        process.send_signal(sign)
        time.sleep(0.1)
    assert process.wait(20) == (-signal.SIGKILL if sign == signal.SIGKILL else 130)
    deadline = time.monotonic() + 20
    while processes_of_group(group):
        assert time.monotonic() < deadline, processes_of_group(group)
        time.sleep(0.2)
    if sign != signal.SIGKILL:
        assert not list(tmp_path.rglob("engine-*.json"))
    assert "Traceback" not in output.read_text()


def test_a_server_with_a_key(tmp_path: Path) -> None:
    with served(tmp_path, "--", *TWO_LAYERS, "--api-key", "secret") as server:
        assert httpx.get(server.url + "/v1/attention/capabilities").status_code == 401
        openapi.conforms(server.url, tmp_path, "Authorization: Bearer secret", least=5)
        command = [GEOM, "run", "Hi", "--max-tokens", "3", "--base-url", server.url, "--no-save"]
        refused = subprocess.run(command, capture_output=True, text=True)
        assert refused.returncode == 2
        assert "wants a key" in refused.stderr
        proxied = {**os.environ, "GEOM_API_KEY": "secret", "HTTP_PROXY": "http://127.0.0.1:9"}
        assert subprocess.run(command, capture_output=True, text=True, env=proxied).returncode == 0


def test_what_sglang_refuses_is_said_in_one_line(tmp_path: Path) -> None:
    for arguments, sentence in (
        (["--", "--no-such-flag", "1"], "unrecognized arguments: --no-such-flag"),
        (["--attention-capture-layers", "99"], "--attention-capture-layers: layer ids must be 0..1, got 99"),
        (["--", "--attention-backend", "triton"], "start with --attention-backend torch_native"),
        (["--", "--pp-size", "2"], "pipeline parallelism; leave --pp-size out"),
    ):
        tail = [] if "--" in arguments else ["--"]
        process, output, log, _ = launch(tmp_path / sentence[:12].strip("-"), *arguments, *tail, *TWO_LAYERS)
        try:
            assert process.wait(180) == 3, output.read_text()
        finally:
            end(process)
        assert sentence in output.read_text(), output.read_text() + log.read_text()[-3000:]
        assert "Traceback" not in output.read_text()


def test_run_serve_starts_the_default_model_and_ends_it(home: dict[str, str]) -> None:
    run = subprocess.run(
        [GEOM, "run", "--serve", "What is the capital of France?", "--max-tokens", "12"],
        capture_output=True, text=True, env=home, timeout=240,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "Paris" in run.stdout
    assert "Stopping the engine" in run.stderr
    assert not list(Path(home["XDG_STATE_HOME"]).rglob("engine-*.json"))
    shown = subprocess.run([GEOM, "traces", "show"], capture_output=True, text=True, env=home)
    assert '" Paris"' in shown.stdout
    assert '"<|im_start|>"' in shown.stdout
