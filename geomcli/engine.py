"""Starting, watching and ending a real SGLang server with the plugin in it, as a child process of ours.

Chooses SGLang's CPU engine when there is no CUDA GPU. Never imports SGLang or torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from errno import EADDRNOTAVAIL
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import msgspec

from geomcli import config, machine
from geomcli.engine_plan import Plan
from geomcli.errors import GeomError, ServerUnreachable, UsageError
from geomcli.schema import ATTENTION_KEY_HEADER, CAPABILITIES_PATH

BOOT_SECONDS = 600
_CPU_RUNTIME_BYTES = 2_500_000_000  # three Python processes with torch, KV cache of the default size
_REASON_BYTES = 1 << 20  # the end of a log in which the reason of an end is looked for
_PDEATHSIG = 1


class EngineState(msgspec.Struct):
    """What a running engine leaves in the state folder, so that a second start can say what is there."""

    pid: int
    port: int
    model: str
    log: str


def check(plan: Plan) -> None:
    """Everything that can be known before the start; GeomError with one sentence and the command that mends it."""
    _check_installed(plan)
    _check_port(plan)
    if plan.device == "cpu" and plan.model.bytes is not None:
        _check_memory(plan.model.bytes)


def _check_installed(plan: Plan) -> None:
    try:
        version("sglang")
    except PackageNotFoundError:
        mend = "make install (in geom's repository)" if plan.device == "cpu" else "pip install 'sglang>=0.5.16,<0.5.24'"
        raise UsageError("SGLang is not installed in this environment.", mend) from None
    if plan.device == "cpu" and find_spec("gguf") is None:
        raise UsageError("SGLang's CPU engine is only half installed.", "make install")


def _check_port(plan: Plan) -> None:
    free = f"{plan.again} --port {machine.free_port()}"
    if (running := running_engine(plan.port)) is not None:
        raise UsageError(
            f"an engine of geom already serves {running.model} on port {plan.port} (pid {running.pid}).",
            f"geom run (to use it), or kill {running.pid}, or {free}",
        )
    with socket.socket(socket.AF_INET6 if ":" in plan.host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((plan.host, plan.port))
        except (OSError, UnicodeError) as error:
            why = (getattr(error, "strerror", None) or "not an address").lower()
            if not isinstance(error, OSError) or isinstance(error, socket.gaierror) or error.errno == EADDRNOTAVAIL:
                raise UsageError(f"--host {plan.host!r}: {why}.", f"{plan.again} --host 127.0.0.1") from None
            raise UsageError(f"port {plan.port} on {plan.host}: {why}.", free) from None


def _check_memory(weights: int) -> None:
    available = machine.available_memory()
    # Weights are held as float32, whatever the file has; loading needs a second copy for a moment.
    needed = 3 * weights + _CPU_RUNTIME_BYTES
    if available is not None and available < needed:
        raise GeomError(
            f"serving this model on the CPU needs about {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are "
            "free.",
            "geom serve smollm2, or close other programs",
        )


def _state_file(port: int) -> Path:
    return config.state_dir() / f"engine-{port}.json"


def running_engine(port: int) -> EngineState | None:
    """The engine of ours that holds this port, if its process is alive."""
    try:
        state = msgspec.json.decode(_state_file(port).read_bytes(), type=EngineState)
        command = Path(f"/proc/{state.pid}/cmdline").read_bytes()
    except (OSError, msgspec.MsgspecError):
        return None
    return state if b"sglang" in command else None


class Engine:
    """A started server. `with Engine(plan) as engine:` ends every process of it on the way out."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Engine:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Check, then start; returns at once."""
        check(self.plan)
        # An empty directory as the working directory: no folder there can shadow a package that SGLang imports.
        home = config.state_dir() / "engine"
        home.mkdir(parents=True, exist_ok=True)
        self.plan.log.parent.mkdir(parents=True, exist_ok=True)
        with self.plan.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.plan.command,
                cwd=home,
                env={**os.environ, **self.plan.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,  # noqa: PLW1509  (no threads of ours are running yet)
            )
        state = EngineState(self.process.pid, self.plan.port, self.plan.model.served_name, str(self.plan.log))
        _state_file(self.plan.port).write_bytes(msgspec.json.encode(state))

    def wait(
        self,
        *,
        timeout: float = BOOT_SECONDS,
        progress: Callable[[float], None] = lambda _seconds: None,
        capture: bool = True,
    ) -> dict[str, Any]:
        """Wait until the server answers; returns its capabilities ({} with `capture` False).

        ServerUnreachable with the reason when it dies, takes too long, or when a hook did not apply.
        """
        began = time.monotonic()
        key = self.plan.api_key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        if self.plan.attention_key:
            headers[ATTENTION_KEY_HEADER] = self.plan.attention_key
        # No proxy of the environment between this process and its own child.
        with httpx.Client(base_url=self.plan.base_url, timeout=10, headers=headers, trust_env=False) as client:
            while True:
                seconds = time.monotonic() - began
                progress(seconds)
                if not self.alive():
                    raise ServerUnreachable(f"the engine stopped while starting: {self.reason()}", self._log_hint())
                if seconds > timeout:
                    raise ServerUnreachable(f"the engine was not ready after {timeout:.0f} s.", self._log_hint())
                try:
                    if client.get("/health").status_code == 200:
                        break
                except httpx.HTTPError:
                    pass
                time.sleep(0.5)
            if not capture:
                return {}
            return check_capabilities(client)

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def reason(self) -> str:
        """The sentence of the log that says why the engine ended, as far as it can be told."""
        try:
            with self.plan.log.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _REASON_BYTES))
                lines = log.read().decode(errors="replace").splitlines()
        except OSError:
            return "its log cannot be read."
        # What stops the server is printed bare; a log line of the same name has a date before it.
        for line in reversed(lines):
            if line.startswith(("geom: ", "geom cannot")):
                return line.removeprefix("geom: ")
        lines = [re.sub(r"^\[[^\]]*\]\s*", "", line).strip() for line in lines if line.strip()]
        for line in reversed(lines):
            if re.match(r"(\w+\.)*\w*(Error|Exception|error)\b.*: ", line):
                return line
        return lines[-1] if lines else "it printed nothing."

    def stop(self, grace: float = 2) -> None:
        """End the server and every process that it started: asked first, killed after `grace` seconds."""
        if self.process is not None:
            with _signals_ignored():
                self._stop(self.process, grace)

    def _stop(self, process: subprocess.Popen[bytes], grace: float) -> None:
        group = process.pid
        # Only the parent is asked: it ends its own children, and hangs if they vanish under it.
        with contextlib.suppress(ProcessLookupError):
            os.kill(group, signal.SIGTERM)
        if not self._wait_for_group(grace):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
            self._wait_for_group(10)
        process.wait()
        state = running_engine(self.plan.port)
        if state is None or state.pid == group:
            _state_file(self.plan.port).unlink(missing_ok=True)

    def _wait_for_group(self, patience: float) -> bool:
        assert self.process is not None
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            self.process.poll()  # reap, or the group never looks empty
            if not _group_alive(self.process.pid):
                return True
            time.sleep(0.05)
        return False

    def _log_hint(self) -> str:
        return f"less +G {self.plan.log}"


