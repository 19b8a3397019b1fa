"""`geom traces`: ls, show, export."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from geomcli import config, jsonl
from geomcli.cli import output
from geomcli.cli.summary import print_summary
from geomcli.display import printable
from geomcli.links import strongest_links, texts_by_position
from geomcli.schema import Record
from geomcli.store import Store
from geomcli.trace import Trace
from geomcli.zones import UNKNOWN

app = typer.Typer(name="traces", help="The answers that were kept.", no_args_is_help=True)

_Db = Annotated[Path | None, typer.Option("--db", help="Trace store; GEOM_DB.", dir_okay=False)]
_Id = Annotated[str, typer.Argument(help="Trace id, the start of one, or `last`.")]


def _store(db: Path | None) -> Store:
    return Store(config.store_path(db=None if db is None else str(db)))


@app.command()
def ls(
    limit: Annotated[int, typer.Option(help="Newest traces to list.", min=1, max=1_000_000)] = 20,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Ids only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
    db: _Db = None,
) -> None:
    """List the newest traces."""
    with _store(db) as store:
        rows = store.ls(limit=limit)
    if as_json:
        output.print_json(rows)
        return
    for row in rows:
        if quiet:
            print(row["id"])
            continue
        created = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["created"] / 1000))
        tokens = "cut off" if not row["complete"] else f"{row['tokens']} tokens"
        cells = (row["id"], created, row["model"], tokens, row["dominant_zone"] or "-", row["title"])
        print("\t".join(printable(" ".join(cell.split())) for cell in cells))
    if not rows:
        output.narrator().print("No traces yet. Try: geom run 'Why is the sky blue?'")


@app.command()
def show(
    trace: _Id = "last",
    as_json: Annotated[bool, typer.Option("--json", help="All records as one JSON list.")] = False,
    links: Annotated[int, typer.Option(help="Attended positions shown for each token.", min=0)] = 3,
    db: _Db = None,
) -> None:
    """Show a trace token by token: zone, drift, and what each token looked at most."""
    with _store(db) as store:
        records = list(store.records(store.find(trace)))
    if as_json:
        output.print_json(records)
        return
    _print_tokens(Trace(records), links)


@app.command()
def export(
    traces: Annotated[list[str], typer.Argument(help="Trace ids, starts of ids, or `last`.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File to write; stdout if left out.")] = None,
    db: _Db = None,
) -> None:
    """Write traces as JSON lines, one record a line."""
    with _store(db) as store:
        ids = [store.find(name) for name in traces]
        text = "".join(jsonl.dump(store.records(trace_id)) for trace_id in ids)
    if out is None:
        output.write_data(text)
    else:
        out.write_text(text, encoding="utf-8")


def _print_tokens(trace: Trace, n_links: int) -> None:
    from rich.table import Table

    console = output.speaker()
    for message in trace.messages:
        console.print(f"[bold]{output.marked(message['role'])}[/] {output.marked(message['content'])}")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name, justify in (("#", "right"), ("token", "left"), ("zone", "left"), ("conf", "right"), ("drift", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("looks at (position, token, probability)")
    steps = {step["tokenIndex"]: step for step in trace.steps}
    texts = texts_by_position(trace)
    for token in trace.tokens:
        table.add_row(*_row(token, steps.get(token["index"]), texts, n_links))
    console.print()
    console.print(table)
    if trace.metrics:
        print_summary(trace)
    else:
        output.narrator().print("\nThis trace was cut off before its end.")


def _row(token: Record, step: Record | None, texts: dict[int, str], n_links: int) -> list[str]:
    shown = _quoted(token.get("text") or "")
    if step is None:
        return [str(token["index"]), shown, "", "", "", ""]
    zone = step.get("zone", "-")
    glyph, style = output.ZONE_STYLES.get(zone, output.ZONE_STYLES[UNKNOWN])
    drift = step.get("drift")
    return [
        str(token["index"]),
        f"[{style}]{shown}[/]",
        f"[{style}]{glyph} {output.marked(zone)}[/]",
        f"{step['zone_confidence']:.2f}" if "zone_confidence" in step else "",
        "" if drift is None else f"{drift:.3f}",
        _links(step, texts, n_links),
    ]


def _quoted(text: str) -> str:
    """Escaped for one line and for markup; the quotes show leading spaces."""
    return output.marked(json.dumps(text, ensure_ascii=False))


def _links(step: Record, texts: dict[int, str], n_links: int) -> str:
    parts = [output.marked(flag) for flag in step.get("flags", [])]
    for position, probability in strongest_links(step)[:n_links]:
        name = f" [dim]{_quoted(texts[position])}[/]" if position in texts else ""
        parts.append(f"{position}{name} {probability:.2f}")
    return "  ".join(parts)
