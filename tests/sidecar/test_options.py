"""What `geom sidecar` is started with: named where it cannot be."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from geomcli.sidecar.counters import Counters
from geomcli.sidecar.receiver import Receiver
from tests.conftest import GEOM
from tests.sidecar.running import sidecar


def refused(folder: Path, *flags: str) -> str:
    """stderr on one line, of a start that fails with exit code 2."""
    command = [GEOM, "sidecar", "--db", folder / "s.db", "--zmq-bind", "tcp://127.0.0.1:*", "--port", "0", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return " ".join(done.stderr.replace("│", " ").split())


@contextmanager
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield int(other.getsockname()[1])


@pytest.mark.parametrize("flag", ["--recluster-interval", "--auto-reload-interval"])
@pytest.mark.parametrize("value", ["inf", "nan", "1e12", "0"])
def test_seconds_are_finite(tmp_path: Path, flag: str, value: str) -> None:
    said = refused(tmp_path, flag, value)
    assert flag in said
    assert "up to a year" in said or value in ("0", "nan")


def test_an_angle_is_a_number(tmp_path: Path) -> None:
    assert "--online-threshold" in refused(tmp_path, "--online", "--online-threshold", "nan")


def test_the_buffer_has_a_ceiling(tmp_path: Path) -> None:
    said = refused(tmp_path, "--buffer", str(10**12))
    assert "--buffer" in said
    assert "200000" in said


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with taken() as port:
        said = refused(tmp_path, "--port", str(port))
        assert f"127.0.0.1:{port}" in said
        assert "--host and --port" in said
        assert f"--zmq-bind tcp://127.0.0.1:{port}" in refused(tmp_path, "--zmq-bind", f"tcp://127.0.0.1:{port}")


@pytest.mark.parametrize("host", ["a..b", "x" * 70, "[", "::1:2:3:4:5:6:7:8:9"])
def test_a_host_that_is_none(tmp_path: Path, host: str) -> None:
    assert "--host" in refused(tmp_path, "--host", host, "--api-key", "k")


@pytest.mark.parametrize(
    "url",
    ["ipc://*", "ipc://", "tcp://127.0.0.1", "tcp://127.0.0.1:x", "inproc://here", "udp://127.0.0.1:9", "://", ""],
)
def test_an_address_that_zmq_cannot_have(tmp_path: Path, url: str) -> None:
    assert f"--zmq-bind {url}".strip() in refused(tmp_path, "--zmq-bind", url)


@pytest.mark.parametrize("port", ["99999", "65536", "-1"])
def test_a_port_that_none_is(tmp_path: Path, port: str) -> None:
    assert "0..65535" in refused(tmp_path, "--zmq-bind", f"tcp://127.0.0.1:{port}")


def test_a_file_is_not_taken_for_a_socket(tmp_path: Path) -> None:
    file = tmp_path / "letters.txt"
    file.write_text("kept")
    assert "no socket" in refused(tmp_path, "--zmq-bind", f"ipc://{file}")
    assert file.read_text() == "kept"


def test_nobody_s_socket_is_taken_from_him(tmp_path: Path) -> None:
    path = tmp_path / "in.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        assert "somebody listens there" in refused(tmp_path, "--zmq-bind", f"ipc://{path}")
    with socket.socket(socket.AF_UNIX) as busy:  # its line of those who wait is full
        busy.bind(str(tmp_path / "busy.sock"))
        busy.listen(0)
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.connect(str(tmp_path / "busy.sock"))
        assert "somebody listens there" in refused(tmp_path, "--zmq-bind", f"ipc://{tmp_path}/busy.sock")
        for one in waiting:
            one.close()
    # Closed, it is what a process that was killed has left.
    receiver = Receiver(f"ipc://{path}", Counters(), lambda _messages: None)
    assert receiver.close()


def test_a_key_of_spaces_is_none(tmp_path: Path) -> None:
    assert "nothing but spaces" in refused(tmp_path, "--api-key", "  ")


def test_a_threshold_is_of_online_clusters(tmp_path: Path) -> None:
    assert "--online" in refused(tmp_path, "--online-threshold", "0.4")


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_ipv6(tmp_path: Path, host: str) -> None:
    with sidecar(tmp_path, "--host", host, "--zmq-bind", "tcp://[::1]:*") as running:
        assert running.url.startswith("http://[::1]:")
        assert running.zmq_url.startswith("tcp://[::1]:")
        assert running.get("/health")["status"] == "ok"
        assert "no key" not in (tmp_path / "sidecar.log").read_text()


def test_beyond_loopback_zmq_has_no_key_and_that_is_said(tmp_path: Path) -> None:
    with sidecar(tmp_path, "--zmq-bind", "tcp://*:*") as running:
        assert running.get("/health")["status"] == "ok"
        said = (tmp_path / "sidecar.log").read_text()
        assert " ".join(said.split()).count("has no key: whoever reaches the port can write") == 1
