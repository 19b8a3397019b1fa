"""What `geom serve` would start: the command of SGLang's server, its environment, its ports. Starts nothing."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from geomcli import config, machine
from geomcli.errors import UsageError
from geomcli.models import Resolved

_KEY_FLAGS = ("--api-key", "--admin-api-key", "--attention-api-key")
# With these SGLang meets its processes elsewhere, or at several ports, or is told where by a file.
_OTHER_RENDEZVOUS = ("--dist-init-addr", "--nnodes", "--dp-size", "--data-parallel-size", "--dp", "--config")


class Plan(NamedTuple):
    """One start: the command, the environment that it adds, and where its output goes."""

    command: list[str]
    environment: dict[str, str]
    host: str
    port: int
    model: Resolved
    log: Path
    device: str
    again: str  # what one types to start it once more, with other flags

    @property
    def base_url(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def api_key(self) -> str:
        """The key that the server will ask for, if it was given one."""
        return _value_of("--api-key", self.command) or ""

    @property
    def attention_key(self) -> str:
        """The key that the server will ask for where attention is concerned; one in a --config file is the user's."""
        given = _value_of("--attention-api-key", self.command)
        return os.environ.get(config.ATTENTION_KEY_VARIABLE, "") if given is None else given

    def shown(self) -> str:
        """The command as one would type it, but for keys."""
        pairs = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*pairs, shlex.join(_without_keys(self.command))])


def plan(
    model: Resolved,
    *,
    flags: Sequence[str] = (),
    extra: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = config.DEFAULT_PORT,
    device: str = "auto",
    log: Path | None = None,
    again: str | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Plan:
    """The command that serves `model`.

    `flags`: attention flags; `extra`: arguments of the user's own, which win over the defaults chosen here.
    """
    device = machine.detect_device() if device == "auto" else device
    command = [sys.executable, "-P", "-m", "sglang.launch_server", "--model-path", model.path]
    defaults = {"--served-model-name": model.served_name, "--host": host, "--port": str(port)}
    added: dict[str, str] = {}
    if device == "cpu":
        defaults |= {
            "--device": "cpu",
            "--attention-backend": "torch_native",
            "--dtype": "float32",
            "--max-total-tokens": "16384",
            "--max-running-requests": "8",
            "--mem-fraction-static": "0.5",
        }
        switches = ["--disable-overlap-schedule", "--sleep-on-idle"]
        shim = Path(__file__).parent / "server_patch" / "cpu_shim"
        path = environment.get("PYTHONPATH")
        added = {
            "SGLANG_USE_CPU_ENGINE": "1",
            "PYTHONPATH": f"{shim}{os.pathsep}{path}" if path else str(shim),
            # More threads, or threads that spin, make decode several times slower beside any other process.
            "OMP_NUM_THREADS": environment.get("OMP_NUM_THREADS", "1"),
            "OMP_WAIT_POLICY": "passive",
        }
    elif "--return-attention-tokens" in flags:
        defaults |= {"--attention-backend": "triton"}
        switches = []
    else:
        switches = []
    if Path(model.path).is_dir():
        added["HF_HUB_OFFLINE"] = "1"
    given = {argument.split("=", 1)[0] for argument in extra}
    port = _port_of(extra) or port
    if not given.intersection(_OTHER_RENDEZVOUS) and (meeting := machine.listening_port(port)) is not None:
        defaults["--nccl-port"] = str(meeting)
    for name, value in defaults.items():
        if name not in given:
            command += [name, value]
    command += [switch for switch in switches if switch not in given]
    command += [*flags, *extra]
    allowed = environment.get("SGLANG_PLUGINS")
    if allowed and "geom" not in allowed.split(","):
        added["SGLANG_PLUGINS"] = f"{allowed},geom"
    host = _value_of("--host", extra) or host
    log = log or config.state_dir() / f"serve-{port}.log"
    return Plan(command, added, host, port, model, log, device, again or f"geom serve {model.served_name}")


def _value_of(name: str, arguments: Sequence[str]) -> str | None:
    for position, argument in enumerate(arguments):
        if argument == name and position + 1 < len(arguments):
            return arguments[position + 1]
        if argument.startswith(name + "="):
            return argument.split("=", 1)[1]
    return None


def _without_keys(arguments: Sequence[str]) -> list[str]:
    shown: list[str] = []
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if shown and shown[-1] in _KEY_FLAGS:
            shown.append("***")
        else:
            shown.append(f"{name}=***" if equals and name in _KEY_FLAGS else argument)
    return shown


def _port_of(arguments: Sequence[str]) -> int | None:
    text = _value_of("--port", arguments)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
        raise UsageError(f"--port must be 1..65535, got {text!r}.")
    return int(text)
