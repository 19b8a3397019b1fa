"""What `geom serve` decides before it starts anything."""

from __future__ import annotations

import socket
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import httpx
import pytest

from geomcli import engine, engine_plan, machine
from geomcli.errors import ServerUnreachable, UsageError
from geomcli.models import Resolved

MODEL = Resolved("owner/name", "owner/name", None)


def packages(**installed: str) -> Callable[[str], str]:
    def version(name: str) -> str:
        try:
            return installed[name.replace("-", "_")]
        except KeyError:
            raise PackageNotFoundError(name) from None

    return version


@pytest.mark.parametrize(
    ("installed", "devices", "device"),
    [
        ({"sglang_kernel": "0.4.7", "torch": "2.13.0"}, 1, "cuda"),
        ({"sglang_kernel": "0.4.7", "torch": "2.13.0"}, 0, "cpu"),
        ({"sglang_kernel": "0.4.7", "torch": "2.13.0+cpu"}, 1, "cpu"),
        ({"torch": "2.13.0+cu130"}, 1, "cpu"),
        ({"sgl_kernel": "0.3.0", "torch": "2.13.0+cu130"}, 1, "cuda"),
    ],
)
def test_a_gpu_is_used_only_by_packages_that_can(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], devices: int, device: str
) -> None:
    monkeypatch.setattr(machine, "version", packages(**installed))
    monkeypatch.setattr(machine, "_cuda_devices", lambda: devices)
    assert machine.detect_device() == device
    assert engine_plan.plan(MODEL).device == device


def test_a_server_without_capture_keeps_sglangs_own_choices_on_a_gpu() -> None:
    plain = engine_plan.plan(MODEL, device="cuda").command
    assert "--attention-backend" not in plain
    assert "--disable-cuda-graph" not in plain
    assert "--attention-backend" in engine_plan.plan(MODEL, flags=["--return-attention-tokens"], device="cuda").command


def meeting_port(**given: Any) -> str | None:
    command = engine_plan.plan(MODEL, device="cuda", **given).command
    return command[command.index("--nccl-port") + 1] if "--nccl-port" in command else None


def test_the_processes_of_a_server_meet_where_no_connection_takes_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _: "32768\t60999\n")
    taken: set[int] = set()
    monkeypatch.setattr(machine, "_is_free", lambda port: port not in taken)
    port = meeting_port(port=30000)
    assert port is not None
    assert 1024 <= int(port) < 32768
    assert meeting_port(port=30000) == port
    assert len({meeting_port(port=other) for other in (30000, 30001, 30010, 31000, 40000)}) == 5
    assert meeting_port(port=int(port)) != port
    taken.add(int(port))
    assert meeting_port(port=30000) == str(int(port) + 1)
    assert meeting_port(extra=["--nccl-port", "5"]) == "5"
    assert meeting_port(extra=["--nccl-port=5"]) is None
    for elsewhere in ("--dp-size=2", "--nnodes=2", "--dist-init-addr=h:1", "--config=f"):
        assert meeting_port(extra=[elsewhere]) is None, elsewhere
    for lowest, expected in (("16000 65535", True), ("1024 65535", False), ("", True)):
        monkeypatch.setattr(Path, "read_text", lambda _, lowest=lowest: lowest)
        assert (meeting_port(port=30000) is not None) is expected, lowest


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "0.0.0.0"])
def test_a_port_on_which_somebody_listens_is_not_free(address: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as server:
        server.bind((address, 0))
        server.listen()
        port = server.getsockname()[1]
        assert not machine._is_free(port)
    assert machine._is_free(port)


def test_addresses() -> None:
    assert engine_plan.plan(MODEL, host="::1", port=5).base_url == "http://[::1]:5"
    assert engine_plan.plan(MODEL, host="::", port=5).base_url == "http://[::1]:5"
    assert engine_plan.plan(MODEL, host="0.0.0.0", port=5).base_url == "http://127.0.0.1:5"
    assert engine_plan.plan(MODEL, extra=["--host=h", "--port=7"]).base_url == "http://h:7"


@pytest.mark.parametrize("port", ["x", "0", "99999", "٣"])
def test_a_port_among_the_arguments_is_checked(port: str) -> None:
    with pytest.raises(UsageError, match=r"--port must be 1\.\.65535"):
        engine_plan.plan(MODEL, extra=["--port", port])


def test_the_key_of_the_server_is_known() -> None:
    assert engine_plan.plan(MODEL, extra=["--api-key", "secret"]).api_key == "secret"
    assert engine_plan.plan(MODEL).api_key == ""


def test_the_key_of_attention_is_known_and_no_key_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOM_ATTENTION_KEY", "from outside")
    assert engine_plan.plan(MODEL).attention_key == "from outside"
    given = engine_plan.plan(MODEL, flags=["--attention-api-key", "secret"], extra=["--api-key=hidden", "--port", "7"])
    assert given.attention_key == "secret"
    shown = given.shown()
    assert "secret" not in shown
    assert "hidden" not in shown
    assert shown.endswith("--attention-api-key '***' '--api-key=***' --port 7")


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (httpx.Response(404), "without geom's plugin"),
        (httpx.Response(401, json={}), "wants a key .* --api-key"),
        (httpx.Response(401, json={"message": "X-Attention-Key"}), "wants a key .* GEOM_ATTENTION_KEY"),
        (httpx.Response(500, text="x"), "HTTP 500"),
        (httpx.Response(200, text="x"), "did not say what it captures"),
        (httpx.Response(200, json=[1]), "did not say what it captures"),
        (httpx.Response(200, json={"hooks": {"missing": ["a.b"]}}), "hooks did not apply: a.b"),
    ],
)
def test_capabilities_that_do_not_fit_stop_the_start(response: httpx.Response, said: str) -> None:
    transport = httpx.MockTransport(lambda _: response)
    with httpx.Client(transport=transport, base_url="http://h") as client, pytest.raises(ServerUnreachable, match=said):
        engine.check_capabilities(client)


def test_memory_is_known_here() -> None:
    available = machine.available_memory()
    assert available is not None
    assert 0 < available < 1 << 50
