"""What `geom serve` decides before it starts anything."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError

import httpx
import pytest

from geomcli import engine, machine
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
    assert engine.plan(MODEL).device == device


def test_a_server_without_capture_keeps_sglangs_own_choices_on_a_gpu() -> None:
    plain = engine.plan(MODEL, device="cuda").command
    assert "--attention-backend" not in plain
    assert "--disable-cuda-graph" not in plain
    assert "--attention-backend" in engine.plan(MODEL, flags=["--return-attention-tokens"], device="cuda").command


def test_addresses() -> None:
    assert engine.plan(MODEL, host="::1", port=5).base_url == "http://[::1]:5"
    assert engine.plan(MODEL, host="::", port=5).base_url == "http://[::1]:5"
    assert engine.plan(MODEL, host="0.0.0.0", port=5).base_url == "http://127.0.0.1:5"
    assert engine.plan(MODEL, extra=["--host=h", "--port=7"]).base_url == "http://h:7"


@pytest.mark.parametrize("port", ["x", "0", "99999", "٣"])
def test_a_port_among_the_arguments_is_checked(port: str) -> None:
    with pytest.raises(UsageError, match=r"--port must be 1\.\.65535"):
        engine.plan(MODEL, extra=["--port", port])


def test_the_key_of_the_server_is_known() -> None:
    assert engine.plan(MODEL, extra=["--api-key", "secret"]).api_key == "secret"
    assert engine.plan(MODEL).api_key == ""


def test_the_key_of_attention_is_known_and_no_key_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOM_ATTENTION_KEY", "from outside")
    assert engine.plan(MODEL).attention_key == "from outside"
    given = engine.plan(MODEL, flags=["--attention-api-key", "secret"], extra=["--api-key=hidden", "--port", "7"])
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