def check_capabilities(client: httpx.Client) -> dict[str, Any]:
    """The capabilities of the server behind `client`; ServerUnreachable when attention cannot be captured there."""
    try:
        response = client.get(CAPABILITIES_PATH)
        document: Any = response.json() if response.is_success else None
    except (httpx.HTTPError, ValueError) as error:
        raise ServerUnreachable(f"the engine did not say what it captures ({type(error).__name__}).") from None
    if response.status_code == 404:
        raise ServerUnreachable("the server runs without geom's plugin.", "pip install geomcli where SGLang is")
    if response.status_code in (401, 403):
        ours = ATTENTION_KEY_HEADER in response.text
        mend = f"{config.ATTENTION_KEY_VARIABLE}=… geom serve …" if ours else "geom serve -- --api-key KEY"
        raise ServerUnreachable("the server wants a key to say what it captures.", mend)
    if not isinstance(document, dict):
        raise ServerUnreachable(f"the engine did not say what it captures (HTTP {response.status_code}).")
    missing = document.get("hooks", {}).get("missing", [])
    if missing:
        raise ServerUnreachable(f"these hooks did not apply: {', '.join(missing)}.")
    return document


@contextlib.contextmanager
def _signals_ignored() -> Iterator[None]:
    """An impatient second Ctrl-C must not leave an engine behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {sign: signal.signal(sign, signal.SIG_IGN) for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for sign, handler in before.items():
            signal.signal(sign, signal.SIG_DFL if handler is None else handler)


def _end_with_parent() -> None:
    """In the child: get SIGTERM when the process that started the engine dies, even by kill -9."""
    with contextlib.suppress(OSError):
        ctypes.CDLL("libc.so.6").prctl(_PDEATHSIG, signal.SIGTERM)


def _group_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
