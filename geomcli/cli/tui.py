"""`geom tui`: the explorer in the terminal, or in a browser."""

from __future__ import annotations

import os
import signal
import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from geomcli import config
from geomcli.cli.opening import names_file
from geomcli.errors import StoreError, UsageError
from geomcli.request import check_firewall

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from geomcli.schema import Record
    from geomcli.tui.reading import Opened


def tui(
    traces: Annotated[
        list[str] | None, typer.Argument(help="A file of JSON lines, a trace id or `last`; two to compare them.")
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Play the recording that comes with geom.")] = False,
    pane: Annotated[str | None, typer.Option(help="Pane to begin with: chat, inspect, router …")] = None,
    theme: Annotated[str | None, typer.Option(help="geom, geom-light, geom-colour-blind, geom-ansi …")] = None,
    firewall: Annotated[
        str | None, typer.Option(help="Watch answers for drift, uncalibrated: stop, log or reroute.")
    ] = None,
    save: Annotated[bool, typer.Option("--save/--no-save", help="Keep answers in the store.")] = True,
    web: Annotated[bool, typer.Option("--web", help="Serve the app to a browser on this machine.")] = False,
    port: Annotated[int, typer.Option(help="Port of --web.", min=1, max=65535)] = 8000,
    base_url: Annotated[str | None, typer.Option(help="Server; GEOM_BASE_URL.")] = None,
    api_key: Annotated[str | None, typer.Option(help="Key of the server; GEOM_API_KEY.")] = None,
    attention_key: Annotated[
        str | None, typer.Option(help="Key of its --attention-api-key; GEOM_ATTENTION_KEY.")
    ] = None,
    db: Annotated[Path | None, typer.Option(help="Trace store; GEOM_DB.", dir_okay=False)] = None,
) -> None:
    """Watch what a model looks at while it writes: chat, replay a trace, or compare two.

    \b
    Examples:
      geom tui --demo
      geom tui                      chat with the server at GEOM_BASE_URL, or start one from there
      geom tui trace.jsonl
      geom tui a.jsonl b.jsonl      compare two
      geom tui --web
    """
    from geomcli.tui import panes
    from geomcli.tui.app import GeomApp

    names = traces or []
    if demo and names:
        raise UsageError("--demo plays a recording of its own; leave the trace out.", "geom tui --demo")
    if len(names) > 2:
        raise UsageError(f"two traces can be compared, {len(names)} were named.", "geom tui A.jsonl B.jsonl")
    offered = [mode for _, mode in panes.offered()]
    if pane is not None and pane not in offered:
        raise UsageError(f"there is no pane {pane!r}.", f"geom tui --pane NAME, one of {', '.join(offered)}")
    check_firewall(firewall)
    settings = config.load(
        base_url=base_url, api_key=api_key, attention_key=attention_key, db=None if db is None else str(db)
    )
    opened = [_opened(name, settings) for name in names]
    app = GeomApp(settings, opened=opened, demo=demo, mode=pane or "", theme=theme or "", save=save)
    app.session.ask = app.session.ask.changed(firewall=firewall)
    if web:
        options = {"--firewall": firewall, "--pane": pane, "--theme": theme, "--base-url": base_url, "--db": db}
        words = [f"{name}={value}" for name, value in options.items() if value is not None]
        words += [*(["--demo"] if demo else []), *([] if save else ["--no-save"])]
        words += _keys(GEOM_API_KEY=("--api-key", api_key), GEOM_ATTENTION_KEY=("--attention-key", attention_key))
        _serve(["tui", *words, *(["--", *names] if names else [])], port)
        return
    if "TEXTUAL_DRIVER" not in os.environ and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "geom tui needs a terminal; its input or output is a pipe or a file.", "geom run, or geom traces show"
        )
    signal.signal(signal.SIGTERM, lambda *_: app.exit(return_code=130))
    signal.signal(signal.SIGHUP, lambda *_: app.lose_terminal())
    app.run()
    if app.unreadable is not None:
        raise app.unreadable
    if app.live.lost:
        raise StoreError(app.live.lost)
    if app.return_code:
        raise typer.Exit(app.return_code)


def _opened(name: str, settings: config.Settings) -> Opened:
    from geomcli import jsonl
    from geomcli.store import Store
    from geomcli.tui.reading import Opened

    if names_file(name):
        path = Path(name)
        rest = jsonl.records(path)
        traces = _first(rest)
        return Opened(path.name, traces, path=name, rest=rest if _may_go_on(traces) else None)
    with Store(settings.db_path, create=False) as store:
        trace_id = store.find(name)
        traces = _first(store.records(trace_id))
    return Opened(trace_id, traces, saved=True, stored=trace_id if _may_go_on(traces) else "")


def _first(records: Iterator[Record]) -> list[list[Record]]:
    """The first records by trace: what the app begins with, and shows more behind."""
    from geomcli.tui.reading import FIRST

    traces: list[list[Record]] = []
    for record in islice(records, FIRST):
        if record["record_type"] == "header":
            traces.append([])
        traces[-1].append(record)
    return traces


def _may_go_on(traces: Sequence[Sequence[Record]]) -> bool:
    from geomcli.tui.reading import FIRST

    return sum(map(len, traces)) == FIRST


def _keys(**given: tuple[str, str | None]) -> list[str]:
    """Hand keys on to the processes that browsers start; what has to be on their command lines.

    No key has: those can be read by everybody on the machine. But an empty one takes back what geom.toml says, which an
    empty variable does not.
    """
    os.environ.update({variable: key for variable, (_, key) in given.items() if key})
    return [f"{option}=" for option, key in given.values() if key == ""]


def _serve(arguments: list[str], port: int) -> None:
    try:
        from geomcli.tui.web import serve
    except ImportError:
        raise UsageError("--web needs the package textual-serve.", "pip install 'geomcli[web]'") from None
    serve(arguments, port)
