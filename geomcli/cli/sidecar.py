"""`geom sidecar`: receive, store, group and classify the fingerprints of live traffic."""

from __future__ import annotations

import contextlib
import math
import os
import socket
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

import typer

from geomcli.cli import opening, output
from geomcli.errors import StoreError, UsageError

KEY_VARIABLE = "GEOM_SIDECAR_KEY"
_YEAR = 365 * 24 * 3600.0
_MOST_BUFFERED = 200_000


def sidecar(
    db: opening.Db = None,
    zmq_bind: Annotated[str, typer.Option(help="Where fingerprints come in; tcp://*:9001 for all interfaces.")] = (
        "tcp://127.0.0.1:9001"
    ),
    port: Annotated[int, typer.Option(help="Of the HTTP interface.", min=0, max=65535)] = 9000,
    host: Annotated[str, typer.Option(help="Address of the HTTP interface.")] = "127.0.0.1",
    api_key: Annotated[
        str, typer.Option(help="Bearer token that HTTP asks for; needed beyond loopback. GEOM_SIDECAR_KEY.")
    ] = "",
    discovery_dir: Annotated[
        Path | None, typer.Option(help="Artifacts of geom discover; beside the store if left out.")
    ] = None,
    auto_reload_interval: Annotated[
        float, typer.Option(help="Seconds between looks at newer artifacts; up to a year.", min=0.1)
    ] = 300.0,
    recluster_interval: Annotated[
        float, typer.Option(help="Seconds between groupings with HDBSCAN; up to a year.", min=0.1)
    ] = 60.0,
    online: Annotated[bool, typer.Option("--online", help="Group fingerprints as they come, without HDBSCAN.")] = False,
    online_threshold: Annotated[
        float | None,
        typer.Option(help="Angle in radians within which a micro-cluster takes one; 0.55.", min=0.01, max=1.57),
    ] = None,
    buffer: Annotated[
        int, typer.Option(help="Newest fingerprints of each model that HDBSCAN groups.", min=100, max=_MOST_BUFFERED)
    ] = 20_000,
) -> None:
    """Receive the fingerprints of a server started with --attention-sidecar-url; store, group and classify them.

    \b
    Examples:
      geom sidecar
      geom sidecar --db ./attention_data.db --discovery-dir ./discovery_artifacts --auto-reload-interval 300
      geom sidecar --zmq-bind 'tcp://*:9001' --online --online-threshold 0.45
    """
    from geomcli import config

    given = api_key or os.environ.get(KEY_VARIABLE, "")
    key = given.strip()
    if given and not key:
        raise UsageError("the key is nothing but spaces.", f"--api-key KEY, or no {KEY_VARIABLE}")
    if not key.isascii():
        raise UsageError("the key has letters that a header cannot carry.", "--api-key with printable ASCII")
    _checked_seconds("--recluster-interval", recluster_interval)
    _checked_seconds("--auto-reload-interval", auto_reload_interval)
    if online_threshold is not None and math.isnan(online_threshold):
        raise UsageError("--online-threshold nan is no angle.", "--online-threshold 0.55")
    if online_threshold is not None and not online:
        raise UsageError("--online-threshold is of online clusters alone.", "--online --online-threshold 0.55")
    host = host.removeprefix("[").removesuffix("]")
    if not _is_loopback(host) and not key:
        raise UsageError(f"--host {host} is beyond this machine: it needs a key.", f"--api-key KEY, or {KEY_VARIABLE}")
    path = config.store_path(db=None if db is None else str(db))
    try:
        from geomcli.sidecar.app import application
        from geomcli.sidecar.http_server import HttpServer
        from geomcli.sidecar.service import Options, Service
    except ImportError as error:
        raise UsageError(f"the sidecar needs {error.name}.", "pip install 'geomcli[sidecar]'") from None

    listening = _bound(host, port)
    service = Service(
        Options(
            zmq_bind, path, discovery_dir or config.discovery_path(path), recluster_interval, auto_reload_interval,
            online, online_threshold, buffer,
        )
    )  # fmt: skip
    console = output.narrator()
    console.print(output.marked(f"fingerprints: {service.receiver.url} into {path}"))
    if not config.is_loopback(service.receiver.url):
        console.print(output.marked(f"{service.receiver.url} has no key: whoever reaches the port can write."))
    address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    console.print(output.marked(f"HTTP: {address}, grouping {'online' if online else 'with HDBSCAN'}"))
    if service.discoveries.error:
        console.print(output.marked(f"no /classify yet: {service.discoveries.error}"))
    server = HttpServer(application(service, key=key), service)
    # uvicorn passes the signal on that ended it; ending is what was asked for.
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listening])
    if failed := service.close():
        raise StoreError(" ".join(failed))


def _checked_seconds(flag: str, seconds: float) -> None:
    if not seconds <= _YEAR:
        raise UsageError(f"{flag} wants seconds up to a year, got {seconds}.", f"{flag} 60")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _bound(host: str, port: int) -> socket.socket:
    """A listening socket; UsageError where the port is taken or the address is not ours."""
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen()  # two that only bind would share the port
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no name of a host"
        raise UsageError(f"{shown}: {reason}.", "--host and --port of a free address") from None
    return made
